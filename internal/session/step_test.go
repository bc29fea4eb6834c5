package session_test

import (
	"strings"
	"testing"

	"nestdbg/internal/gdbserver"
	"nestdbg/internal/session"
)

// stepOnce steps a CPU and checks where it is then, and that the stub is clean.
func stepOnce(t *testing.T, s *sim, d *session.Debugger, name string, index int, want string) {
	t.Helper()
	m, c := cpuOf(t, d, name, index)
	stop, err := d.Step(t.Context(), m, c, false)
	checkStop(t, stop, err, want)
	if len(s.traps) != 0 {
		t.Errorf("traps left: %v", s.traps)
	}
}

func TestStep(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(s *sim)
		machine string
		want    []string
	}{
		"in L1": {func(*sim) {}, "l1", []string{"l1.0 signal 5 at +0x201", "l1.0 signal 5 at +0x202"}},
		"in a guest": {
			func(s *sim) { s.enterGuest(0) }, "vm0", []string{"vm0.0 signal 5 at +0x21", "vm0.0 signal 5 at +0x22"},
		},
		"through an exit": {
			func(s *sim) { s.enterGuest(0); s.exits[text+0x21] = 1 }, "vm0",
			[]string{"vm0.0 signal 5 at +0x21", "vm0.0 signal 5 at +0x22", "vm0.0 signal 5 at +0x23"},
		},
		"through several exits": {
			func(s *sim) { s.enterGuest(0); s.exits[text+0x20] = 5 }, "vm0", []string{"vm0.0 signal 5 at +0x21"},
		},
		"a parked CPU": {
			func(s *sim) { s.cpus[0].pc = after }, "vm0", []string{"vm0.0 signal 5 at +0x21"},
		},
		"a hypervisor whose guest runs": {
			func(s *sim) { s.enterGuest(0); s.exits[text+0x28] = 1 }, "l1",
			[]string{"l1.0 signal 5 at +0x103", "l1.0 signal 5 at +0x104"},
		},
		"over a VM entry": {
			func(s *sim) { s.cpus[0].pc = enter - 1; s.exits[text+0x28] = 1 }, "l1",
			[]string{"l1.0 signal 5 at +0xff", "l1.0 signal 5 at +0x100", "l1.0 signal 5 at +0x103"}[1:],
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSim(1)
			c.prepare(s)
			d := s.take(t)
			for _, want := range c.want {
				stepOnce(t, s, d, c.machine, 0, want)
			}
		})
	}
}

// Under VMX an exit goes to an address that need not be behind an entry instruction, of
// which there are two.
func TestStepVMX(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(s *sim)
		machine string
		want    []string
	}{
		"in a guest": {
			func(s *sim) { s.enterGuest(0) }, "vm0", []string{"vm0.0 signal 5 at +0x21", "vm0.0 signal 5 at +0x22"},
		},
		"through an exit": {
			func(s *sim) { s.enterGuest(0); s.exits[text+0x21] = 1 }, "vm0",
			[]string{"vm0.0 signal 5 at +0x21", "vm0.0 signal 5 at +0x22", "vm0.0 signal 5 at +0x23"},
		},
		"through several exits": {
			func(s *sim) { s.enterGuest(0); s.exits[text+0x20] = 5 }, "vm0", []string{"vm0.0 signal 5 at +0x21"},
		},
		"a parked CPU that was never launched": {func(*sim) {}, "vm0", []string{"vm0.0 signal 5 at +0x21"}},
		"a parked CPU": {
			func(s *sim) { s.cpus[0].pc, s.cpus[0].ept.launched = handler, true }, "vm0", []string{"vm0.0 signal 5 at +0x21"},
		},
		"a hypervisor whose guest runs": {
			func(s *sim) { s.enterGuest(0); s.exits[text+0x28] = 1 }, "l1",
			[]string{"l1.0 signal 5 at +0x180", "l1.0 signal 5 at +0x181"},
		},
		"over VMLAUNCH": {func(s *sim) { s.cpus[0].pc = enter; s.exits[text+0x28] = 1 }, "l1", []string{"l1.0 signal 5 at +0x180"}},
		"over VMRESUME": {
			func(s *sim) { s.cpus[0].pc, s.cpus[0].ept.launched = resumes, true; s.exits[text+0x28] = 1 }, "l1",
			[]string{"l1.0 signal 5 at +0x180"},
		},
		"over an entry that fails": {
			func(s *sim) { s.cpus[0].pc, s.cpus[0].ept.refused = enter, true }, "l1",
			[]string{"l1.0 signal 5 at +0x103", "l1.0 signal 5 at +0x104"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newVMXSim()
			c.prepare(s)
			d := s.take(t)
			for _, want := range c.want {
				stepOnce(t, s, d, c.machine, 0, want)
			}
		})
	}
}

// A halted CPU is woken by an interrupt, whose handler passes the place behind
// the HLT with another stack pointer; here it just wakes up.
func TestStepOfAHaltedCPU(t *testing.T) {
	s := newSim(1)
	s.enterGuest(0)
	s.cpus[0].halted = true
	d := s.take(t)
	calls := 0
	s.hook = func() {
		if calls++; calls == 50 {
			s.cpus[0].halted = false
		}
	}
	stepOnce(t, s, d, "vm0", 0, "vm0.0 signal 5 at +0x20")
}

func TestStepIsNotFollowedForEver(t *testing.T) {
	s := newSim(1)
	s.enterGuest(0)
	s.exits[text+0x20] = -1
	d := s.take(t)
	m, c := cpuOf(t, d, "vm0", 0)
	stop, err := d.Step(t.Context(), m, c, false)
	if stop != nil || err == nil || !strings.Contains(err.Error(), "left its layer 256 times") {
		t.Errorf("stopped %s, %v", where(stop), err)
	}
	if len(s.traps) != 0 {
		t.Errorf("traps left: %v", s.traps)
	}
}

// A breakpoint of L1 that the step passes on its way through the hypervisor is
// told; the step can be asked for again.
func TestStepMeetsABreakpoint(t *testing.T) {
	s := newSim(1)
	s.enterGuest(0)
	s.exits[text+0x20] = 1
	d := s.take(t)
	set(t, d.Target(nil, nil), l1, after+2)
	m, c := cpuOf(t, d, "vm0", 0)
	stop, err := d.Step(t.Context(), m, c, false)
	checkStop(t, stop, err, "l1.0 signal 5 at +0x105")
	if err := d.Target(nil, nil).Break.Clear(t.Context(), l1, gdbserver.SoftwareBreak, after+2, 1); err != nil {
		t.Fatal(err)
	}
	stepOnce(t, s, d, "vm0", 0, "vm0.0 signal 5 at +0x21")
}

// The others run now and then while one CPU steps, if that is asked for.
func TestStepWithOthers(t *testing.T) {
	for _, others := range []bool{false, true} {
		s := newSim(2)
		s.jumps["l1"][text+0x208] = text + 0x200 // and never into a guest
		d := s.take(t)
		ran := 0
		for range 48 {
			before := s.cpus[0].done
			m, c := cpuOf(t, d, "l1", 1)
			if _, err := d.Step(t.Context(), m, c, others); err != nil {
				t.Fatal(err)
			}
			if s.cpus[0].done > before {
				ran++
			}
		}
		if want := map[bool]int{true: 3}[others]; ran != want {
			t.Errorf("others %v: CPU 0 ran in %d of 48 steps, want %d", others, ran, want)
		}
	}
}

func TestThousandSteps(t *testing.T) {
	s := newSim(1)
	s.enterGuest(0)
	last := uint64(0)
	s.hook = func() { // every third instruction of the guest leaves once
		if c := s.cpus[0]; c.inside && c.gp != last {
			last = c.gp
			if c.gp%3 == 0 {
				s.exits[c.gp] = 1
			}
		}
	}
	d := s.take(t)
	for i := range 300 {
		m, c := cpuOf(t, d, "vm0", 0)
		stop, err := d.Step(t.Context(), m, c, false)
		want := text + 0x20 + uint64(i+1)%0x20
		if err != nil || stop.Machine.Name != "vm0" {
			t.Fatalf("step %d: %s, %v", i, where(stop), err)
		}
		if pc, _ := stop.CPU.Regs.PC(); pc != want {
			t.Fatalf("step %d: at %#x, want %#x", i, pc, want)
		}
	}
}
