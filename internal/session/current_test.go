package session_test

import (
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/gdbserver"
)

// After a stop that could not be looked at nothing is shown as of now, and nothing is
// stepped from where the CPU was before; the next question looks again.
func TestFailedLook(t *testing.T) {
	for _, action := range []gdbserver.Action{{PID: -1, TID: -1}, {PID: vm0, TID: 1, Step: true}} {
		s := newSim(1)
		s.enterGuest(0)
		d := s.take(t)
		target := d.Target(nil, nil)
		ctx := t.Context()
		if err := target.Core.Attach(ctx, vm0); err != nil {
			t.Fatal(err)
		}
		set(t, target, vm0, text+0x25)
		s.hook = func() { s.hook, s.lookErr = nil, errInjected }
		if stop, err := target.Resume.Resume(ctx, []gdbserver.Action{action}); err == nil {
			t.Fatalf("stop %+v", stop)
		}
		done := s.cpus[0].done
		r, err := target.Core.Registers(ctx, vm0, 1)
		if err != nil {
			t.Fatal(err)
		}
		_, sp := r.SP()
		if pc, ok := r.PC(); sp || !ok || pc != ^uint64(0) {
			t.Errorf("pc %#x, sp known %v", pc, sp)
		}
		if n, err := target.Core.ReadMemory(ctx, vm0, 1, make([]byte, 8), text); err == nil {
			t.Errorf("%d bytes of memory", n)
		}
		threads, err := target.Core.Threads(ctx, vm0)
		if err != nil || len(threads) != 1 || !strings.Contains(threads[0].Extra, "not known: injected") {
			t.Errorf("threads %+v, %v", threads, err)
		}
		if stop, err := target.Resume.Resume(ctx, []gdbserver.Action{{PID: vm0, TID: 1, Step: true}}); err == nil || s.cpus[0].done != done {
			t.Errorf("stepped: %+v, %d instructions", stop, s.cpus[0].done-done)
		}
		s.lookErr = nil
		if r, err = target.Core.Registers(ctx, vm0, 1); err != nil {
			t.Fatal(err)
		}
		if pc, _ := r.PC(); pc != s.cpus[0].gp || pc == text+0x20 {
			t.Errorf("after that: pc %#x, it is at %#x", pc, s.cpus[0].gp)
		}
	}
}

// What the device state says and the stub does not is told at the stop.
func TestCrossCheck(t *testing.T) {
	for name, c := range map[string]struct {
		lie  func(*arch.Registers)
		want string
	}{
		"they agree": {nil, ""},
		"pc":         {func(r *arch.Registers) { r.Set("rip", text+0x25+1) }, "rip of L1 CPU 0 is "},
		"sp":         {func(r *arch.Registers) { r.Set("rsp", 5) }, "rsp of L1 CPU 0 is "},
		"root":       {func(r *arch.Registers) { r.Set("cr3", 0x5000) }, "cr3 of L1 CPU 0 is "},
		"low half": {func(r *arch.Registers) {
			for _, name := range []string{"rip", "rsp", "cr3"} {
				v, _ := r.Get(name)
				r.Set(name, v&0xffffffff)
			}
		}, ""},
		"another register": {func(r *arch.Registers) { r.Set("rbx", 5) }, ""},
		"unknown":          {func(r *arch.Registers) { r.Forget("rip") }, ""},
	} {
		s := newSim(1)
		s.enterGuest(0)
		d := s.take(t)
		target := d.Target(nil, nil)
		if err := target.Core.Attach(t.Context(), vm0); err != nil {
			t.Fatal(err)
		}
		set(t, target, vm0, text+0x25)
		s.lie = c.lie
		stop, err := target.Resume.Resume(t.Context(), []gdbserver.Action{{PID: -1, TID: -1}})
		if err != nil || (c.want == "") != (stop.Text == "") || !strings.Contains(stop.Text, c.want) {
			t.Errorf("%s: told %q, %v, want %q", name, stop.Text, err, c.want)
		}
	}
}
