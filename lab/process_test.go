package lab

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startTest starts a process in the place of QEMU and ends it with the test.
func startTest(t *testing.T, argv ...string) (process, <-chan error) {
	t.Helper()
	p, exited, err := startDetached(argv, t.TempDir(), "log")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.end(context.Background(), time.Second) })
	return p, exited
}

// waitFor polls a condition.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestProcessLife(t *testing.T) {
	p, exited := startTest(t, "sleep", "60")
	if !p.alive() {
		t.Fatal("not alive after its start")
	}
	if sid, err := unix.Getsid(p.PID); err != nil || sid != p.PID {
		t.Errorf("session %d, %v; want its own, %d", sid, err, p.PID)
	}
	if err := p.end(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	if p.alive() {
		t.Error("alive after its end")
	}
	if err := <-exited; err == nil {
		t.Error("no exit status of a process that was ended by a signal")
	}
	if err := p.end(t.Context(), time.Minute); err != nil {
		t.Errorf("ending what is gone: %v", err)
	}
}

func TestProcessThatIgnoresTERM(t *testing.T) {
	ready := filepath.Join(t.TempDir(), "ready")
	p, exited := startTest(t, "sh", "-c", "trap '' TERM; : > "+ready+"; while :; do sleep 60; done")
	waitFor(t, "the trap", func() bool { _, err := os.Stat(ready); return err == nil })
	if err := p.end(t.Context(), time.Millisecond); err != nil {
		t.Fatal(err)
	}
	<-exited
	if p.alive() {
		t.Error("alive after SIGKILL")
	}
}

func TestRecycledPIDIsLeftAlone(t *testing.T) {
	p, _ := startTest(t, "sleep", "60")
	other := process{PID: p.PID, Start: p.Start + 1}
	if other.alive() {
		t.Error("a process with another start time is taken for ours")
	}
	if err := other.end(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	if !p.alive() {
		t.Error("ended a process with another start time")
	}
	for _, nobody := range []process{{}, {PID: -1}, {PID: 1 << 30}} {
		if nobody.alive() || nobody.end(t.Context(), time.Minute) != nil {
			t.Errorf("%+v is alive or cannot be ended", nobody)
		}
	}
}

func TestProcessOutputGoesToLog(t *testing.T) {
	dir := t.TempDir()
	_, exited, err := startDetached([]string{"sh", "-c", "echo out; echo err >&2; pwd"}, dir, "log")
	if err != nil {
		t.Fatal(err)
	}
	if err := <-exited; err != nil {
		t.Fatal(err)
	}
	want := "out\nerr\n" + dir
	if got := tail(filepath.Join(dir, "log"), logTail); got != want {
		t.Errorf("log %q, want %q", got, want)
	}
	if _, _, err := startDetached([]string{"/nonexistent"}, dir, "log"); err == nil {
		t.Error("started a program that is not there")
	}
}
