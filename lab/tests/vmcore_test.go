package tests

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nestdbg/lab"
)

// vmcoreQuestions have the same answer from a machine that stands still and from
// its exported dump, in which it is the only machine.
var vmcoreQuestions = [][]string{{"dmesg"}, {"ps", "--threads"}, {"lsmod"}, {"sym", "schedule"}, {"print", "init_task.comm"}}

// TestVmcore writes each machine as a dump, which nestdbg itself, drgn and crash
// open as if it had been a machine of its own.
func TestVmcore(t *testing.T) {
	l := sharedLab(t, "kaslr")
	for _, m := range []string{"vm0", "l1"} {
		t.Run(m, func(t *testing.T) {
			vmlinux := vendorFile(t, l, m)
			thaw := freeze(t, l)
			file := filepath.Join(t.TempDir(), "core")
			r := nestdbg(t, on(l, "export", "vmcore", "-m", m, "-o", file)...)
			if r.status != 0 || r.stderr != "" {
				t.Fatalf("%+v", r)
			}
			for _, q := range vmcoreQuestions {
				want := must(t, l, append(q, "-m", m)...)
				got := nestdbg(t, append([]string{"-t", file, "-m", "l1"}, q...)...)
				if got.status != 0 || got.stdout != want {
					t.Errorf("%v: live\n%s\nthe dump\n%+v", q, want, got)
				}
			}
			checkDrgn(t, l, m, file, vmlinux)
			checkCrash(t, l, m, file, vmlinux)
			thaw()
		})
	}
}

// vendorFile is the vendor's vmlinux of a machine's kernel.
func vendorFile(t *testing.T, l *lab.Lab, machine string) string {
	t.Helper()
	symbols, err := l.SymbolsDir(t.Context(), machine, "", func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(symbols, "boot", "vmlinux-*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the vendor's vmlinux: %v, %v", files, err)
	}
	return files[0]
}

// toolLimit bounds drgn and crash, which read the vendor's 500 MB.
const toolLimit = 2 * time.Minute

// tool runs a debugger of others on a dump.
func tool(t *testing.T, input string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), toolLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(input)
	cmd.Env = append(os.Environ(), "TERM=dumb", "HOME="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

// drgnScript prints the log and the tasks as nestdbg does.
const drgnScript = `
import os
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.printk import get_dmesg
os.write(1, b"LOG\n" + get_dmesg(prog) + b"\nTASKS\n")
for t in for_each_task(prog):
    os.write(1, b"%d %s\n" % (t.pid.value_(), t.comm.string_()))
`

// checkDrgn compares the log and every task with drgn's answers.
func checkDrgn(t *testing.T, l *lab.Lab, machine, file, vmlinux string) {
	t.Helper()
	script := filepath.Join(t.TempDir(), "script.py")
	if err := os.WriteFile(script, []byte(drgnScript), 0o600); err != nil {
		t.Fatal(err)
	}
	out := tool(t, "", "drgn", "-q", "-c", file, "-s", vmlinux, script)
	_, out, _ = strings.Cut(out, "LOG\n")
	log, tasks, ok := strings.Cut(out, "\nTASKS\n")
	if !ok {
		t.Fatalf("drgn said:\n%s", out)
	}
	// drgn does not indent the second line of a record; dmesg and nestdbg do.
	want, got := trimmedLines(must(t, l, "dmesg", "-m", machine)), trimmedLines(log)
	if !slices.Equal(want, got) {
		t.Errorf("the log: drgn has %d lines, nestdbg %d; drgn lacks %q, nestdbg %q",
			len(got), len(want), without(want, got), without(got, want))
	}
	want = nil
	for _, task := range decode[struct {
		Tasks []struct {
			PID  int
			Comm string
		}
	}](t, must(t, l, "ps", "--threads", "-m", machine, "--json")).Tasks {
		if task.PID != 0 {
			want = append(want, fmt.Sprint(task.PID, " ", task.Comm))
		}
	}
	got = trimmedLines(tasks)
	slices.Sort(want)
	slices.Sort(got)
	if len(want) == 0 || !slices.Equal(want, got) {
		t.Errorf("%d tasks: drgn lacks %q, nestdbg %q", len(want), without(want, got), without(got, want))
	}
}

func trimmedLines(text string) []string {
	var out []string
	for line := range strings.Lines(strings.TrimSpace(text)) {
		out = append(out, strings.TrimSpace(line))
	}
	return out
}

// without are the lines of a that b lacks.
func without(a, b []string) []string {
	has := make(map[string]bool)
	for _, s := range b {
		has[s] = true
	}
	var out []string
	for _, s := range a {
		if !has[s] {
			out = append(out, s)
		}
	}
	return out
}

// checkCrash compares the log and the release with those of crash. Its other
// answers are not held against ours: Debian 12's crash is older than late 6.1
// kernels, and finds few of their tasks in a dump of QEMU's own too.
func checkCrash(t *testing.T, l *lab.Lab, machine, file, vmlinux string) {
	t.Helper()
	out := tool(t, "sys\nlog\nquit\n", "crash", "-s", vmlinux, file)
	want, got := trimmedLines(must(t, l, "dmesg", "-m", machine)), trimmedLines(out)
	if missing := without(want, got); len(missing) > 0 {
		t.Errorf("crash lacks %d of %d lines of the log, first %q", len(missing), len(want), missing[0])
	}
	if release := l.Machine(machine).Release; release == "" || !slices.Contains(got, "RELEASE: "+release) {
		t.Errorf("crash does not say that the release is %s:\n%.2000s", release, out)
	}
}
