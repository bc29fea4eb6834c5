package gdbserver_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/gdbserver"
	"nestdbg/internal/gdbserver/gdbservertest"
)

// sleepers gives a machine threads that do not run: one in the middle of its text,
// and one of which nothing is known.
func sleepers(m *gdbservertest.Machine) {
	known := arch.NewRegisters(arch.X86)
	known.Set("rip", m.Text+1)
	known.Set("rbx", 0x5eed)
	sp, _ := m.CPUs[0].SP()
	known.Set("rsp", sp)
	m.Inert = []*arch.Registers{known, arch.NewRegisters(arch.X86)}
}

// asleep is attached, with inert threads in machine 2.
func asleep(t *testing.T) *session {
	s := attached(t)
	sleepers(s.fake.Machines[2])
	return s
}

// The inert threads of machine 2 are p2.3e9 and p2.3ea.

func TestInertThreadsAreListed(t *testing.T) {
	s := asleep(t)
	s.check(
		"qfThreadInfo", "mp1.1,p1.2,p2.1,p2.3e9,p2.3ea",
		"Tp2.3e9", "OK",
		"Tp2.3eb", "E01",
		"Hgp2.3ea", "OK",
		"qC", "QCp2.3ea",
		"p3", strings.Repeat("xx", 8), // rbx is gdb's number 1, rdx 3
		"Hgp2.3e9", "OK",
		"p1", "ed5e000000000000",
	)
	list := s.send("qXfer:threads:read::0,fff")
	if want := `<thread id="p2.3e9" name="sleeper (0)"></thread>`; !strings.Contains(list, want) {
		t.Errorf("no %s in %s", want, list)
	}
	s.fake.Machines[2].Inert = nil
	s.check("Tp2.3e9", "E01", "qfThreadInfo", "mp1.1,p1.2,p2.1")
}

// TestInertThreadsAreNotResumed: not alone, not among others by name, not before
// the client has listed them. Those that "all" covers stay where they are.
func TestInertThreadsAreNotResumed(t *testing.T) {
	for _, c := range []struct{ packet, refused string }{
		{"vCont;s:p2.3e9", "2.1001"},
		{"vCont;c:p2.3ea", "2.1002"},
		{"vCont;s:p2.3e9;c", "2.1001"},
		{"vCont;r1,2:p2.3e9;c:p-1.-1", "2.1001"},
		{"vCont;c:p2.3eb", "2.1003"}, // no such thread
		{"vCont;c", ""},
		{"vCont;s:p2.1;c", ""},
		{"vCont;t:p2.3e9;c", ""},
	} {
		s := asleep(t)
		s.script(trap2)
		got := s.send(c.packet)
		ran := strings.Contains(strings.Join(s.fake.Calls, " "), "resume")
		if c.refused == "" {
			if !ran || !strings.HasPrefix(got, "T05thread:p2.1;") {
				t.Errorf("%s: %q, ran: %v", c.packet, got, ran)
			}
			continue
		}
		want := "thread " + c.refused + " does not run now, so it cannot be stepped or resumed; select the thread of a CPU"
		var pid, tid int
		if n, _ := fmt.Sscanf(c.refused, "%d.%d", &pid, &tid); n != 2 {
			t.Fatal(c.refused)
		}
		if got != stays(fmt.Sprintf("p%x.%x", pid, tid), want) || ran {
			t.Errorf("%s: %q, ran: %v", c.packet, got, ran)
		}
	}
}

// TestNoStopOfInertThreads: what is nobody's stop is told of a CPU, though an inert
// thread is the current one.
func TestNoStopOfInertThreads(t *testing.T) {
	for _, stop := range []gdbserver.Stop{
		{Signal: 5, Core: -1},
		{Reason: gdbserver.Interrupted, Signal: 2},
	} {
		s := asleep(t)
		s.check("Hgp2.3e9", "OK")
		s.fake.OnResume = func([]gdbserver.Action, <-chan struct{}) (gdbserver.Stop, error) {
			s.engine.Feed([]byte("\x03"))
			s.engine.Step(t.Context())
			return stop, nil
		}
		if got := s.send("vCont;c"); !strings.Contains(got, "thread:p2.1;") {
			t.Errorf("%+v: %q", stop, got)
		}
	}
}

// TestGDBInertThreads: gdb lists threads that come and go, reads what they have,
// and says why they do not step.
func TestGDBInertThreads(t *testing.T) {
	f, socket := toyTower(t)
	g := startGDB(t)
	g.attachAll(socket)
	f.Lock()
	sleepers(f.Machines[2])
	f.Unlock()
	g.want("info threads", `2\.2 +Thread 2\.1001 "sleeper \(0\)"`, `2\.3 +Thread 2\.1002 "sleeper \(1\)" +<unavailable>`)
	g.want("thread 2.2", "Switching to thread 2.2")
	g.want("p/x $rbx", "= 0x5eed\n")
	g.want("p $rax", "<unavailable>")
	g.want("p/x *(long *)&counter", "= 0x2222\n")
	g.want("stepi", "thread 2.1001 does not run now, so it cannot be stepped")
	g.want("p/x $rbx", "= 0x5eed\n")
	g.want("thread apply all bt 1", `2\.1002 "sleeper \(1\)"`, `#0 +<unavailable>`, `2\.1001 "sleeper`, `1\.1 "m1-cpu0"`)
	g.want("hbreak work2", "breakpoint 1")
	g.want("continue", `Thread 2\.1 .*hit Breakpoint 1, work2`)
	g.want("delete", "")
	g.want("thread 2.2", "Switching to thread 2.2")
	mark := g.begin("continue")
	waitFor(t, f, func() bool { return strings.HasPrefix(f.Calls[len(f.Calls)-1], "resume") })
	f.Lock()
	f.Machines[2].Inert = nil
	f.Unlock()
	g.cmd.Process.Signal(os.Interrupt)
	if out := g.finish(mark); !strings.Contains(out, "SIGINT") || !strings.Contains(out, "Thread 2.1 ") {
		t.Errorf("Ctrl-C:\n%s", out)
	}
	g.want("thread 2.2", "has terminated")
	g.want("info threads", `\* 2\.1 +Thread 2\.1 `)
}

// TestRefusal: the text of a refusal reaches the person, as it is.
func TestRefusal(t *testing.T) {
	s := asleep(t)
	s.fake.Fail = func(call string) error {
		if call == "register" {
			return gdbserver.Refuse("%s does not run", "sleeper (0)")
		}
		return nil
	}
	s.check("Hgp2.3e9", "OK", "P1=0000000000000000", "E.sleeper (0) does not run")
}
