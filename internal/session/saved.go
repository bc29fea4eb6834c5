package session

import (
	"encoding/binary"
	"fmt"
	"slices"

	"nestdbg/internal/arch"
	"nestdbg/internal/debugfile"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
)

// SavedRegisters says where a hypervisor keeps the registers of a guest's CPU that are
// not in its control block. Nothing but the hypervisor's author knows.
type SavedRegisters struct {
	Machine  string // the guest
	CPU      int
	Physical bool   // Addr is in the hypervisor's physical memory, not in its virtual memory
	Addr     uint64 // of the structure
	// Members are those of the structure; the ones with the name of a register count.
	Members []debugfile.Member
	What    string // how it was said, for people
	// Together reports whether two addresses of the hypervisor's code are in one function.
	Together func(a, b uint64) bool
}

// keep adds the registers that hypervisors keep, as the person said, to CPUs that do
// not run.
func (s *Session) keep(t *machine.Tower) {
	s.mu.Lock()
	all := s.assumed.Registers
	s.mu.Unlock()
	for _, saved := range all {
		m, ok := t.Machine(saved.Machine)
		if !ok || m.Parent == nil {
			continue
		}
		c, ok := m.CPU(saved.CPU)
		if !ok || c.On >= 0 {
			continue
		}
		if saved.leaving(m.Parent, c) {
			t.Problems = append(t.Problems, fmt.Sprintf(
				"%s CPU %d: registers in %s: %s is between the guest and the place where it keeps them", m.Name, c.Index, saved.What, m.Parent.Name))
			continue
		}
		if err := saved.fill(m, c); err != nil {
			t.Problems = append(t.Problems, fmt.Sprintf("%s CPU %d: registers in %s: %v", m.Name, c.Index, saved.What, err))
			continue
		}
		c.Source += " and " + saved.What + " of " + m.Parent.Name
	}
}

// leaving reports whether a CPU of the hypervisor is in the function that entered this
// guest, behind the entry: then the registers may still be in the CPU, and those in
// memory are of before.
func (s *SavedRegisters) leaving(m *machine.Machine, guest *machine.CPU) bool {
	return slices.ContainsFunc(m.CPUs, func(c *machine.CPU) bool {
		pc, ok := c.Regs.PC()
		return ok && c.State == machine.Running && c.EntryPC != 0 && pc >= c.EntryPC && s.Together(pc, c.EntryPC) &&
			(c.Entered == 0 || c.Entered == guest.Control)
	})
}

// fill reads the registers that c lacks. It is all of them or none.
func (s *SavedRegisters) fill(m *machine.Machine, c *machine.CPU) error {
	read, err := s.memory(m.Parent)
	if err != nil {
		return err
	}
	values := make(map[string]uint64)
	for _, x := range s.Members {
		if _, ok := m.Arch.Index(x.Name); !ok || x.Size != 8 {
			continue
		}
		if values[x.Name], err = read(s.Addr + x.Offset); err != nil {
			return err
		}
	}
	if len(values) == 0 {
		return fmt.Errorf("no member has the name of a register of %s", m.Arch.Name)
	}
	for name, v := range values {
		if _, known := c.Regs.Get(name); !known {
			c.Regs.Set(name, v)
		}
	}
	return nil
}

// memory is how the structure is read in the hypervisor's memory.
func (s *SavedRegisters) memory(m *machine.Machine) (func(addr uint64) (uint64, error), error) {
	if s.Physical {
		return func(a uint64) (uint64, error) {
			var b [8]byte
			_, err := m.Phys.ReadPhys(b[:], mem.Phys(a))
			return binary.LittleEndian.Uint64(b[:]), err
		}, nil
	}
	// Any CPU will do, and where there is none, the tables that are assumed.
	var err error
	for _, c := range append(slices.Clone(m.CPUs), &machine.CPU{Regs: arch.NewRegisters(m.Arch)}) {
		space, off := m.Space(c)
		if off == nil {
			return func(a uint64) (uint64, error) { return mem.VirtUint64(space, mem.Virt(a)) }, nil
		}
		err = off
	}
	return nil, fmt.Errorf("%w; say --cr3 %s=ROOT, or pa: if the address is physical", err, m.Name)
}
