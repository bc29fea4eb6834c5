// Package machine is the tower: machines, each made from its parent's memory
// and a second-stage root. Depth is recursion; nothing here knows a level.
//
// Values describe one moment. They are built at a stop (or from one device
// state of a running machine) and dropped when the machine runs on.
package machine

import (
	"errors"
	"fmt"
	"sync"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
)

// PhysMemory is the physical memory of a machine.
type PhysMemory interface {
	mem.PhysSlicer
	mem.PhysRanger
}

// SecondStage is how a nested machine's physical addresses become its parent's.
type SecondStage struct {
	Kind  string        // the format's name, e.g. "npt5"
	Space *paging.Space // the walk itself; its root is in the parent's memory
}

// Machine is one machine of the tower.
type Machine struct {
	Name   string // "l1", "vm0", "vm0.vm0"
	Level  int    // 1 is QEMU's own machine
	Parent *Machine
	Arch   *arch.Arch
	Phys   PhysMemory
	Second *SecondStage // nil for QEMU's own machine
	CPUs   []*CPU

	// Evidence says what speaks for this machine being there, for people.
	Evidence []string
	// Mode is the paging mode, with the root of the kernel's own tables once that is
	// known, for a machine whose CPUs do not tell: of a file without registers. Nil if
	// the CPUs are to be believed.
	Mode *arch.Registers
	// Root is a page-table root that the person gave, to be used instead of those of
	// the CPUs; nil if none was.
	Root *uint64
	// PhysBits is how many bits a physical address has where this machine's tables are
	// walked, which is the same processor at every level; 0 if that is not known.
	PhysBits uint
	// ID is what the machine is known by although its tables move: the address
	// of the hypervisor's own object, or of the lowest control block.
	ID uint64

	mu     sync.Mutex
	spaces map[spaceKey]*paging.Space // guarded by mu
}

type spaceKey struct {
	format string // by name: of one name, a machine walks one
	root   mem.Phys
}

// RunState says what a CPU is doing.
type RunState int

// The states of a CPU. Hosting means: its own code waits in the VM entry while
// its guest runs. Lost: it was there, and its registers went with it.
const (
	Running RunState = iota
	Hosting
	Parked
	Halted
	Lost
)

func (s RunState) String() string {
	return [...]string{"running", "hosting", "parked", "halted", "lost"}[s]
}

// CPU is a processor of one machine.
type CPU struct {
	Index int
	State RunState
	// On is the CPU of QEMU's own machine that carries this one now, or -1.
	On   int
	Regs *arch.Registers
	// Source says where Regs come from.
	Source string
	// Why says what a parked CPU waits for, as far as known ("HLT").
	Why string
	// Doubtful: Regs are those of its last exit, and it may have run on since.
	Doubtful bool
	// Control is the VMCB or VMCS in the parent's physical memory, if the CPU
	// belongs to a nested machine. Kind is which of the two.
	Control mem.Phys
	Kind    string
	// Executed is the control block in the memory of QEMU's own machine with which
	// hardware runs this CPU, if it is another than Control: of a guest of a guest, and
	// of a CPU that is in a guest, the hypervisors below merge several. 0 otherwise.
	Executed mem.Phys
	// Merged is where the parent's hypervisor merges Control with the control block of
	// a guest of this CPU, in the parent's physical memory; 0 if there is no such place.
	Merged mem.Phys
	// EntryPC is the address behind the instruction with which this CPU last
	// entered a guest of its own, 0 if that is not known.
	EntryPC uint64
	// Entered is the control block, in this machine's memory, of the guest that this
	// CPU last entered; 0 if that is not known.
	Entered mem.Phys
	// Second is the stage this very CPU runs on; it may differ from its
	// siblings' for a while when a hypervisor rebuilds its tables.
	Second *SecondStage
}

// ErrNoState is the class of "the registers that this needs are not known".
var ErrNoState = errors.New("register not known")

// stage1 finds, per architecture, the first-stage format and root in a CPU's
// registers. Adding an architecture adds a row.
var stage1 = map[string]func(*arch.Registers) (*paging.Format, mem.Phys, error){
	arch.X86.Name: stage1X86,
}

func stage1X86(r *arch.Registers) (*paging.Format, mem.Phys, error) {
	var v [4]uint64
	for i, name := range []string{"cr0", "cr3", "cr4", "efer"} {
		x, ok := r.Get(name)
		if !ok && name == "efer" {
			x, ok = r.Get("efer_mode")
		}
		if !ok {
			return nil, 0, fmt.Errorf("%w: %s", ErrNoState, name)
		}
		v[i] = x
	}
	f, err := paging.ForX86(v[0], v[2], v[3])
	if err != nil {
		return nil, 0, err
	}
	return f, f.Root(v[1]), nil
}

// Space is the virtual memory that c sees now.
func (m *Machine) Space(c *CPU) (*paging.Space, error) {
	if m.Root != nil {
		return m.SpaceAt(*m.Root)
	}
	f, root, err := m.stage1(c)
	if err != nil && m.Mode != nil {
		f, root, err = m.stage1(&CPU{Regs: m.Mode})
	}
	if err != nil {
		return nil, fmt.Errorf("address space of %s CPU %d: %w", m.Name, c.Index, err)
	}
	return m.space(f, root), nil
}

// SpaceAt is the virtual memory under another page-table root (the value of the
// root register), walked in the mode that the machine's CPUs are in.
func (m *Machine) SpaceAt(root uint64) (*paging.Space, error) {
	var err error
	cpus := m.CPUs
	if m.Mode != nil {
		cpus = []*CPU{{Regs: m.Mode}}
	}
	for _, c := range cpus {
		var f *paging.Format
		if f, _, err = m.stage1(c); err == nil && len(f.IndexBits) > 0 {
			return m.space(f, f.Root(root)), nil
		}
	}
	return nil, fmt.Errorf("address space at %#x: no CPU of %s has paging on: %w", root, m.Name, errors.Join(ErrNoState, err))
}

func (m *Machine) stage1(c *CPU) (*paging.Format, mem.Phys, error) {
	find, ok := stage1[m.Arch.Name]
	if !ok {
		return nil, 0, fmt.Errorf("no paging known for %s", m.Arch.Name)
	}
	return find(c.Regs)
}

func (m *Machine) space(f *paging.Format, root mem.Phys) *paging.Space {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := spaceKey{f.Name, root}
	if s := m.spaces[key]; s != nil {
		return s
	}
	if m.spaces == nil || len(m.spaces) >= maxSpaces {
		m.spaces = make(map[spaceKey]*paging.Space)
	}
	s := paging.NewSpace("virtual memory of "+m.Name, f.WithPhysBits(m.PhysBits), m.Phys, root)
	m.spaces[key] = s
	return s
}

// maxSpaces bounds the translation caches of one machine; a walk over every
// task's memory would otherwise keep one for each.
const maxSpaces = 64

// CPU returns the CPU with this number.
func (m *Machine) CPU(index int) (*CPU, bool) {
	for _, c := range m.CPUs {
		if c.Index == index {
			return c, true
		}
	}
	return nil, false
}

// Forget drops all cached translations, because memory has changed.
func (m *Machine) Forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.spaces = nil
	if m.Second != nil {
		m.Second.Space.Flush()
	}
	if r := m.Road(); r != nil {
		r.Space.Flush()
	}
	for _, c := range m.CPUs {
		if c.Second != nil {
			c.Second.Space.Flush()
		}
	}
}
