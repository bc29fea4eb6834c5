package session_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"nestdbg/internal/gdbserver"
	"nestdbg/internal/machine"
	"nestdbg/internal/session"
)

var quiet = slog.New(slog.DiscardHandler)

// where is a stop in one line: machine, CPU, signal and program counter.
func where(s *session.Stop) string {
	if s == nil || s.CPU == nil {
		return "nowhere"
	}
	pc, _ := s.CPU.Regs.PC()
	return fmt.Sprintf("%s.%d signal %d at +%#x", s.Machine.Name, s.CPU.Index, s.Signal, pc-text)
}

func checkStop(t *testing.T, s *session.Stop, err error, want string) {
	t.Helper()
	if err != nil || where(s) != want {
		t.Errorf("stopped %s, %v; want %s", where(s), err, want)
	}
}

const l1, vm0 = 1, 2 // process numbers, in the order of discovery

func set(t *testing.T, target gdbserver.Target, pid int, addr uint64) {
	t.Helper()
	if err := target.Break.Set(t.Context(), pid, gdbserver.SoftwareBreak, addr, 1); err != nil {
		t.Fatal(err)
	}
}

// Both layers pass +0x22; the breakpoint stops only the machine that has it.
func TestBreakpointBelongsToAMachine(t *testing.T) {
	for pid, want := range map[int]string{l1: "l1.0 signal 5 at +0x22", vm0: "vm0.0 signal 5 at +0x22"} {
		s := newSim(1)
		s.jumps["l1"][after+4] = text + 0x20
		s.jumps["l1"][text+0x24] = enter
		s.exits[text+0x26] = -1
		if pid == l1 {
			s.cpus[0].pc = enter // the guest comes first
		} else {
			s.cpus[0].pc = text + 0x20
		}
		d := s.take(t)
		target := d.Target(nil, nil)
		set(t, target, pid, text+0x22)
		stop, err := d.Continue(t.Context())
		checkStop(t, stop, err, want)
		if d.Foreign() != 1 || stop.Trap == nil || stop.Trap.Addr != text+0x22 {
			t.Errorf("%s: %d foreign hits, trap %v", want, d.Foreign(), stop.Trap)
		}
	}
}

func TestManyForeignHits(t *testing.T) {
	s := newSim(1)
	s.enterGuest(0)
	d := s.take(t)
	target := d.Target(nil, nil)
	set(t, target, l1, text+0x22) // the guest's loop passes there, L1 never does
	s.hook = func() {
		if d.Foreign() == 200 {
			s.exits[text+0x30] = 1
			s.jumps["l1"][after] = text + 0x22
		}
	}
	stop, err := d.Continue(t.Context())
	checkStop(t, stop, err, "l1.0 signal 5 at +0x22")
	if d.Foreign() != 200 {
		t.Errorf("%d foreign hits", d.Foreign())
	}
}

func TestInterrupt(t *testing.T) {
	interruptAt := func(s *sim, d *session.Debugger, calls int) {
		s.hook = func() {
			if s.cpus[0].done == calls {
				s.hook = nil
				if err := d.Interrupt(); err != nil {
					t.Error(err)
				}
			}
		}
	}
	t.Run("plain", func(t *testing.T) {
		s := newSim(1)
		s.enterGuest(0)
		d := s.take(t)
		interruptAt(s, d, 5)
		stop, err := d.Continue(t.Context())
		checkStop(t, stop, err, "vm0.0 signal 2 at +0x25")
	})
	t.Run("before it runs", func(t *testing.T) {
		s := newSim(1)
		d := s.take(t)
		if err := d.Interrupt(); err != nil {
			t.Fatal(err)
		}
		stop, err := d.Continue(t.Context())
		checkStop(t, stop, err, "l1.0 signal 2 at +0x200")
	})
	t.Run("while a foreign trap is passed", func(t *testing.T) {
		s := newSim(1)
		s.enterGuest(0)
		d := s.take(t)
		set(t, d.Target(nil, nil), l1, text+0x22)
		s.hook = func() {
			if s.how.Step == 0 {
				s.hook = nil
				if err := d.Interrupt(); err != nil {
					t.Error(err)
				}
			}
		}
		stop, err := d.Continue(t.Context())
		checkStop(t, stop, err, "vm0.0 signal 2 at +0x23")
	})
	t.Run("together with a breakpoint", func(t *testing.T) {
		s := newSim(1)
		s.enterGuest(0)
		d := s.take(t)
		set(t, d.Target(nil, nil), vm0, text+0x20) // it stands there: it is hit at once
		s.how = &session.Resumption{}
		interrupted := false
		s.hook = func() {
			if !interrupted {
				interrupted = true
				// The request comes as the trap fires: the stub tells of the trap.
				if err := d.Interrupt(); err != nil {
					t.Error(err)
				}
				s.interrupted = false
			}
		}
		stop, err := d.Continue(t.Context())
		checkStop(t, stop, err, "vm0.0 signal 5 at +0x20")
	})
}

// gdb removes and inserts its breakpoints around each stop; the stub hears of it
// only when one is really gone.
func TestTrapsAreClearedLazily(t *testing.T) {
	s := newSim(1)
	s.enterGuest(0)
	d := s.take(t)
	target := d.Target(nil, nil)
	set(t, target, vm0, text+0x22)
	set(t, target, vm0, text+0x24)
	set(t, target, l1, text+0x24)
	for _, addr := range []uint64{text + 0x22, text + 0x24} {
		if err := target.Break.Clear(t.Context(), vm0, gdbserver.SoftwareBreak, addr, 1); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.traps) != 2 || s.cleans != 0 {
		t.Errorf("%d traps, %d cleared", len(s.traps), s.cleans)
	}
	set(t, target, vm0, text+0x24)
	stop, err := d.Continue(t.Context())
	checkStop(t, stop, err, "vm0.0 signal 5 at +0x24")
	if len(s.traps) != 1 || s.cleans != 1 {
		t.Errorf("%d traps, %d cleared; one was not wanted any more", len(s.traps), s.cleans)
	}
}

func TestRelease(t *testing.T) {
	for _, running := range []bool{true, false} {
		s := newSim(2)
		s.running = running
		d := s.take(t)
		target := d.Target(nil, nil)
		set(t, target, l1, text+0x22)
		set(t, target, vm0, text+0x24)
		if err := d.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if want := map[bool]string{true: "running", false: "stopped"}[running]; len(s.traps) != 0 || s.closed != want {
			t.Errorf("%d traps, left %s, want %s", len(s.traps), s.closed, want)
		}
		if err := d.Release(t.Context()); err != nil {
			t.Errorf("again: %v", err)
		}
	}
}

// Whatever call of the stub fails, the error is told and no trap that can be
// cleared is left behind.
func TestStubFails(t *testing.T) {
	actions := map[string]func(context.Context, *session.Debugger) error{
		"continue": func(ctx context.Context, d *session.Debugger) error {
			_, err := d.Continue(ctx)
			return err
		},
		"step through an exit": func(ctx context.Context, d *session.Debugger) error {
			m, err := d.Machine("vm0")
			if err != nil {
				return err
			}
			_, err = d.Step(ctx, m, m.CPUs[0], false)
			return err
		},
	}
	for name, act := range actions {
		for n, failed := 0, true; failed; n++ {
			s := newSim(1)
			s.enterGuest(0)
			s.exits[text+0x20] = 1
			s.failAt, s.gone = n, fmt.Errorf("call %d: %w", n, session.ErrGone)
			d := session.NewDebugger(session.New(s), s.open, quiet)
			err := d.Take(t.Context())
			if err == nil {
				err = d.Target(nil, nil).Break.Set(t.Context(), l1, gdbserver.SoftwareBreak, text+0x30, 1)
			}
			if err == nil {
				err = d.Target(nil, nil).Break.Set(t.Context(), vm0, gdbserver.SoftwareBreak, text+0x38, 1)
			}
			if err == nil {
				err = act(t.Context(), d)
			}
			cleared := s.failAt < s.calls // the failure was before the release
			inRelease := !cleared
			err = errors.Join(err, d.Release(t.Context()))
			failed = s.failAt < s.calls
			// The goal's own trap is cleared again later; it is no error that it failed at first.
			if failed && !errors.Is(err, session.ErrGone) && s.cleans == 0 {
				t.Errorf("%s, call %d: error %v", name, n, err)
			}
			if left := len(s.traps); left > 0 && !inRelease {
				t.Errorf("%s, call %d: %d traps left", name, n, left)
			}
			if !failed && (err != nil || len(s.traps) > 0 || n < 8) {
				t.Errorf("%s: %d calls, %v, %d traps", name, n, err, len(s.traps))
			}
		}
	}
}

func cpuOf(t *testing.T, d *session.Debugger, name string, index int) (*machine.Machine, *machine.CPU) {
	t.Helper()
	m, err := d.Machine(name)
	if err != nil {
		t.Fatal(err)
	}
	c, ok := m.CPU(index)
	if !ok {
		t.Fatalf("%s has no CPU %d", name, index)
	}
	return m, c
}

// With scheduler-locking a CPU of L1 runs alone. One of a guest cannot, and that is told.
func TestSchedulerLocking(t *testing.T) {
	for name, c := range map[string]struct {
		actions []gdbserver.Action
		done    [3]int // instructions executed
		note    bool
	}{
		"all":         {[]gdbserver.Action{{PID: -1, TID: -1}}, [3]int{9, 8, 8}, false},
		"of L1":       {[]gdbserver.Action{{PID: l1, TID: -1}}, [3]int{9, 8, 8}, false},
		"one of L1":   {[]gdbserver.Action{{PID: l1, TID: 2}}, [3]int{0, 8, 0}, false},
		"two of L1":   {[]gdbserver.Action{{PID: l1, TID: 2}, {PID: l1, TID: 3}}, [3]int{0, 8, 8}, false},
		"beside one":  {[]gdbserver.Action{{PID: l1, TID: 3, Hold: true}, {PID: l1, TID: 2}}, [3]int{0, 8, 0}, false},
		"one of vm0":  {[]gdbserver.Action{{PID: vm0, TID: 1}}, [3]int{9, 8, 8}, true},
		"one of each": {[]gdbserver.Action{{PID: vm0, TID: 1}, {PID: l1, TID: 2}}, [3]int{9, 8, 8}, true},
	} {
		s := newSim(3)
		s.enterGuest(0)
		d := s.take(t)
		target := d.Target(nil, nil)
		for _, pid := range []int{l1, vm0} {
			if err := target.Core.Attach(t.Context(), pid); err != nil {
				t.Fatal(err)
			}
		}
		set(t, target, l1, text+0x208)
		stop, err := target.Resume.Resume(t.Context(), c.actions)
		if err != nil || stop.PID != l1 || stop.Reason != gdbserver.SwBreak || (stop.Text != "") != c.note {
			t.Errorf("%s: %+v, %v", name, stop, err)
		}
		for i, want := range c.done {
			if got := s.cpus[i].done; got != want {
				t.Errorf("%s: CPU %d executed %d instructions, want %d", name, i, got, want)
			}
		}
	}
}

func TestFrozenCPUsStandStill(t *testing.T) {
	s := newSim(2)
	d := s.take(t)
	target := d.Target(nil, nil)
	if err := target.Core.Attach(t.Context(), l1); err != nil {
		t.Fatal(err)
	}
	set(t, target, l1, text+0x208)
	stop, err := target.Resume.Resume(t.Context(), []gdbserver.Action{{PID: l1, TID: 1, Hold: true}, {PID: -1, TID: -1}})
	if err != nil || stop.PID != l1 || stop.TID != 2 || stop.Reason != gdbserver.SwBreak {
		t.Errorf("%+v, %v", stop, err)
	}
	if s.cpus[0].done != 0 || s.cpus[1].done != 8 {
		t.Errorf("the CPUs executed %d and %d instructions", s.cpus[0].done, s.cpus[1].done)
	}
}
