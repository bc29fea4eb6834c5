package session

import (
	"fmt"

	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/nested"
)

// Assumptions are what a person says about the machines, and how to search for them.
type Assumptions struct {
	// Hints are control blocks and second stages.
	Hints []Hint
	// Roots are page-table roots, by machine; "" is the one that Session.Machine("") finds.
	Roots map[string]uint64
	// Registers are places where hypervisors keep registers of their guests.
	Registers []SavedRegisters
	// Blind leaves unused what the kernels of hypervisors say of their guests, as if
	// they were not understood.
	Blind bool
	// Progress is told how far a search of memory is; it may be nil.
	Progress nested.Progress
}

// Hint is what a person says of a guest.
type Hint = nested.Hint

// ControlHint says that the control block of a guest, a "VMCB" or "VMCS", is at an address
// of a machine's physical memory. flag is how it was said.
func ControlHint(flag, machine, kind string, at uint64) Hint {
	return Hint{Flag: flag, In: machine, Control: kind, At: mem.Phys(at)}
}

// StageHint says that a guest has a second stage, "npt4:0x1000", with its tables in a
// machine's physical memory.
func StageHint(flag, machine, text string, number func(string) (uint64, error)) (Hint, error) {
	f, root, err := nested.ParseStage(text, number)
	return Hint{Flag: flag, In: machine, Second: f, At: root}, err
}

// Assume sets what is assumed from the next look on. The first look after it fails if a
// hint cannot be true; later ones do without it then, for the machine has run on.
func (s *Session) Assume(a Assumptions) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.assumed, s.checked = a, false
}

// options are those of a search by what is assumed. Preconditions: s.mu is held.
func (s *Session) options(effort Effort) nested.Options {
	opt := nested.Options{Scan: effort == Full, Hints: s.assumed.Hints, Progress: s.assumed.Progress}
	switch {
	case s.assumed.Blind:
	case effort == Quick:
		opt.Kernel = s.hypervisor
	case effort == Full:
		opt.Kernel = func(m *machine.Machine) *linux.Kernel {
			k, _ := s.kernel(m)
			return k
		}
	}
	return opt
}

// check applies the roots that are assumed, and says which assumption cannot be true.
func (s *Session) check(t *machine.Tower) (*machine.Tower, error) {
	s.mu.Lock()
	a, checked := s.assumed, s.checked
	s.checked = true
	s.mu.Unlock()
	for name, root := range a.Roots {
		m, err := s.Machine(name)
		if err == nil {
			err = m.GiveRoot(root)
		}
		if err != nil && !checked {
			return nil, &AssumptionError{fmt.Errorf("--cr3 %#x: %w", root, err)}
		}
	}
	if checked {
		return t, nil
	}
	for _, h := range a.Hints {
		m, err := s.Machine(h.In)
		if err == nil {
			err = nested.CheckHint(m, h, a.Hints)
		}
		if err != nil {
			return nil, &AssumptionError{err}
		}
	}
	return t, nil
}

// AssumptionError is something that a person said and that cannot be true.
type AssumptionError struct{ Err error }

func (e *AssumptionError) Error() string { return e.Err.Error() }

func (e *AssumptionError) Unwrap() error { return e.Err }
