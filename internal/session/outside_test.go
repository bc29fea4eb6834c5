package session_test

import (
	"strings"
	"testing"

	"nestdbg/internal/gdbserver"
	"nestdbg/internal/session"
)

// A machine that somebody else stops while gdb lets it run is not run before they let
// it. The one who waits is told, can end that, and sees no step that was none.
func TestOutsidePause(t *testing.T) {
	cont := []gdbserver.Action{{PID: -1, TID: -1}}
	step := []gdbserver.Action{{PID: vm0, TID: 1, Step: true}}
	for name, c := range map[string]struct {
		actions []gdbserver.Action
		end     func(s *sim, d *session.Debugger) // how the pause ends
		want    gdbserver.Stop
		done    int // instructions executed
	}{
		"continue": {
			cont, func(s *sim, _ *session.Debugger) { s.paused = false },
			gdbserver.Stop{PID: vm0, TID: 1, Signal: 5, Reason: gdbserver.SwBreak}, 5,
		},
		"continue, and an interrupt": {
			cont, func(s *sim, d *session.Debugger) {
				if err := d.Interrupt(); err != nil {
					t.Error(err)
				}
			},
			gdbserver.Stop{PID: vm0, TID: 1, Signal: 2, Reason: gdbserver.Interrupted}, 3,
		},
		"step": {
			step, func(s *sim, _ *session.Debugger) { s.execute(0); s.paused = false },
			gdbserver.Stop{PID: vm0, TID: 1, Signal: 2}, 1,
		},
		"step, and an interrupt": {
			step, func(s *sim, d *session.Debugger) {
				if err := d.Interrupt(); err != nil {
					t.Error(err)
				}
			},
			gdbserver.Stop{PID: vm0, TID: 1, Signal: 2, Reason: gdbserver.Interrupted}, 0,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSim(1)
			s.enterGuest(0)
			d := s.take(t)
			target := d.Target(nil, nil)
			if err := target.Core.Attach(t.Context(), vm0); err != nil {
				t.Fatal(err)
			}
			set(t, target, vm0, text+0x25)
			s.hook = func() {
				if c.actions[0].Step || s.cpus[0].done == 3 {
					s.hook, s.paused = nil, true
				}
			}
			got, err := target.Resume.Resume(t.Context(), c.actions)
			if err != nil || got.PID != 0 || got.Reason != gdbserver.Interrupted || !strings.Contains(got.Text, "somebody else") {
				t.Fatalf("at first %+v, %v", got, err)
			}
			asked, done := 0, s.cpus[0].done
			s.whilePaused = func() {
				if asked++; s.cpus[0].done != done {
					t.Errorf("it ran while somebody else had it stopped")
				}
				if asked == 3 {
					s.whilePaused = nil
					c.end(s, d)
				}
			}
			got, err = target.Resume.Resume(t.Context(), c.actions)
			if err != nil || got != c.want || s.cpus[0].done != c.done || asked != 3 || s.regained != 1 {
				t.Errorf("then %+v, %v, want %+v; %d instructions, asked %d times, regained %d times",
					got, err, c.want, s.cpus[0].done, asked, s.regained)
			}
		})
	}
}

// Who leaves meanwhile leaves the machine to those who stopped it.
func TestReleaseDuringOutsidePause(t *testing.T) {
	for _, paused := range []bool{true, false} {
		s := newSim(1)
		s.running = true
		d := s.take(t)
		set(t, d.Target(nil, nil), l1, text+0x300)
		s.paused = true
		if stop, err := d.Continue(t.Context()); err != nil || !stop.Outside {
			t.Fatalf("%+v, %v", stop, err)
		}
		s.paused = paused
		err := d.Release(t.Context())
		if want := map[bool]string{true: "stopped", false: "running"}[paused]; err != nil || s.closed != want || len(s.traps) != 0 {
			t.Errorf("left %s, want %s; %d traps, %v", s.closed, want, len(s.traps), err)
		}
	}
}
