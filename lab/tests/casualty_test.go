package tests

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"nestdbg/lab"
)

// A lab's guest can die of QEMU itself: 7.2's emulation of SVM leaves the number
// of an interrupt behind that it injected, and delivers it a second time if
// something kicks the CPU before the guest's next exit (README, Limits). A test
// whose guest died says nothing of nestdbg. It fails, and lab/labtests, which
// reads the line that autopsy prints, runs it once more on a fresh lab.

// pingLimit bounds the answer of a guest that may be dead.
const pingLimit = 20 * time.Second

// lastWords tells a guest's end in the text of its console.
var lastWords = regexp.MustCompile(`Kernel panic - not syncing: .*|BUG: .*|Oops: .*|KVM internal error.*`)

// ended reports whether a test ended a machine, or one that this is in.
func ended(l *lab.Lab, machine string) bool {
	return slices.ContainsFunc(suite.crashed[l], func(name string) bool {
		return name == "l1" || machine == name || strings.HasPrefix(machine, name+".")
	})
}

// deadByWord is what a guest of a lab said at its end; empty if all live, or ended
// without a word.
func deadByWord(l *lab.Lab) string {
	for _, m := range l.Machines {
		if ended(l, m.Name) {
			continue
		}
		text, _ := os.ReadFile(m.Log)
		if words := lastWords.Find(text); words != nil {
			return fmt.Sprintf("%s says %q", m.Name, bytes.TrimSpace(words))
		}
	}
	return ""
}

// hangs reports whether the lab's QEMU is there and does not answer on its QMP
// socket: it waits for a CPU that it told to stop (session.Peeker). By now nobody
// else holds the socket. The greeting says nothing: another thread sends it.
func hangs(l *lab.Lab) bool {
	conn, err := net.Dial("unix", l.QMPPath)
	if err != nil {
		return errors.Is(err, syscall.EAGAIN) // its queue of one is full
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(pingLimit))
	fmt.Fprintln(conn, `{"execute":"qmp_capabilities"}`)
	fmt.Fprintln(conn, `{"execute":"query-status","id":"alive"}`)
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		if strings.Contains(lines.Text(), `"alive"`) {
			return false
		}
	}
	return errors.Is(lines.Err(), os.ErrDeadlineExceeded)
}

// casualty says which guest of a lab is dead and how it shows; empty if all live.
// A guest that is not asked is known by its console alone.
func casualty(t testing.TB, l *lab.Lab, ask bool) string {
	why := deadByWord(l)
	switch {
	case ended(l, "l1"):
		return why
	case syscall.Kill(l.PID, 0) != nil:
		return strings.TrimSpace("QEMU has ended, as it does when L1 is reset " + why)
	case why != "" || !ask:
		return why
	}
	if hangs(l) {
		return "QEMU hangs"
	}
	// A machine that somebody left standing is silent too, and that is no accident.
	if runState(t, l) != "running" {
		return ""
	}
	for _, m := range l.Machines {
		if ended(l, m.Name) {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), pingLimit)
		_, err := l.Ask(ctx, m.Name, "ping")
		cancel()
		if err != nil {
			return fmt.Sprintf("%s is silent: %v", m.Name, err)
		}
	}
	return ""
}

// autopsy looks after a test whether the guests of its lab live, and reports
// whether one died. A test that lost a guest without noticing fails now.
func autopsy(t testing.TB, l *lab.Lab) bool {
	t.Helper()
	why := casualty(t, l, t.Failed())
	if why == "" {
		return false
	}
	bury(t, l, why)
	return true
}

// bury fails a test for the guest that it lost, in a line for lab/labtests.
func bury(t testing.TB, l *lab.Lab, why string) {
	t.Helper()
	t.Errorf("a guest of lab %s died: %s", l.Name, why)
	name, _, _ := strings.Cut(t.Name(), "/")
	fmt.Printf("\ncasualty: %s: lab %s: %s\n", name, l.Name, why)
}
