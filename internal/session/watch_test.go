package session_test

import (
	"testing"

	"nestdbg/internal/gdbserver"
	"nestdbg/internal/session"
)

const data = text + 0x3000

// Both layers access the same address; a watchpoint stops only the machine that has it,
// for the kind of access that it is for, also when the stub names another's.
func TestWatchpoints(t *testing.T) {
	type watch struct {
		pid  int
		kind gdbserver.BreakKind
	}
	const read, write, access = gdbserver.ReadWatch, gdbserver.WriteWatch, gdbserver.AccessWatch
	// The guest reads at +0x22 and writes at +0x24, and L1 after it has left.
	touches := map[string]map[uint64]touch{
		"vm": {text + 0x22: {session.TrapRead, data}, text + 0x24: {session.TrapWrite, data}},
		"l1": {after + 1: {session.TrapRead, data}, after + 2: {session.TrapWrite, data}},
	}
	for name, c := range map[string]struct {
		watches []watch
		want    string
		kind    session.TrapKind
		foreign int
	}{
		"write":           {[]watch{{vm0, write}}, "vm0.0 signal 5 at +0x25", session.TrapWrite, 0},
		"read":            {[]watch{{vm0, read}}, "vm0.0 signal 5 at +0x23", session.TrapRead, 0},
		"access":          {[]watch{{vm0, access}}, "vm0.0 signal 5 at +0x23", session.TrapAccess, 0},
		"write and read":  {[]watch{{vm0, write}, {vm0, read}}, "vm0.0 signal 5 at +0x23", session.TrapRead, 0},
		"of L1":           {[]watch{{l1, write}}, "l1.0 signal 5 at +0x106", session.TrapWrite, 1},
		"of both":         {[]watch{{l1, read}, {vm0, write}}, "vm0.0 signal 5 at +0x25", session.TrapWrite, 1},
		"named by others": {[]watch{{l1, access}, {vm0, read}}, "vm0.0 signal 5 at +0x23", session.TrapRead, 0},
		"each of its own": {[]watch{{l1, read}, {vm0, access}}, "vm0.0 signal 5 at +0x23", session.TrapAccess, 0},
	} {
		for range 8 { // the order of a map is another each time
			s := newSim(1)
			s.touches = touches
			s.enterGuest(0)
			s.exits[text+0x26] = 1
			d := s.take(t)
			target := d.Target(nil, nil)
			for _, w := range c.watches {
				if err := target.Break.Set(t.Context(), w.pid, w.kind, data, 8); err != nil {
					t.Fatal(err)
				}
			}
			stop, err := d.Continue(t.Context())
			if err != nil || where(stop) != c.want || stop.Trap == nil || stop.Trap.Kind != c.kind || stop.Addr != data || d.Foreign() != c.foreign {
				t.Fatalf("%s: stopped %s, %+v, %v, %d foreign hits; want %s, kind %d, %d foreign hits",
					name, where(stop), stop, err, d.Foreign(), c.want, c.kind, c.foreign)
			}
		}
	}
}

// A CPU that is taken past another machine's breakpoint does its instruction then, and
// with it whatever that causes.
func TestWhatHappensInAStepOver(t *testing.T) {
	for name, c := range map[string]struct {
		pid    int // whose watchpoint the instruction hits
		signal int // with which the machine ends instead
		want   string
	}{
		"its watchpoint":      {vm0, 0, "vm0.0 signal 5 at +0x23"},
		"another watchpoint":  {l1, 0, "vm0.0 signal 5 at +0x28"},
		"the machine's end":   {vm0, 3, "vm0.0 signal 3 at +0x22"},
		"nothing of interest": {0, 0, "vm0.0 signal 5 at +0x28"},
	} {
		s := newSim(1)
		s.touches = map[string]map[uint64]touch{"vm": {text + 0x22: {session.TrapWrite, data}}}
		s.enterGuest(0)
		d := s.take(t)
		target := d.Target(nil, nil)
		set(t, target, l1, text+0x22)
		set(t, target, vm0, text+0x28)
		if c.pid != 0 {
			if err := target.Break.Set(t.Context(), c.pid, gdbserver.WriteWatch, data, 8); err != nil {
				t.Fatal(err)
			}
		}
		s.hook = func() {
			if s.how.Step == 0 {
				s.signal = c.signal
			}
		}
		stop, err := d.Continue(t.Context())
		if err != nil || where(stop) != c.want {
			t.Errorf("%s: stopped %s, %v; want %s", name, where(stop), err, c.want)
		}
	}
}

// The machine ends while a CPU steps: that is no step.
func TestStepMeetsTheEnd(t *testing.T) {
	s := newSim(1)
	s.enterGuest(0)
	d := s.take(t)
	s.signal = 3
	m, c := cpuOf(t, d, "vm0", 0)
	stop, err := d.Step(t.Context(), m, c, false)
	checkStop(t, stop, err, "vm0.0 signal 3 at +0x20")
}
