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
	old := leftBehind(m)
	if m.Mode != nil || !layersUnknown(m) && !old {
		return look()
	}
	if old {
		if k, err := look(); err == nil {
			return k, nil
		}
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

// leftBehind reports whether the registers of a nested machine's CPUs are those of its last
// exit, and it may have run since: of a file without registers. A guest that exits
// seldom may have changed its paging mode, and has changed its tables.
func leftBehind(m *machine.Machine) bool {
	if m.Parent == nil || len(m.CPUs) == 0 {
		return false
	}
	root := m
	for root.Parent != nil {
		root = root.Parent
	}
	runs := func(c *machine.CPU) bool { return c.On >= 0 }
	return !slices.ContainsFunc(m.CPUs, runs) && !slices.ContainsFunc(root.CPUs, runs)
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
