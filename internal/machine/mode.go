package machine

import (
	"fmt"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
)

// kernelModes are, per architecture, the paging modes that a kernel may run in where
// no CPU says which, likely ones first. A root has to be added.
var kernelModes = map[string][]map[string]uint64{
	arch.X86.Name: {x86Mode(1<<5 | 1<<12), x86Mode(1 << 5)}, // CR4.PAE, LA57
}

// x86Mode is long mode with no-execute, as every 64-bit kernel has it.
func x86Mode(cr4 uint64) map[string]uint64 {
	return map[string]uint64{"cr0": 1<<31 | 1, "cr3": 0, "cr4": cr4, "efer_mode": 1<<8 | 1<<10 | 1<<11}
}

// Modes are the values of Machine.Mode worth trying: those of its CPUs that are
// known, then what else the architecture has.
func (m *Machine) Modes() []*arch.Registers {
	var out []*arch.Registers
	formats := make(map[string]bool)
	add := func(r *arch.Registers) {
		f, _, err := m.stage1(&CPU{Regs: r})
		if err == nil && len(f.IndexBits) > 0 && !formats[f.Name] {
			formats[f.Name] = true
			out = append(out, r)
		}
	}
	for _, c := range m.CPUs {
		add(ModeOf(c.Regs))
	}
	for _, values := range kernelModes[m.Arch.Name] {
		mode := arch.NewRegisters(m.Arch)
		for name, v := range values {
			mode.Set(name, v)
		}
		add(mode)
	}
	return out
}

// ModeOf is what registers say of paging, and nothing else.
func ModeOf(r *arch.Registers) *arch.Registers {
	mode := arch.NewRegisters(r.Arch())
	for _, name := range modeRegs[r.Arch().Name] {
		if v, ok := r.Get(name); ok {
			mode.Set(name, v)
		}
	}
	return mode
}

// modeRegs are what stage1 asks for, the root first.
var modeRegs = map[string][]string{arch.X86.Name: {"cr3", "cr0", "cr4", "efer", "efer_mode"}}

// RootRegister is the name of the register that has the root of the page tables.
func (m *Machine) RootRegister() string { return modeRegs[m.Arch.Name][0] }

// SetRoot gives the mode of a machine without registers the kernel's own tables.
func (m *Machine) SetRoot(root uint64) {
	if m.Mode != nil {
		m.Mode.Set(m.RootRegister(), root)
	}
}

// GiveRoot makes a page-table root that the person gave that of all CPUs. Where no CPU
// says in which mode to walk it, that is the first one in which it maps something.
func (m *Machine) GiveRoot(root uint64) error {
	modes := []*arch.Registers{m.Mode}
	if _, err := m.SpaceAt(root); err != nil {
		modes = m.Modes()
	}
	old := m.Mode
	for _, m.Mode = range modes {
		space, err := m.SpaceAt(root)
		if err != nil {
			return err
		}
		if maps(space) {
			m.Root = &root
			return nil
		}
	}
	m.Mode = old
	return fmt.Errorf("no page tables at %#x in %s that map anything", root, m.Name)
}

// maps reports whether an address space has an address that leads to memory.
func maps(s *paging.Space) bool {
	const tries = 64
	n := 0
	for x, err := range s.Ranges(mem.Range{Last: ^uint64(0)}) {
		var b [1]byte
		if err == nil {
			if _, err := s.ReadVirt(b[:], mem.Virt(x.First)); err == nil {
				return true
			}
		}
		if n++; n == tries {
			break
		}
	}
	return false
}
