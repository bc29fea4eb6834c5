package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nestdbg/internal/mem"
	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/session"
)

// terminal is a new terminal, as the person and as the program has it.
func terminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		person.Close()
		program.Close()
	})
	return person, program
}

// asked is a question that appears with what it does then.
type asked func()

func (a asked) Write(p []byte) (int, error) {
	if strings.HasSuffix(string(p), "[y/N] ") {
		a()
	}
	return len(p), nil
}

func TestConfirm(t *testing.T) {
	for answer, want := range map[string]bool{"y\n": true, " Y \n": true, "n\n": false, "\n": false, "yes please\n": false, "\x04": false, "interrupt": false} {
		person, program := terminal(t)
		ctx, cancel := context.WithCancel(t.Context())
		a := &app{in: program, errOut: asked(func() {
			if answer == "interrupt" {
				cancel()
			} else {
				io.WriteString(person, answer)
			}
		})}
		done := make(chan bool, 1)
		go func() { done <- a.confirm(ctx, "really?") }()
		select {
		case got := <-done:
			if got != want {
				t.Errorf("%q: %v", answer, got)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%q: the question stays", answer)
		}
		cancel()
	}
	a := &app{in: strings.NewReader("n\n"), errOut: io.Discard}
	if !a.confirm(t.Context(), "really?") {
		t.Error("a script was not taken at its word")
	}
}

// writeStub is a stub that knows how to write. Each call fails once its context is done.
type writeStub struct {
	noStub
	nestedtest.NoRegisters
	calls []string
}

// noStub is what a test's stub is asked for besides.
type noStub struct{ session.Stub }

func (s *writeStub) WritePhys(ctx context.Context, _ mem.Phys, p []byte) error {
	s.calls = append(s.calls, fmt.Sprintf("write %x", p))
	return ctx.Err()
}

func (s *writeStub) Close(ctx context.Context, run bool) error {
	s.calls = append(s.calls, fmt.Sprintf("close %v", run))
	return ctx.Err()
}

// debugged is a machine that runs, and a debugger that has not taken it.
func debugged(t *testing.T, opens func()) (*app, *nestedtest.Still, *session.Debugger, *writeStub) {
	t.Helper()
	w := nestedtest.New()
	still := nestedtest.NewStill(w, w.Host(0, nestedtest.Text+0x20, nestedtest.Text+0x100))
	still.Runs = true
	a := &app{in: strings.NewReader(""), out: io.Discard, errOut: io.Discard, session: session.New(&still)}
	if _, err := a.session.Look(t.Context(), session.Full); err != nil {
		t.Fatal(err)
	}
	stub := &writeStub{}
	d := session.NewDebugger(a.session, func(ctx context.Context) (session.Stub, error) { opens(); return stub, ctx.Err() }, a.log())
	return a, &still, d, stub
}

// TestWriteIsWhole: who is interrupted while the machine stands still writes all, and
// lets it run on.
func TestWriteIsWhole(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	a, _, d, stub := debugged(t, cancel)
	m, err := a.session.Machine("l1")
	if err == nil {
		err = a.writeStopped(ctx, d, m, m.CPUs[0], address{physical: true, value: 0x1000}, []byte{1, 2})
	}
	if want := []string{"write 0102", "close true"}; err != nil || !slices.Equal(stub.calls, want) || !errors.Is(ctx.Err(), context.Canceled) {
		t.Errorf("%v, %q, want %q", err, stub.calls, want)
	}
}

// TestMonitorUnattached: what runs is looked at, and stopped to be written.
func TestMonitorUnattached(t *testing.T) {
	a, still, d, stub := debugged(t, func() {})
	m := &monitor{app: a, debugger: d}
	pc := func() string {
		var out bytes.Buffer
		if err := m.Monitor(t.Context(), 0, 0, "x/1i $pc", &out); err != nil {
			t.Fatal(err)
		}
		at, _, _ := strings.Cut(strings.TrimPrefix(out.String(), "=> "), ":")
		return at
	}
	move := func(pc uint64) { still.State[0] = still.World.Host(0, pc, nestedtest.Text+0x100) }
	target := d.Target(nil, m)
	for _, step := range []struct {
		what string
		do   func() error
		want uint64 // the pc behind the text
	}{
		{"before the first attach", func() error { move(nestedtest.Text + 0x30); return nil }, 0x30},
		{"attached", func() error { return target.Core.Attach(t.Context(), 1) }, 0x30},
		{"it stands still", func() error { move(nestedtest.Text + 0x40); return nil }, 0x30},
		{"detached", func() error { return target.Core.Detach(t.Context(), 1) }, 0x40},
		{"it runs", func() error { move(nestedtest.Text + 0x50); return nil }, 0x50},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if got, want := pc(), fmt.Sprintf("%#x", nestedtest.Text+step.want); got != want {
			t.Errorf("%s: the pc is %s, want %s", step.what, got, want)
		}
	}
	stub.calls = nil
	l1, err := a.session.Machine("l1")
	if err == nil {
		err = a.writeStopped(t.Context(), d, l1, l1.CPUs[0], address{physical: true, value: 0x1000}, []byte{3})
	}
	if want := []string{"write 03", "close true"}; err != nil || !slices.Equal(stub.calls, want) || d.Holds() {
		t.Errorf("%v, %q, want %q", err, stub.calls, want)
	}
}
