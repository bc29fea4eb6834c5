package session

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"nestdbg/internal/arch"
	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/nested"
)

// Session looks at one machine and everything nested in it.
type Session struct {
	backend Backend

	mu      sync.Mutex
	finder  nested.Finder            // guarded by mu
	tower   *machine.Tower           // of the last look; guarded by mu
	running bool                     // whether the machine ran then; guarded by mu
	fulls   int                      // how many full looks there were; guarded by mu
	kernels map[string]*kernelResult // by machine name; guarded by mu
	assumed Assumptions              // guarded by mu
	checked bool                     // whether a look has used assumed; guarded by mu
	lives   map[string]*liveMachine  // by machine name; guarded by mu
	numbers map[string]int           // process numbers by machine name; guarded by mu

	expected   atomic.Pointer[nested.Deliveries] // for the stop that is expected
	deliveries *nested.Deliveries                // to look at before a stop; nil: not known; guarded by mu
	harmless   bool                              // the backend's stops hurt nobody; guarded by mu
}

type kernelResult struct {
	fulls  int // of the search: what was not there is searched again after a full look only
	kernel *linux.Kernel
	err    error
	// mode is the paging mode in which it was found, where the CPUs do not tell.
	mode *arch.Registers
	// hypervisor is set once the machine had guests.
	hypervisor bool
}

// New returns a session that has not looked yet.
func New(b Backend) *Session {
	s := &Session{
		backend: b,
		kernels: make(map[string]*kernelResult),
		lives:   make(map[string]*liveMachine),
		numbers: make(map[string]int),
	}
	if p, ok := b.(Peeker); ok {
		p.BeforeStop(s.awaitExpected)
	}
	return s
}

// Effort says how much a look may cost.
type Effort int

// Glance uses what the CPUs say and what was known before (about 1 ms): right
// for machines that executed one instruction since. Quick asks the hypervisors
// that were found before, too. Full looks for kernels and hypervisors, and if
// there are none that are understood it searches memory (tens of ms, the first
// time more).
const (
	Glance Effort = iota
	Quick
	Full
)

// Look takes the state of every CPU and builds the tower. What it returns
// describes that moment; memory read through it is the memory of now.
func (s *Session) Look(ctx context.Context, effort Effort) (*machine.Tower, error) {
	running, err := s.backend.Running(ctx)
	if err != nil {
		return nil, err
	}
	return s.look(ctx, effort, running)
}

// look is Look when it is known whether the machine runs.
func (s *Session) look(ctx context.Context, effort Effort, running bool) (*machine.Tower, error) {
	if running {
		s.ExpectStop(ctx)
	}
	cpus, err := s.backend.CPUs(ctx)
	if err != nil {
		return nil, err
	}
	t, err := s.check(s.build(cpus, effort, running))
	if err == nil {
		s.keep(t)
	}
	return t, err
}

// build makes the tower from the registers of QEMU's machine.
func (s *Session) build(cpus []*arch.Registers, effort Effort, running bool) *machine.Tower {
	root := s.root(cpus)
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.kernels[root.Name]; r != nil && layersUnknown(root) {
		root.Mode = r.mode
	}
	if effort == Full {
		s.fulls++
	}
	s.running = running
	s.tower = s.finder.Build(root, s.options(effort))
	s.deliveries = nested.NewDeliveries(root, cpus, s.tower)
	for _, m := range s.tower.Machines {
		s.live(m)
		if r := s.kernels[m.Name]; r != nil && m.Parent != nil && leftBehind(m) {
			m.Mode = r.mode
		}
		if m.Parent != nil && s.kernels[m.Parent.Name] != nil {
			s.kernels[m.Parent.Name].hypervisor = true
		}
		if s.numbers[m.Name] == 0 {
			s.numbers[m.Name] = len(s.numbers) + 1
		}
	}
	return s.tower
}

// Tower is what the last look found, nil before the first.
func (s *Session) Tower() *machine.Tower {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tower
}

// Running says whether the machine ran when it was last looked at: then what a
// report says was true at one moment only.
func (s *Session) Running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running
}

// Number is a machine's number for gdb: 1 for QEMU's own, then in the order in
// which they were found. A number is never given twice.
func (s *Session) Number(m *machine.Machine) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.numbers[m.Name]
}

// UnknownMachineError names a machine that is not there, and those that are.
type UnknownMachineError struct {
	Name  string
	Known []string
}

func (e *UnknownMachineError) Error() string {
	if e.Name == "" {
		return fmt.Sprintf("several machines, say which with -m: %s", strings.Join(e.Known, ", "))
	}
	return fmt.Sprintf("no machine %q; there are: %s", e.Name, strings.Join(e.Known, ", "))
}

// Machine resolves a name given by a person. The empty name means the only
// nested machine, or QEMU's own if there is none.
func (s *Session) Machine(name string) (*machine.Machine, error) {
	t := s.Tower()
	if t == nil {
		return nil, errors.New("nothing was looked at yet")
	}
	if name == "" {
		switch len(t.Machines) {
		case 1:
			return t.Machines[0], nil
		case 2:
			return t.Machines[1], nil
		}
	}
	if m, ok := t.Machine(name); ok {
		return m, nil
	}
	e := &UnknownMachineError{Name: name}
	for _, m := range t.Machines {
		e.Known = append(e.Known, m.Name)
	}
	return nil, e
}

// Kernel is the Linux that runs in m. It is searched once and kept while it
// stays where it is; linux.ErrNotFound if there is none.
func (s *Session) Kernel(m *machine.Machine) (*linux.Kernel, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kernel(m)
}

// Preconditions: s.mu is held.
func (s *Session) kernel(m *machine.Machine) (*linux.Kernel, error) {
	live := s.live(m)
	if r := s.kernels[m.Name]; r != nil && (r.err != nil && r.fulls == s.fulls || r.err == nil && runs(r.kernel, m)) {
		if r.mode != nil && m.Mode == nil && layersUnknown(m) {
			m.Mode = r.mode
		}
		return r.kernel, r.err
	}
	k, err := find(m, live, true)
	s.kernels[m.Name] = &kernelResult{fulls: s.fulls, kernel: k, err: err, mode: m.Mode}
	return k, err
}

// runs reports whether a kernel found earlier is still m's: the machine may have
// been rebooted since.
func runs(k *linux.Kernel, m *machine.Machine) bool {
	var cpus []*arch.Registers
	for _, c := range m.CPUs {
		cpus = append(cpus, c.Regs)
	}
	return k.Runs(cpus)
}

// hypervisor is the kernel of a machine that had guests at the last full look.
// Preconditions: s.mu is held.
func (s *Session) hypervisor(m *machine.Machine) *linux.Kernel {
	r := s.kernels[m.Name]
	if r == nil || r.err != nil || !r.hypervisor {
		return nil
	}
	if s.live(m); !runs(r.kernel, m) {
		return nil
	}
	return r.kernel
}

// live returns the lasting view of m's memory and points it at this m.
// Preconditions: s.mu is held.
func (s *Session) live(m *machine.Machine) *liveMachine {
	l := s.lives[m.Name]
	if l == nil {
		l = &liveMachine{}
		s.lives[m.Name] = l
	}
	l.current.Store(m)
	return l
}

// source is what package linux may see of m. It reads through the newest m, so
// a kernel found once stays readable as the machine runs on.
func source(m *machine.Machine, live *liveMachine) linux.Source {
	ranges := m.Phys.PhysRanges
	if p, ok := m.Phys.(nested.PopulatedRanger); ok {
		ranges = p.PopulatedRanges
	}
	var cpus []*arch.Registers
	for _, c := range m.CPUs {
		cpus = append(cpus, c.Regs)
	}
	return linux.Source{
		Arch: m.Arch, Phys: live, Ranges: ranges, CPUs: cpus,
		Space: func(root mem.Phys) (linux.AddressSpace, error) {
			if _, err := m.SpaceAt(uint64(root)); err != nil {
				return nil, err
			}
			return &liveSpace{live: live, root: uint64(root)}, nil
		},
	}
}

// ByName orders machines for lists.
func ByName(a, b *machine.Machine) int { return cmp.Compare(a.Name, b.Name) }

// Names lists the machines of the last look.
func (s *Session) Names() []string {
	var out []string
	for _, m := range s.Tower().Machines {
		out = append(out, m.Name)
	}
	slices.Sort(out)
	return out
}
