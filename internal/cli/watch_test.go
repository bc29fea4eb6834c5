package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"nestdbg/internal/report"
)

// TestPrune: the oldest of a watch's own go, and nothing of anybody else's.
func TestPrune(t *testing.T) {
	dir := t.TempDir()
	make := func(name string, files ...string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if err := os.WriteFile(filepath.Join(dir, name, f), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	const first, second, third = "20260101T000000Z-crash-vm0", "20260101T000000Z-crash-vm0-2", "20260102T000000Z-hang-vm0.vm1"
	for _, name := range []string{third, first, second} {
		make(name, "manifest.json", "ram", "ram.crc32c", "devices", markFile, "report.txt", "report.html")
	}
	others := []string{"20250101T000000Z-crash-vm0", "mine", "20250101T000000Z-crash-vm0.old", "20250101T000000Z-panic-vm0"}
	make(others[0], "manifest.json", "ram") // a snapshot that somebody named like ours
	for _, name := range others[1:] {
		make(name, markFile)
	}
	left := func() (out []string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if !slices.Contains(others, e.Name()) {
				out = append(out, e.Name())
			}
		}
		if len(entries) != len(others)+len(out) {
			t.Errorf("what is somebody else's is gone: %v", entries)
		}
		return out
	}
	for _, c := range []struct {
		keep int
		want []string
	}{{3, []string{first, second, third}}, {2, []string{second, third}}, {1, []string{third}}} {
		before := len(left())
		if n, err := prune(dir, c.keep); err != nil || n != before-c.keep {
			t.Error(n, err)
		}
		if got := left(); !slices.Equal(got, c.want) {
			t.Errorf("keep %d: %v", c.keep, got)
		}
	}
	// One with something in it that is not ours stays, and it is said.
	make(first, markFile, "notes.txt")
	if n, err := prune(dir, 1); err == nil || n != 0 || !slices.Equal(left(), []string{first, third}) {
		t.Errorf("%v, left %v", err, left())
	}
	if _, err := prune(filepath.Join(dir, "none"), 1); err == nil {
		t.Error("no directory and no error")
	}
	// What a watch left that was killed while it wrote a report is its own.
	if err := os.Rename(filepath.Join(dir, first, "notes.txt"), filepath.Join(dir, first, ".report.txt."+rand.Text())); err != nil {
		t.Fatal(err)
	}
	if n, err := prune(dir, 1); err != nil || n != 1 || !slices.Equal(left(), []string{third}) {
		t.Errorf("%d, %v, left %v", n, err, left())
	}
}

// TestMarked: what was kept and cannot be reported on is the watch's all the same, so
// that --keep holds.
func TestMarked(t *testing.T) {
	dir := t.TempDir()
	saved := filepath.Join(dir, "20260101T000000Z-crash-vm0")
	if err := os.Mkdir(saved, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(saved, "manifest.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := &watching{app: &app{}, opt: watchOptions{save: dir, keep: 1}}
	r := &report.Watched{Incidents: []report.Incident{{Class: "crash", Machine: "vm0"}}, Saved: saved}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // somebody ends the watch
	if err := w.finish(ctx, r); err != nil || r.Error == "" {
		t.Errorf("%v, %+v", err, r)
	}
	if text, err := os.ReadFile(filepath.Join(saved, markFile)); err != nil || !strings.Contains(string(text), `"error"`) {
		t.Errorf("%s, %v", text, err)
	}
	if n, err := prune(dir, 0); n != 1 || err != nil {
		t.Error(n, err)
	}
}

// TestNoRoom: on a full disk the oldest goes, once, and nothing beyond --keep.
func TestNoRoom(t *testing.T) {
	for _, c := range []struct{ keep, own, tries, left int }{{2, 2, 2, 1}, {1, 1, 2, 0}, {3, 2, 1, 2}, {0, 2, 1, 2}} {
		dir := t.TempDir()
		for i := range c.own {
			d := filepath.Join(dir, fmt.Sprintf("2026010%dT000000Z-crash-vm0", i+1))
			if err := errors.Join(os.Mkdir(d, 0o700), os.WriteFile(filepath.Join(d, markFile), nil, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		w := &watching{opt: watchOptions{save: dir, keep: c.keep}}
		tries := 0
		err := w.withRoom(func() error { tries++; return fmt.Errorf("write: %w", syscall.ENOSPC) })
		left, _ := os.ReadDir(dir)
		if !errors.Is(err, syscall.ENOSPC) || tries != c.tries || len(left) != c.left {
			t.Errorf("%+v: %v after %d tries, left %v", c, err, tries, left)
		}
	}
}

func TestFreeName(t *testing.T) {
	dir := t.TempDir()
	for _, want := range []string{"a", "a-2", "a-3"} {
		got := freeName(filepath.Join(dir, "a"))
		if filepath.Base(got) != want {
			t.Errorf("%s, want %s", got, want)
		}
		if err := os.Mkdir(got, 0o700); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWatchOptions(t *testing.T) {
	good := watchOptions{on: "crash", save: "x", hang: 1e9}
	if err := good.check(); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string]watchOptions{
		"no directory": {on: "crash", hang: 1e9}, "class": {on: "x", save: "x", hang: 1e9}, "keep": {on: "crash", save: "x", hang: 1e9, keep: -1},
		"hang": {on: "crash", save: "x"}, "trap": {on: "hang,reset", save: "x", hang: 1e9, trap: true},
	} {
		if err := bad.check(); !isUsage(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestWatchPause: looks are rare while each of them stops the machine.
func TestWatchPause(t *testing.T) {
	w := &watching{logs: map[string]*watchedLog{}}
	all := time.Duration(0)
	for range 10 {
		all += w.pause()
	}
	if all < 2*blindPause || w.pause() != blindPause {
		t.Errorf("ten looks in %v, then one after %v", all, w.pause())
	}
	w.logs["l1"] = &watchedLog{}
	if got := w.pause(); got != lookEvery {
		t.Errorf("with a kernel, one after %v", got)
	}
	delete(w.logs, "l1")
	if got := w.pause(); got != lookEvery {
		t.Errorf("without it again, one after %v", got)
	}
}
