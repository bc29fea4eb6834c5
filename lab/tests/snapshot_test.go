package tests

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

// keptQuestions are asked of a machine and of its snapshot.
var keptQuestions = [][]string{
	{"regs"}, {"dmesg"}, {"ps"}, {"lsmod"}, {"sym", "schedule"}, {"bt", "--all"}, {"current"},
	{"x/64gx", "$sp"}, {"x/8i", "$pc"}, {"vtop", "schedule"}, {"maps"}, {"maps", "--stage", "2"},
	{"print", "init_task.comm"}, {"struct", "task_struct", "init_task"},
}

// TestSnapshotAnswersAsTheMachine: what a machine says while it stands still, its
// snapshot says, for every machine and question.
func TestSnapshotAnswersAsTheMachine(t *testing.T) {
	l := sharedLab(t, "two")
	thaw := freeze(t, l)
	dir := filepath.Join(t.TempDir(), "snap")
	live := on(l)
	r := nestdbg(t, append(live, "snapshot", "save", dir, "--json")...)
	if r.status != 0 || r.stderr != "" {
		t.Fatalf("status %d, %s", r.status, r.stderr)
	}
	if got := runState(t, l); got != "paused" {
		t.Errorf("the machine is %s", got)
	}
	kept := []string{"-t", dir}
	var machines [2]struct{ Machines any }
	for i, target := range [][]string{live, kept} {
		if err := json.Unmarshal([]byte(nestdbg(t, append(target, "status", "--json")...).stdout), &machines[i]); err != nil {
			t.Fatal(err)
		}
	}
	if machines[0].Machines == nil || !reflect.DeepEqual(machines[0], machines[1]) {
		t.Errorf("status differs: live\n%v\nkept\n%v", machines[0], machines[1])
	}
	for _, m := range []string{"l1", "vm0", "vm1"} {
		for _, q := range keptQuestions {
			if m == "l1" && q[0] == "maps" && len(q) > 1 {
				continue // it has no second stage
			}
			q = append(q, "-m", m)
			want, got := nestdbg(t, append(live, q...)...), nestdbg(t, append(kept, q...)...)
			if want != got {
				t.Errorf("%v differs: live\n%+v\nkept\n%+v", q, want, got)
			}
			if want.status != 0 || want.stdout == "" {
				t.Errorf("%v: status %d, %s", q, want.status, want.stderr)
			}
		}
	}
	if r := nestdbg(t, "snapshot", "verify", dir); r.status != 0 || !strings.Contains(r.stdout, "\n  written by nestdbg ") {
		t.Errorf("verify: %+v", r)
	}
	thaw()
	checkKeptIsDead(t, dir)
}

// checkKeptIsDead: what would change or run a snapshot is refused in a line.
func checkKeptIsDead(t *testing.T, dir string) {
	t.Helper()
	r := nestdbg(t, "-t", dir, "-m", "vm0", "write", "$sp", "00", "--yes")
	if r.status == 0 || strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, "snapshot") {
		t.Errorf("write: %+v", r)
	}
	r = nestdbg(t, "-t", dir, "gdb", "--", "-nx", "-batch", "-ex", "inferior 2", "-ex", "bt 3", "-ex", "stepi")
	if !strings.Contains(r.stdout, "#1 ") {
		t.Errorf("gdb's backtrace: %+v", r)
	}
}

// TestSnapshotOfARunningMachine: it runs on, and the snapshot is one moment, or
// says that it is not.
func TestSnapshotOfARunningMachine(t *testing.T) {
	l := sharedLab(t, "kaslr")
	for _, live := range []bool{false, true} {
		dir := filepath.Join(t.TempDir(), "snap")
		args := on(l, "snapshot", "save", dir)
		if live {
			args = append(args, "--live")
		}
		r := nestdbg(t, args...)
		if r.status != 0 || strings.Contains(r.stdout, "different moments") != live {
			t.Fatalf("live %v: %+v", live, r)
		}
		if got := runState(t, l); got != "running" {
			t.Errorf("live %v: the machine is %s", live, got)
		}
		status := nestdbg(t, "-t", dir, "status")
		if status.status != 0 || strings.Contains(status.stdout, "different moments") != live {
			t.Errorf("live %v: %+v", live, status)
		}
		if r := nestdbg(t, "-t", dir, "-m", "vm0", "ps"); r.status != 0 || !strings.Contains(r.stdout, "lab-work") && !strings.Contains(r.stdout, "agent work") {
			t.Errorf("live %v: %+v", live, r)
		}
	}
	ask(t, l, "vm0", "ping")
}

// TestSnapshotInterrupted: a save that is told to stop leaves no files, and the
// machine runs on.
func TestSnapshotInterrupted(t *testing.T) {
	l := sharedLab(t, "kaslr")
	parent := t.TempDir()
	s := start(t, on(l, "snapshot", "save", filepath.Join(parent, "snap"))...)
	eventually(t, "it began", stopLimit, func() bool { return len(entries(t, parent)) > 0 })
	s.signal(syscall.SIGINT)
	status := s.waitExit(30 * time.Second)
	left := entries(t, parent)
	if done := status == 0 && len(left) == 1; !done && (status == 0 || len(left) > 0) {
		t.Errorf("status %d, and left are %v", status, left)
	}
	if got := runState(t, l); got != "running" {
		t.Errorf("the machine is %s", got)
	}
	ask(t, l, "vm0", "ping")
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range list {
		out = append(out, e.Name())
	}
	return out
}

// TestSnapshotWrong: a directory that is none, and one that is damaged.
func TestSnapshotWrong(t *testing.T) {
	none := t.TempDir()
	for _, args := range [][]string{{"snapshot", "info", none}, {"-t", none, "status"}, {"snapshot", "verify", none}} {
		if r := nestdbg(t, args...); r.status != 2 || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%q: %+v", args, r)
		}
	}
	if err := os.WriteFile(filepath.Join(none, "manifest.json"), bytes.Repeat([]byte("{"), 100), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := nestdbg(t, "-t", none, "status"); r.status != 1 || !strings.Contains(r.stderr, "damaged snapshot") {
		t.Errorf("%+v", r)
	}
}
