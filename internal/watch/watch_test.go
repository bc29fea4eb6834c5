package watch

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nestdbg/internal/linux"
)

var all = []Class{Crash, Reset, Shutdown, Hang}

func TestParseClasses(t *testing.T) {
	if got, err := ParseClasses("crash,reset,shutdown,hang"); err != nil || !slices.Equal(got, all) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "crash,", "Crash", "panic"} {
		if got, err := ParseClasses(bad); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

// story tells a watcher what happens and notes the incidents, as "class machine".
type story struct {
	t    *testing.T
	w    *Watcher
	now  time.Time
	got  []string
	last Incident
}

func newStory(t *testing.T, classes ...Class) *story {
	return &story{t: t, w: New(Options{Classes: classes, HangAfter: 30 * time.Second}), now: time.Unix(1e9, 0)}
}

func (s *story) note(list []Incident) {
	for _, i := range list {
		if i.What == "" || strings.Contains(i.What, "\n") {
			s.t.Errorf("%+v", i)
		}
		s.got = append(s.got, i.Class.String()+" "+i.Machine)
		s.last = i
	}
}

func (s *story) log(machine string, fresh bool, lines ...string) {
	var records []linux.LogRecord
	for _, line := range lines {
		records = append(records, linux.LogRecord{Text: line})
	}
	s.note(s.w.Log(machine, records, fresh))
}

// at is a look after some seconds.
func (s *story) at(seconds int, seen ...Machine) {
	s.now = s.now.Add(time.Duration(seconds) * time.Second)
	s.note(s.w.Look(s.now, true, seen))
}

func (s *story) event(name, data string) { s.note(s.w.Event(name, json.RawMessage(data))) }

func (s *story) want(want ...string) {
	s.t.Helper()
	if d := cmp.Diff(want, s.got); d != "" {
		s.t.Errorf("incidents (-want +got):\n%s", d)
	}
	s.got = nil
}

// machine has a kernel, a clock, and CPUs: "r" runs, "w" waits, "d" waits and is deaf.
func machine(name, kernel string, clock uint64, cpus string) Machine {
	m := Machine{Name: name, Kernel: kernel, Clock: &clock}
	for _, c := range cpus {
		m.CPUs = append(m.CPUs, CPU{Waits: c != 'r', Deaf: c == 'd', Where: "at " + string(c)})
	}
	return m
}

const panicLine = "Kernel panic - not syncing: sysrq triggered crash"

// TestPanicIsOneIncident: whatever comes of it afterwards.
func TestPanicIsOneIncident(t *testing.T) {
	s := newStory(t, all...)
	s.at(1, machine("l1", "a", 1, "r"), machine("vm0", "b", 1, "r"))
	s.log("vm0", false, "Linux version 6.1")
	s.log("vm0", true, "sysrq: Trigger a crash", panicLine, "CPU: 0 PID: 1 Comm: x")
	s.want("crash vm0")
	s.log("vm0", true, panicLine, "reboot: Restarting system")
	for range 40 {
		s.at(1, machine("l1", "a", 1, "w"), machine("vm0", "b", 1, "r"))
	}
	for range 3 {
		s.at(1, machine("l1", "a", 2, "w"))
	}
	s.want()
	// The next guest of that name is another.
	s.at(1, machine("l1", "a", 2, "w"), machine("vm0", "c", 1, "r"))
	s.log("vm0", true, panicLine)
	s.want("crash vm0")
}

// TestPanicOfL1: QEMU's words behind it are the same incident, and so is its end.
func TestPanicOfL1(t *testing.T) {
	s := newStory(t, all...)
	s.log("l1", true, panicLine)
	s.event("SHUTDOWN", `{"guest": true, "reason": "guest-reset"}`)
	s.note(s.w.State("shutdown"))
	s.note(s.w.Ended(false))
	s.want("crash l1")
}

// TestOnlyWhatIsAskedFor: an end that nobody asked for does not hide one that somebody did.
func TestOnlyWhatIsAskedFor(t *testing.T) {
	s := newStory(t, Reset)
	s.log("l1", true, "Oops: 0002 [#1] SMP", panicLine)
	s.want()
	s.event("RESET", `{"guest": true, "reason": "guest-reset"}`)
	s.want("reset l1")
	if !strings.Contains(s.last.Late, "-no-reboot") {
		t.Errorf("late: %q", s.last.Late)
	}
}

// TestWhatWasThere: before anybody watched, only a panic counts.
func TestWhatWasThere(t *testing.T) {
	s := newStory(t, all...)
	s.log("vm0", false, "Oops: 0002 [#1] SMP", "---[ end trace", "watchdog: BUG: soft lockup - CPU#0 stuck")
	s.want()
	s.log("vm1", false, panicLine)
	s.want("crash vm1")
}

// TestOopses: one that is a panic is one incident, and not all of many are told.
func TestOopses(t *testing.T) {
	s := newStory(t, all...)
	s.log("vm0", true, "Oops: 0002 [#1] SMP", "---[ end trace", panicLine)
	s.want("crash vm0")
	s = newStory(t, all...)
	for i := range 10 {
		s.log("vm0", true, fmt.Sprintf("Oops: 0002 [#%d] SMP", i+1), "---[ end trace")
	}
	s.want("crash vm0", "crash vm0", "crash vm0")
	s.log("vm0", true, panicLine)
	s.want("crash vm0")
}

func TestEnds(t *testing.T) {
	l1 := machine("l1", "a", 1, "w")
	for _, c := range []struct {
		name, want, what string
		happens          func(*story)
	}{
		{"killed", "crash vm0", "VMM was killed", func(s *story) { s.at(1, l1); s.at(1, l1); s.at(1, l1) }},
		{"missing in one look", "", "", func(s *story) { s.at(1, l1); s.at(1, l1, machine("vm0", "b", 2, "r")); s.at(1, l1) }},
		{"powered down", "shutdown vm0", "Power down", func(s *story) { s.log("vm0", true, "reboot: Power down"); s.at(1, l1); s.at(1, l1) }},
		{"rebooted", "reset vm0", "Restarting system", func(s *story) {
			s.log("vm0", true, "reboot: Restarting system")
			s.at(1, l1, machine("vm0", "c", 1, "r"))
		}},
		{"triple fault", "reset vm0", "triple fault", func(s *story) { s.at(1, l1, machine("vm0", "c", 1, "r")) }},
		{"no kernel for a while", "", "", func(s *story) {
			s.at(1, l1, machine("vm0", "", 1, "r"))
			s.at(1, l1, machine("vm0", "b", 1, "r"))
		}},
		{"seen to fault", "crash vm0", "says KVM", func(s *story) {
			s.at(1, l1, Machine{Name: "vm0", Kernel: "b", Faulted: "KVM"})
			s.at(1, l1, machine("vm0", "c", 1, "r"))
		}},
		{"QEMU killed", "crash qemu", "killed", func(s *story) { s.note(s.w.Ended(false)) }},
		{"QEMU ends while somebody else listens", "crash qemu", "not known", func(s *story) { s.note(s.w.Ended(true)) }},
		{"QEMU quits", "shutdown l1", "host-qmp-quit", func(s *story) {
			s.event("SHUTDOWN", `{"guest": false, "reason": "host-qmp-quit"}`)
			s.note(s.w.Ended(false))
		}},
		{"seen by its state", "shutdown l1", "after its end", func(s *story) {
			s.note(s.w.State("shutdown"))
			s.note(s.w.State("shutdown"))
			if _, known := s.w.WasReset(); known {
				s.t.Error("it knows why")
			}
		}},
		{"pvpanic", "crash l1", "panicked", func(s *story) {
			s.event("GUEST_PANICKED", `{"action": "pause"}`)
			s.note(s.w.State("guest-panicked"))
			s.event("SHUTDOWN", `{"guest": true, "reason": "guest-panic"}`)
		}},
		{"disk", "crash qemu", "io-error", func(s *story) { s.event("STOP", ""); s.note(s.w.State("io-error")) }},
		{"watchdog", "hang l1", "pause", func(s *story) { s.event("WATCHDOG", `{"action": "pause"}`) }},
		{"noise", "", "", func(s *story) {
			s.event("RTC_CHANGE", `{"offset": 1}`)
			s.event("SHUTDOWN_", "x")
			s.note(s.w.State("debug"))
		}},
		{"reset by QMP, and held", "reset l1", "about to be reset", func(s *story) {
			s.event("SHUTDOWN", `{"guest": false, "reason": "host-qmp-system-reset"}`)
			if reset, known := s.w.WasReset(); !reset || !known {
				s.t.Error("it was not about to be reset")
			}
		}},
		{"not JSON", "reset l1", "was reset", func(s *story) { s.event("RESET", `[1]`) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStory(t, all...)
			s.at(1, l1, machine("vm0", "b", 1, "r"))
			c.happens(s)
			if got := strings.Join(s.got, ", "); got != c.want || !strings.Contains(s.last.What, c.what) {
				t.Errorf("%q, want %q; %+v", got, c.want, s.last)
			}
		})
	}
}

// TestHang: a clock that stands while there is something to do, and all that looks
// like it.
func TestHang(t *testing.T) {
	for _, c := range []struct {
		name string
		cpus string
		l1   func(i int) uint64 // its clock
		vm   func(i int) uint64
		want []string
	}{
		{"goes", "r", count, count, nil},
		{"goes slowly", "r", count, func(i int) uint64 { return uint64(i / 20) }, nil},
		{"spins", "r", count, stands, []string{"hang vm0"}},
		{"one spins, one waits", "wr", count, stands, []string{"hang vm0"}},
		{"waits", "ww", count, stands, nil},
		{"waits and is deaf", "dd", count, stands, []string{"hang vm0"}},
		{"never began", "r", count, func(int) uint64 { return 5 }, nil},
		{"hangs twice", "r", count, func(i int) uint64 { return uint64(min(i, 10) + i/60) }, []string{"hang vm0", "hang vm0"}},
		{"what it runs on stands", "r", stands, stands, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStory(t, all...)
			for i := range 110 {
				s.at(1, machine("l1", "a", c.l1(i), "w"), machine("vm0", "b", c.vm(i), c.cpus))
			}
			s.want(c.want...)
		})
	}
}

// TestHangOtherwise: what else there is, and what is none.
func TestHangOtherwise(t *testing.T) {
	t.Run("QEMU's machine", func(t *testing.T) {
		s := newStory(t, all...)
		for i := range 50 {
			s.at(1, machine("l1", "a", stands(i), "r"))
		}
		s.want("hang l1")
		if !strings.Contains(s.last.What, "stands for 30s") || !strings.Contains(s.last.What, "CPU 0 at r") {
			t.Error(s.last.What)
		}
	})
	t.Run("paused", func(t *testing.T) {
		s := newStory(t, all...)
		s.at(1, machine("l1", "a", 1, "r"))
		s.at(1, machine("l1", "a", 2, "r"))
		for range 100 {
			s.now = s.now.Add(time.Second)
			s.note(s.w.Look(s.now, false, []Machine{machine("l1", "a", 2, "r")}))
		}
		s.at(3600, machine("l1", "a", 2, "r"))
		s.at(1, machine("l1", "a", 2, "r"))
		s.want()
	})
	t.Run("stopped to be kept", func(t *testing.T) {
		s := newStory(t, all...)
		s.at(1, machine("l1", "a", 1, "r"))
		s.at(1, machine("l1", "a", 2, "r"))
		for range 100 {
			s.at(7, machine("l1", "a", 2, "r"))
			s.w.Stood()
		}
		s.want()
	})
	t.Run("clocks not known", func(t *testing.T) {
		s := newStory(t, all...)
		for range 100 {
			s.at(1, Machine{Name: "vm0", CPUs: []CPU{{}}})
		}
		s.want()
	})
	t.Run("by its own word, once", func(t *testing.T) {
		s := newStory(t, all...)
		for range 5 {
			s.log("vm0", true, "watchdog: BUG: soft lockup - CPU#0 stuck for 26s!")
		}
		s.log("vm0", true, "INFO: task sh:12 blocked for more than 120 seconds.")
		s.want("hang vm0", "hang vm0")
	})
}

// TestLastCalls: a machine that was met at its last call has ended once, whatever its log
// and the looks say after that.
func TestLastCalls(t *testing.T) {
	s := newStory(t, all...)
	s.at(1, machine("l1", "a", 1, "r"), machine("vm0", "b", 1, "r"), machine("vm1", "b", 1, "r"))
	s.note(s.w.Panics("vm0"))
	if !s.w.Over("vm0") || s.w.Over("vm1") || s.w.Over("vm2") {
		t.Error("it does not know what is over")
	}
	s.log("vm0", true, panicLine)
	s.note(s.w.ShutsDown("vm1"))
	down := machine("vm1", "b", 1, "r")
	down.Faulted = "its control block"
	s.at(1, machine("l1", "a", 2, "r"), down)
	s.at(1, machine("l1", "a", 3, "r"))
	s.at(1, machine("l1", "a", 4, "r"))
	s.want("crash vm0", "crash vm1")
	s = newStory(t, Hang)
	s.note(append(s.w.Panics("vm0"), s.w.ShutsDown("vm1")...))
	s.want()
}

func count(i int) uint64 { return uint64(i) }

// stands is a clock that goes and then does not.
func stands(i int) uint64 { return uint64(min(i, 10)) }

// TestResumed: a machine that stood before its reset, and was let go on, begins anew.
func TestResumed(t *testing.T) {
	s := newStory(t, all...)
	s.at(1, machine("l1", "a", 1, "r"), machine("vm0", "b", 1, "r"))
	s.event("SHUTDOWN", `{"guest": true, "reason": "guest-reset"}`)
	s.note(s.w.State("shutdown"))
	s.want("reset l1")
	if reset, known := s.w.WasReset(); !reset || !known {
		t.Error("it does not know why it stands")
	}
	s.w.Resumed()
	s.event("RESET", `{"guest": false, "reason": "host-qmp-system-reset"}`)
	s.at(1, machine("l1", "c", 1, "r"))
	s.want()
	s.log("l1", true, panicLine)
	s.want("crash l1")
}

func FuzzEvent(f *testing.F) {
	f.Add("SHUTDOWN", []byte(`{"guest": true, "reason": "guest-reset"}`))
	f.Add("RESET", []byte(`{"guest": 5}`))
	f.Add("WATCHDOG", []byte(`{"action": "\n"}`))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		w := New(Options{Classes: all})
		for _, i := range append(w.Event(name, data), w.Event(name, data)...) {
			if i.What == "" || strings.Contains(i.What, "\n") || i.Machine == "" {
				t.Errorf("%+v", i)
			}
		}
	})
}
