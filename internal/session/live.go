package session

import (
	"sync/atomic"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
)

// liveMachine is the memory of a machine across looks: it reads through the
// newest tower that has the machine, so caches of a moment never outlive it.
type liveMachine struct {
	current atomic.Pointer[machine.Machine] // never nil once made
}

func (l *liveMachine) machine() *machine.Machine { return l.current.Load() }

// ReadPhys implements mem.PhysReader.
func (l *liveMachine) ReadPhys(p []byte, a mem.Phys) (int, error) {
	return l.machine().Phys.ReadPhys(p, a)
}

// SlicePhys implements mem.PhysSlicer.
func (l *liveMachine) SlicePhys(a mem.Phys, max int) []byte {
	return l.machine().Phys.SlicePhys(a, max)
}

// liveSpace is one address space of a liveMachine.
type liveSpace struct {
	live *liveMachine
	root uint64
}

// ReadVirt implements mem.VirtReader.
func (s *liveSpace) ReadVirt(p []byte, a mem.Virt) (int, error) {
	space, err := s.live.machine().SpaceAt(s.root)
	if err != nil {
		return 0, &mem.FaultError{Space: "virtual memory of " + s.live.machine().Name, Addr: uint64(a), Err: err}
	}
	return space.ReadVirt(p, a)
}

// Translate implements linux.AddressSpace.
func (s *liveSpace) Translate(addr uint64) (mem.Phys, uint64, error) {
	space, err := s.live.machine().SpaceAt(s.root)
	if err != nil {
		return 0, 0, &mem.FaultError{Space: "virtual memory of " + s.live.machine().Name, Addr: addr, Err: err}
	}
	return space.Translate(addr)
}
