package lab

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"
)

// TB is what Start needs of a testing.TB; the package testing itself has no
// place in a program.
type TB interface {
	Helper()
	Name() string
	Failed() bool
	Cleanup(func())
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// downDeadline bounds the end of a lab in a test.
const downDeadline = 30 * time.Second

// startAttempts is how often Start tries to boot. The emulation of two CPUs by
// two threads is not perfect: QEMU 7.2 on a busy host loses about one kernel in
// thirty while it boots, L1 or L2, to an exception that cannot be. No test is
// about that.
const startAttempts = 3

// Start boots a lab for a test, or fails it, and ends the lab when the test
// does. If the test failed, the machines' last words and the command that
// boots the same lab by hand are logged. The lab's directory is its own, so
// labs of several tests may run at the same time.
func Start(t TB, o Options) *Lab {
	t.Helper()
	if o.StateHome == "" {
		// Not t.TempDir: paths of sockets are short.
		dir, err := os.MkdirTemp("", "lab-")
		if err != nil {
			t.Fatalf("lab: %v", err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		o.StateHome = dir
	}
	progress := o.Progress
	o.Progress = func(text string) {
		t.Logf("lab: %s", text)
		if progress != nil {
			progress(text)
		}
	}
	for attempt := 1; ; attempt++ {
		l, err := Up(context.Background(), o)
		var boot *BootError
		if errors.As(err, &boot) && attempt < startAttempts {
			t.Logf("lab: attempt %d: %v\n%s", attempt, err, boot.Tail)
			end(t, boot.Lab)
			continue
		}
		if boot != nil {
			l = boot.Lab
		}
		if l != nil {
			t.Cleanup(func() { finish(t, l, o) })
		}
		if err != nil {
			t.Fatalf("lab: %v", err)
		}
		return l
	}
}

// finish ends a test's lab and tells what is needed to study a failure.
func finish(t TB, l *Lab, o Options) {
	if t.Failed() {
		t.Logf("lab: machines of %s:\n%s", t.Name(), l.Tail())
		t.Logf("lab: to reproduce: %s", shellQuote(o.CommandLine()))
		t.Logf("lab: QEMU was: %s", shellQuote(l.Command))
	}
	end(t, l)
}

// end ends a test's lab.
func end(t TB, l *Lab) {
	ctx, cancel := context.WithTimeout(context.Background(), downDeadline)
	defer cancel()
	if err := l.Down(ctx); err != nil {
		t.Logf("lab: %v", err)
	}
}

// shellQuote writes a command line that a shell reads as it is.
func shellQuote(argv []string) string {
	var out []string
	for _, a := range argv {
		if a == "" || strings.ContainsAny(a, " \t\n\"'\\$&;|<>()*?[]#~`!{}") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		out = append(out, a)
	}
	return strings.Join(out, " ")
}
