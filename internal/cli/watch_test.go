package cli

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
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
	}{{0, []string{first, second, third}}, {3, []string{first, second, third}}, {2, []string{second, third}}, {1, []string{third}}} {
		if err := prune(dir, c.keep); err != nil {
			t.Error(err)
		}
		if got := left(); !slices.Equal(got, c.want) {
			t.Errorf("keep %d: %v", c.keep, got)
		}
	}
	// One with something in it that is not ours stays, and it is said.
	make(first, markFile, "notes.txt")
	if err := prune(dir, 1); err == nil || !slices.Equal(left(), []string{first, third}) {
		t.Errorf("%v, left %v", err, left())
	}
	if err := prune(filepath.Join(dir, "none"), 1); err == nil {
		t.Error("no directory and no error")
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
