package session_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/session"
	"nestdbg/internal/vmx/vmxtest"
)

const (
	text  = uint64(nestedtest.Text)
	stack = text + 0x3f00
	enter = text + 0x100 // L1's VMRUN
	after = enter + 3
)

// sim is a machine with one guest whose CPUs execute a made-up program, as the
// backend and the stub show it. Every instruction has one byte and does nothing,
// except where the maps say otherwise; VMRUN is L1's at enter.
type sim struct {
	w    *nestedtest.World
	cpus []*simCPU

	jumps map[string]map[uint64]uint64 // by layer, "l1" or "vm": where an instruction goes
	exits map[uint64]int               // guest instructions that leave so many times before they are done; -1: always

	// touches are instructions that read (TrapRead) or write (TrapWrite) data, by layer.
	touches map[string]map[uint64]touch

	traps       map[session.Trap]bool
	signal      int  // not 0: the machine ends with this signal
	running     bool // for the backend
	how         *session.Resumption
	interrupted bool
	paused      bool   // somebody else has stopped it
	regained    int    // Regain calls
	closed      string // how the stub was left

	calls  int    // of the stub's methods, except Interrupt
	failAt int    // the call that fails, -1 for none
	gone   error  // what it fails with
	hook   func() // runs before each instruction
	// whilePaused runs when it is asked whether somebody else has stopped the machine.
	whilePaused func()
	lookErr     error                 // of the backend, for what its CPUs do
	lie         func(*arch.Registers) // changes the stub's registers
	writes      []mem.Phys
	cleans      int // ClearTrap calls
}

// touch is an access to data.
type touch struct {
	kind session.TrapKind
	addr uint64
}

type simCPU struct {
	guest  *nestedtest.VCPU // the one it enters, nil if it never does
	ept    *eptCPU          // the one that it enters by VMX instead, or nil
	inside bool
	pc, gp uint64 // in L1, in the guest
	halted bool
	done   int // instructions executed
}

var errInjected = errors.New("injected")

// newSim has CPUs of L1 that run there at +0x200, and a guest CPU for each.
func newSim(cpus int) *sim {
	s := &sim{w: nestedtest.New(), traps: map[session.Trap]bool{}, failAt: -1, gone: errInjected,
		jumps: map[string]map[uint64]uint64{"l1": {text + 0x210: enter, after + 4: enter}, "vm": {text + 0x3f: text + 0x20}},
		exits: map[uint64]int{}}
	s.w.RAM.Put(s.w.TextPhys(enter), []byte{0x0f, 0x01, 0xd8})
	g := s.w.Guest()
	for i := range cpus {
		c := &simCPU{guest: g.CPU(text+0x20, stack), pc: text + 0x200, gp: text + 0x20}
		s.cpus = append(s.cpus, c)
		s.w.Save(i, c.guest, after, stack)
	}
	return s
}

// Of a hypervisor with VMX: VMLAUNCH is at enter, and exits go elsewhere.
const (
	resumes = enter + 8 // VMRESUME
	handler = text + 0x180
)

// eptCPU is a guest's CPU under VMX.
type eptCPU struct {
	*nestedtest.Guest
	control  mem.Phys
	page     []byte // what a processor has of the VMCS there
	launched bool
	refused  bool // its next entry fails at once
}

// newVMXSim is newSim with one CPU and VMX.
func newVMXSim() *sim {
	s := &sim{w: nestedtest.New(), traps: map[session.Trap]bool{}, failAt: -1, gone: errInjected,
		jumps: map[string]map[uint64]uint64{"l1": {text + 0x210: enter, handler + 4: resumes}, "vm": {text + 0x3f: text + 0x20}},
		exits: map[uint64]int{}}
	s.w.RAM.Put(s.w.TextPhys(enter), []byte{0x0f, 0x01, 0xc2})
	s.w.RAM.Put(s.w.TextPhys(resumes), []byte{0x0f, 0x01, 0xc3})
	s.w.RAM.Put(s.w.TextPhys(text+0x3000), []byte{0x0f, 0x01, 0xc3}) // not this hypervisor's
	e := &eptCPU{Guest: s.w.EPTGuest(), control: s.w.Take()}
	s.cpus = []*simCPU{{ept: e, pc: text + 0x200, gp: text + 0x20}}
	e.park(text + 0x20)
	return s
}

func (e *eptCPU) park(pc uint64) {
	e.page = e.VMCS(vmxtest.KVM, pc, handler, nil)
}

// enters reports whether a CPU is at the instruction that enters its guest.
func (c *simCPU) enters() bool {
	if c.ept == nil {
		return c.pc == enter
	}
	return c.pc == enter && !c.ept.launched || c.pc == resumes && c.ept.launched
}

// leaves puts a CPU behind its guest's exit.
func (c *simCPU) leaves() {
	c.inside, c.pc = false, after
	if c.ept == nil {
		c.guest.Park(c.gp, stack, nil)
	} else {
		c.ept.park(c.gp)
		c.pc = handler
	}
}

// enterGuest puts a CPU into its guest.
func (s *sim) enterGuest(cpu int) {
	if e := s.cpus[cpu].ept; e != nil {
		s.cpus[cpu].inside, e.launched = true, true
		return
	}
	s.w.Save(cpu, s.cpus[cpu].guest, after, stack)
	s.cpus[cpu].inside = true
}

func (c *simCPU) layer() string {
	if c.inside {
		return "vm"
	}
	return "l1"
}

func (c *simCPU) at() uint64 {
	if c.inside {
		return c.gp
	}
	return c.pc
}

// execute does one instruction of a CPU.
func (s *sim) execute(i int) {
	c := s.cpus[i]
	c.done++
	switch next, jump := s.jumps[c.layer()][c.at()]; {
	case !c.inside && c.enters() && c.ept != nil && c.ept.refused:
		c.pc += 3
	case !c.inside && c.enters():
		s.enterGuest(i)
	case c.inside && s.exits[c.gp] != 0:
		s.exits[c.gp]--
		c.leaves()
	case jump && c.inside:
		c.gp = next
	case jump:
		c.pc = next
	case c.inside:
		c.gp++
	default:
		c.pc++
	}
}

// The backend.

func (s *sim) Arch() *arch.Arch                      { return arch.X86 }
func (s *sim) Memory() machine.PhysMemory            { return s.w.RAM }
func (s *sim) Running(context.Context) (bool, error) { return s.running, nil }
func (s *sim) CPUs(context.Context) ([]*arch.Registers, error) {
	if s.lookErr != nil {
		return nil, s.lookErr
	}
	var out []*arch.Registers
	for i, c := range s.cpus {
		if c.ept != nil {
			out = append(out, c.ept.UnderVMX(c.inside, c.ept.control, c.ept.page, c.at()))
			continue
		}
		r := s.w.Host(i, c.pc, stack)
		if c.inside {
			r = c.guest.Running(i, c.gp, stack)
		}
		r.Set("rax", uint64(c.guest.Control))
		r.Set("vm_vmcb", uint64(c.guest.Control))
		if c.halted {
			r.Set("halted", 1)
		}
		out = append(out, r)
	}
	return out, nil
}

// The stub.

func (s *sim) open(context.Context) (session.Stub, error) { return s, s.call() }

func (s *sim) call() error {
	s.calls++
	if s.calls-1 == s.failAt {
		return s.gone
	}
	return nil
}

func (s *sim) WritePhys(_ context.Context, a mem.Phys, p []byte) error {
	if err := s.call(); err != nil {
		return err
	}
	s.writes = append(s.writes, a)
	s.w.RAM.Put(a, p)
	return nil
}

// Registers are the backend's, unless lie makes others of them.
func (s *sim) Registers(ctx context.Context, cpu int) (*arch.Registers, error) {
	all, err := s.CPUs(ctx)
	if err != nil {
		return nil, err
	}
	if s.lie != nil {
		s.lie(all[cpu])
	}
	return all[cpu], nil
}

func (s *sim) WriteRegister(_ context.Context, cpu, _ int, _ []byte) error { return s.call() }

func (s *sim) SetTrap(_ context.Context, t session.Trap) error {
	if s.traps[t] {
		return fmt.Errorf("%v is there already", t)
	}
	if err := s.call(); err != nil {
		return err
	}
	s.traps[t] = true
	return nil
}

func (s *sim) ClearTrap(_ context.Context, t session.Trap) error {
	if !s.traps[t] {
		return fmt.Errorf("%v is not there", t)
	}
	s.cleans++
	if err := s.call(); err != nil {
		return err
	}
	delete(s.traps, t)
	return nil
}

func (s *sim) Resume(_ context.Context, how session.Resumption) error {
	if err := s.call(); err != nil {
		return err
	}
	s.how = &how
	return nil
}

// limit is when a program that stops nowhere is a bug of the test.
const limit = 100000

// Wait runs the machine, one instruction of each CPU after the other.
func (s *sim) Wait(context.Context) (session.Event, error) {
	if err := s.call(); err != nil {
		return session.Event{}, err
	}
	how := *s.how
	for range limit {
		for i, c := range s.cpus {
			if s.hook != nil {
				s.hook()
			}
			if s.interrupted && how.Step < 0 || s.paused {
				s.interrupted = false
				return session.Event{CPU: i, Signal: 2}, nil
			}
			if slices.Contains(how.Frozen, i) || c.halted || how.Step >= 0 && how.Step != i && !how.Others {
				continue
			}
			if s.signal != 0 {
				return session.Event{CPU: i, Signal: s.signal}, nil
			}
			for t := range s.traps {
				if how.Step != i && t.Addr == c.at() && t.Kind <= session.TrapHardware {
					return session.Event{CPU: i, Signal: 5}, nil
				}
			}
			access, touches := s.touches[c.layer()][c.at()]
			s.execute(i)
			if ev, hit := s.watched(access); touches && hit {
				ev.CPU = i
				return ev, nil
			}
			if how.Step == i {
				return session.Event{CPU: i, Signal: 5}, nil
			}
		}
	}
	return session.Event{}, errors.New("the machine runs for ever")
}

// watched is the stub's event for an access: it names one of the watchpoints.
func (s *sim) watched(a touch) (session.Event, bool) {
	kinds := []session.TrapKind{session.TrapAccess, a.kind}
	for _, kind := range kinds {
		for t := range s.traps {
			if t.Kind == kind && a.addr-t.Addr < uint64(t.Size) {
				return session.Event{Signal: 5, Watch: kind, Addr: a.addr}, true
			}
		}
	}
	return session.Event{}, false
}

func (s *sim) Interrupt() error {
	s.interrupted = true
	return nil
}

func (s *sim) Paused(context.Context) (bool, error) {
	if s.whilePaused != nil {
		s.whilePaused()
	}
	return s.paused, s.call()
}

func (s *sim) Regain(context.Context) error {
	s.regained++
	return s.call()
}

func (s *sim) Close(_ context.Context, run bool) error {
	s.closed = map[bool]string{true: "running", false: "stopped"}[run]
	return s.call()
}

// take gives a debugger that has control of the machine.
func (s *sim) take(t *testing.T) *session.Debugger {
	t.Helper()
	d := session.NewDebugger(session.New(s), s.open, quiet)
	if err := d.Take(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}
