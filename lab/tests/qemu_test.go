package tests

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"nestdbg/lab"
)

// TestQEMUWithoutStubAndItsEnd uses a QEMU that was started without a gdb server,
// and kills it.
func TestQEMUWithoutStubAndItsEnd(t *testing.T) {
	l := ownLab(t, lab.Options{Name: "nogdb", NoGDB: true})
	t.Run("a stub is opened and closed", func(t *testing.T) { checkOwnStub(t, l) })
	t.Run("the stub is closed", func(t *testing.T) { checkStubClosed(t, l) })
	t.Run("killed", func(t *testing.T) { checkQEMUKilled(t, l) })
}

func checkOwnStub(t *testing.T, l *lab.Lab) {
	before := chardevs(t, l)
	s := serve(t, l)
	c := attached(t, l, s, false)
	checkStubTaken(t, l, "nestdbg")
	checkLooks(t, l)
	c.ok("D;1", "D;2")
	checkLeftAlone(t, l)
	if after := chardevs(t, l); !slices.Equal(after, before) {
		t.Errorf("QEMU's character devices were %q and are %q", before, after)
	}
	c.close()
	old := examine(t, l, "vm0", "panic_on_oops", 4)
	write(t, l, "vm0", "panic_on_oops", old)
	// A debugger that is killed leaves its stub and a machine that stands; the next
	// one takes its place.
	first := serve(t, l)
	attached(t, l, first, false)
	first.signal(syscall.SIGKILL)
	first.waitExit(endLimit)
	c = attached(t, l, s, true)
	c.interrupt()
	if st, err := c.wait(stopLimit); err != nil || st.signal != 2 {
		t.Errorf("interrupt: %q, %v", st.text, err)
	}
	// It found a machine that stood, and leaves one; the breakpoints of the dead one
	// are gone with its own.
	c.ok("D;1", "D;2")
	if got := runState(t, l); got == "running" {
		t.Errorf("the machine is %s, it stood when the debugger came", got)
	}
	qmpCommand(t, l, "cont")
	checkLeftAlone(t, l)
}

// chardevs are the names of QEMU's character devices, without the one that QEMU
// makes for the monitor of its first gdbserver and keeps (QEMU 7.2
// gdbstub/gdbstub.c:gdbserver_start).
func chardevs(t *testing.T, l *lab.Lab) []string {
	t.Helper()
	var out []string
	for _, d := range *decode[[]struct{ Label string }](t, string(qmpCommand(t, l, "query-chardev"))) {
		if !strings.HasPrefix(d.Label, "#") {
			out = append(out, d.Label)
		}
	}
	slices.Sort(out)
	return out
}

// checkStubClosed closes the stub in QEMU's own monitor, while a client waits for a
// stop and while the machine stands for one.
func checkStubClosed(t *testing.T, l *lab.Lab) {
	for _, runs := range []bool{true, false} {
		s := serve(t, l)
		c := attached(t, l, s, runs)
		qmpCommandArgs(t, l, "human-monitor-command", map[string]string{"command-line": "gdbserver none"})
		if !runs {
			c.resume("c")
		}
		r, err := c.receive(endLimit)
		if err != nil && os.IsTimeout(err) || err == nil && (!strings.HasPrefix(r, "T00") || !strings.Contains(c.console.String(), "[nestdbg: ")) {
			t.Errorf("running %v: the client was told %q, %q, %v", runs, r, c.console.String(), err)
		}
		c.close()
		eventually(t, "the machine is let go", endLimit, func() bool { return runState(t, l) == "running" })
		checkLeftAlone(t, l)
		t.Logf("running %v: the client was told %q, %v; serve said %s", runs, r, err, s.errOut)
	}
}

// checkQEMUKilled kills QEMU while a client waits for a stop, another server has
// nothing to do, and one has a client that is just connected.
func checkQEMUKilled(t *testing.T, l *lab.Lab) {
	waits, idle, connected := serve(t, l), serve(t, l), serve(t, l)
	c := attached(t, l, waits, true)
	other := connect(t, connected.addr)
	suite.crashed[l] = append(suite.crashed[l], "l1")
	if err := syscall.Kill(l.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	r, err := c.receive(endLimit)
	t.Logf("after %v the client was told %q, %v", time.Since(begin), r, err)
	if took := time.Since(begin); took >= endLimit {
		t.Errorf("it took %v", took)
	}
	for name, s := range map[string]*server{"with a waiting client": waits, "without a client": idle, "with an idle client": connected} {
		status := s.waitExit(endLimit)
		lines := strings.Split(strings.TrimSuffix(s.errOut.String(), "\n"), "\n")
		last := lines[len(lines)-1]
		want := fmt.Sprintf("QEMU has ended (PID %d)", l.PID)
		if status != 1 || !strings.HasPrefix(last, "nestdbg: ") || !strings.Contains(last, want) || len(lines) > 2 {
			t.Errorf("serve %s ended with %d, %q; want %q", name, status, lines, want)
		}
	}
	checkEnded(t, other)
	checkRefused(t, nestdbg(t, on(l, "status")...), "no process")
}
