package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"nestdbg/internal/mem"
)

func TestStubBusy(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"unix", "tcp", "chardev"} {
		t.Run(name, func(t *testing.T) {
			q := start(t, append([]string{"-M", "q35", "-m", "32M"}, stubs()[name]...)...)
			m := q.open(t)
			if m.Info().Stub.IsZero() {
				t.Fatal("no stub found")
			}
			if err := m.CheckStub(deadline(t, 5*time.Second)); err != nil {
				t.Errorf("a free stub: %v", err)
			}
			c, err := m.Info().Stub.dial(deadline(t, 5*time.Second))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			checkBusy(t, func() error {
				_, err := m.OpenStub(deadline(t, 10*time.Second))
				return err
			})
			checkBusy(t, func() error { return m.CheckStub(deadline(t, 10*time.Second)) })
		})
	}
}

// checkBusy expects an error that names this very process, and soon.
func checkBusy(t *testing.T, f func() error) {
	t.Helper()
	begin := time.Now()
	err := f()
	var busy *BusyError
	// A test beside this one may be starting a program: until that runs, the new
	// process has what this one has.
	isUs := func(h Holder) bool { return h.PID == os.Getpid() }
	if !errors.As(err, &busy) || !slices.ContainsFunc(busy.Holders, isUs) {
		t.Errorf("error %v", err)
	}
	if d := time.Since(begin); d > greetingTime+2*time.Second {
		t.Errorf("took %v", d)
	}
}

// TestStubOfAnotherDebugger: while one lives the stub is his; when he dies, neither
// his stub nor his breakpoints are in the way.
func TestStubOfAnotherDebugger(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"ours", "unix"} {
		m := start(t, append([]string{"-M", "q35", "-m", "32M"}, stubs()[name]...)...).open(t)
		ctx := deadline(t, 30*time.Second)
		first := openStub(t, m)
		if err := first.SetBreak(ctx, BreakSoftware, biosEntry, 1); err != nil {
			t.Fatal(err)
		}
		checkBusy(t, func() error { _, err := m.OpenStub(ctx); return err })
		first.c.conn.Close() // it dies, which QEMU notices a little later
		for m.CheckStub(ctx) != nil && ctx.Err() == nil {
		}
		second := openStub(t, m)
		if err := second.Continue(ctx); err != nil {
			t.Fatal(err)
		}
		if stop, err := second.Wait(deadline(t, 100*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: stop %+v, %v", name, stop, err)
		}
		if err := second.Close(ctx); err != nil {
			t.Error(err)
		}
		checkRunning(t, m, false)
	}
}

// TestStubIsClosed: somebody closes the stub in QEMU's monitor. What was set through
// it is taken back all the same, and the machine runs or stands as it should.
func TestStubIsClosed(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(*Stub, context.Context) error{"ours": (*Stub).Detach, "unix": (*Stub).CloseStopped} {
		m := start(t, append([]string{"-M", "q35", "-m", "32M"}, stubs()[name]...)...).open(t)
		ctx := deadline(t, 30*time.Second)
		s := openStub(t, m)
		found := s.stepFound
		if err := s.SetBreak(ctx, BreakSoftware, biosEntry, 1); err != nil {
			t.Fatal(err)
		}
		if err := s.SetStepMask(ctx, 1); err != nil {
			t.Fatal(err)
		}
		if _, err := m.HMP(ctx, "gdbserver none"); err != nil {
			t.Fatal(err)
		}
		if err := leave(s, ctx); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		checkRunning(t, m, name == "ours")
		again := openStub(t, m)
		if again.stepFound != found {
			t.Errorf("%s: step mask %#x was left, found %#x", name, again.stepFound, found)
		}
		if err := again.CloseStopped(ctx); err != nil {
			t.Error(err)
		}
	}
}

func TestMonitorBusy(t *testing.T) {
	t.Parallel()
	q := start(t, "-M", "q35", "-m", "32M")
	target, err := Find(deadline(t, 5*time.Second), q.qmp)
	if err != nil || target.PID != q.cmd.Process.Pid {
		t.Fatalf("found %+v, %v", target, err)
	}
	c, err := target.QMP.dial(deadline(t, 5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	checkBusy(t, func() error { _, err := Open(deadline(t, 20*time.Second), target); return err })
	time.AfterFunc(300*time.Millisecond, func() { c.Close() })
	m, err := Open(deadline(t, 20*time.Second), target)
	if err != nil {
		t.Fatalf("after the other left: %v", err)
	}
	m.Close()
}

func TestGone(t *testing.T) {
	t.Parallel()
	checks := map[string]func(t *testing.T, q *live, m *Machine, s *Stub) error{
		"RAM": func(t *testing.T, q *live, m *Machine, s *Stub) error {
			_, err := m.RAM().ReadPhys(make([]byte, 8), 0x1000)
			return err
		},
		"HMP": func(t *testing.T, q *live, m *Machine, s *Stub) error {
			_, err := m.HMP(t.Context(), "info version")
			return err
		},
		"state": func(t *testing.T, q *live, m *Machine, s *Stub) error {
			_, err := m.DeviceState(t.Context())
			return err
		},
		"registers": func(t *testing.T, q *live, m *Machine, s *Stub) error {
			_, err := s.Registers(t.Context(), 0)
			return err
		},
		"wait":        func(t *testing.T, q *live, m *Machine, s *Stub) error { _, err := s.Wait(t.Context()); return err },
		"stub open":   func(t *testing.T, q *live, m *Machine, s *Stub) error { _, err := m.OpenStub(t.Context()); return err },
		"stub detach": func(t *testing.T, q *live, m *Machine, s *Stub) error { return s.Detach(t.Context()) },
	}
	for name, check := range checks {
		t.Run(name, func(t *testing.T) {
			q := start(t, "-M", "q35", "-m", "32M")
			m := q.open(t)
			s := openStub(t, m)
			if name == "wait" {
				if err := s.Continue(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if name == "HMP" { // in the middle of a connection
				m.HMP(t.Context(), "info version")
			}
			q.cmd.Process.Kill()
			begin := time.Now()
			if name == "RAM" {
				q.cmd.Wait()
			}
			err := check(t, q, m, s)
			if !errors.Is(err, ErrGone) || errors.Is(err, mem.ErrFault) {
				t.Errorf("error %v", err)
			}
			if d := time.Since(begin); d > 2*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

// TestStoppedProcess: a QEMU that somebody stopped does not hang us.
func TestStoppedProcess(t *testing.T) {
	t.Parallel()
	q := start(t, "-M", "q35", "-m", "32M")
	m := q.open(t)
	time.Sleep(2 * idleTime)
	exec.Command("kill", "-STOP", fmt.Sprint(q.cmd.Process.Pid)).Run()
	_, err := m.HMP(deadline(t, 3*time.Second), "info version")
	if err == nil || errors.Is(err, ErrGone) {
		t.Errorf("error %v", err)
	}
	exec.Command("kill", "-CONT", fmt.Sprint(q.cmd.Process.Pid)).Run()
	if _, err := m.HMP(deadline(t, 10*time.Second), "info version"); err != nil {
		t.Errorf("after it goes on: %v", err)
	}
}

// TestStubOpenIsGivenUp: whenever the time is up while a stub is opened, the machine
// runs on and no stub is left.
func TestStubOpenIsGivenUp(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"ours", "unix"} {
		t.Run(name, func(t *testing.T) {
			m := start(t, append([]string{"-M", "q35", "-m", "32M"}, stubs()[name]...)...).open(t)
			ctx := deadline(t, time.Minute)
			if err := m.ContMachine(ctx); err != nil {
				t.Fatal(err)
			}
			failed := 0
			for limit := 100 * time.Microsecond; ; limit += limit / 8 {
				s, err := m.OpenStub(deadline(t, limit))
				if err == nil {
					if err := s.Close(ctx); err != nil {
						t.Error(err)
					}
					break
				}
				failed++
				checkRunning(t, m, true)
				if devices, err := m.HMP(ctx, "info chardev"); err != nil || strings.Contains(devices, ownStub) {
					t.Errorf("after %v: left is %s, %v", limit, devices, err)
				}
			}
			if failed < 5 {
				t.Errorf("given up %d times only", failed)
			}
		})
	}
}
