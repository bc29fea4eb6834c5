package session

import (
	"errors"
	"slices"

	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
)

// find finds the kernel of a machine. Where its CPUs do not say which layer their
// registers are of, as in a dump, or there are none, the paging mode is found with
// the kernel, by trying, and kept as m.Mode. Memory is searched if the CPUs lead to no
// kernel and search is set.
func find(m *machine.Machine, live *liveMachine, search bool) (*linux.Kernel, error) {
	look := func() (*linux.Kernel, error) {
		src := source(m, live)
		if !search {
			src.Ranges = nil
		}
		return linux.Find(src)
	}
	if m.Mode != nil || !layersUnknown(m) {
		return look()
	}
	var errs []error
	for _, mode := range m.Modes() {
		m.Mode = mode
		k, err := look()
		if err == nil {
			m.SetRoot(uint64(k.Root))
			return k, nil
		}
		errs = append(errs, err)
	}
	m.Mode = nil
	return nil, errors.Join(append(errs, linux.ErrNotFound)...)
}

// layersUnknown reports whether no CPU of QEMU's own machine says what it executes, or
// nothing but the memory of a nested one is known.
func layersUnknown(m *machine.Machine) bool {
	if m.Parent != nil {
		return !slices.ContainsFunc(m.CPUs, func(c *machine.CPU) bool { return c.State != machine.Lost })
	}
	for _, c := range m.CPUs {
		if _, ok := c.Regs.Get("guest_mode"); ok {
			return false
		}
	}
	return true
}
