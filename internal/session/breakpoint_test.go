package session_test

import (
	"testing"

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
	if err := d.Interrupt(); err != nil { // too late
		t.Fatal(err)
	}
	s.interrupted = false // as QEMU has it, while it stands
	d.ForgetInterrupt()
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
