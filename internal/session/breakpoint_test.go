package session_test

import (
	"testing"

	"nestdbg/internal/gdbserver"
	"nestdbg/internal/session"
)

// A debugger without a gdb: its breakpoints are those of the last list, belong to a
// machine, and are passed when it goes on.
func TestOwnBreakpoints(t *testing.T) {
	s := newSim(1)
	s.jumps["l1"][text+0x205] = text + 0x200
	d := s.take(t)
	l1 := d.Tower().Machines[0]
	at := func(addr ...uint64) (out []session.Breakpoint) {
		for _, a := range addr {
			out = append(out, session.Breakpoint{Machine: l1, Addr: a})
		}
		return out
	}
	if err := d.SetBreakpoints(t.Context(), at(text+0x201, text+0x203)); err != nil {
		t.Fatal(err)
	}
	stop, err := d.Continue(t.Context())
	checkStop(t, stop, err, "l1.0 signal 5 at +0x201")
	stop, err = d.ContinuePast(t.Context(), stop)
	checkStop(t, stop, err, "l1.0 signal 5 at +0x203")
	if err := d.SetBreakpoints(t.Context(), at(text+0x203)); err != nil {
		t.Fatal(err)
	}
	done := s.cpus[0].done
	stop, err = d.ContinuePast(t.Context(), stop)
	checkStop(t, stop, err, "l1.0 signal 5 at +0x203")
	if n := s.cpus[0].done - done; n != 6 || len(s.traps) != 1 {
		t.Errorf("%d instructions, traps %v", n, s.traps)
	}
	s.failAt = s.calls
	if err := d.SetBreakpoints(t.Context(), at(text+0x203, text+0x204)); err == nil {
		t.Error("a breakpoint that the stub refuses is no error")
	}
}

// Somebody else stops the machine, and makes it run: nothing is sent to the stub of one
// that runs, and it is left as he wants it.
func TestFound(t *testing.T) {
	for _, running := range []bool{false, true} {
		s := newSim(1)
		s.running = true
		d := s.take(t)
		if err := d.SetBreakpoints(t.Context(), []session.Breakpoint{{Machine: d.Tower().Machines[0], Addr: text + 0x205}}); err != nil {
			t.Fatal(err)
		}
		target := d.Target(nil, nil)
		set(t, target, l1, text+0x300)
		if err := target.Break.Clear(t.Context(), l1, gdbserver.SoftwareBreak, text+0x300, 1); err != nil { // the stub has it still
			t.Fatal(err)
		}
		d.Found(running)
		if running {
			stop, err := d.Continue(t.Context())
			checkStop(t, stop, err, "l1.0 signal 5 at +0x205")
			if !s.how.Already || s.cleans != 0 {
				t.Errorf("the stub was told to resume, or to clear %d traps", s.cleans)
			}
			d.Found(running)
		}
		before := s.calls
		if err := d.Release(t.Context()); err != nil {
			t.Error(err)
		}
		want := map[bool]string{true: "running", false: "stopped"}[running]
		if s.closed != want || running && (s.calls != before+2 || !s.how.Already) {
			t.Errorf("running %v: left %q, %d calls", running, s.closed, s.calls-before)
		}
	}
}
