package tests

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
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
			before := storedIn(t, l.MemoryFile)
			r := nestdbg(t, on(l, "export", "vmcore", "-m", m, "-o", file)...)
			if r.status != 0 || r.stderr != "" {
				t.Fatalf("%+v", r)
			}
			const few = 4 << 20
			if more := storedIn(t, l.MemoryFile) - before; more > few {
				t.Errorf("QEMU's memory file has %d bytes more after it was read", more)
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
			checkCompressed(t, l, m, vmlinux)
			if m == "l1" {
				checkExcluded(t, l, file)
			}
			thaw()
		})
	}
}

// storedIn is how many bytes of a file are in no hole.
func storedIn(t *testing.T, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// checkCompressed opens the same machine compressed, by each method with one of the
// others' tools.
func checkCompressed(t *testing.T, l *lab.Lab, machine, vmlinux string) {
	t.Helper()
	format, check := "kdump-zlib", checkDrgn
	if machine == "l1" {
		format, check = "kdump-zstd", checkCrash
	}
	file := filepath.Join(t.TempDir(), format)
	if r := nestdbg(t, on(l, "export", "vmcore", "-m", machine, "-o", file, "--format", format)...); r.status != 0 || r.stderr != "" {
		t.Fatalf("%+v", r)
	}
	for _, q := range vmcoreQuestions {
		want := must(t, l, append(q, "-m", machine)...)
		if got := nestdbg(t, append([]string{"-t", file, "-m", "l1"}, q...)...); got.status != 0 || got.stdout != want {
			t.Errorf("%s: %v: live\n%s\nthe dump\n%+v", format, q, want, got)
		}
	}
	check(t, l, machine, file, vmlinux)
}

// checkExcluded compares what --exclude leaves out of L1 with what makedumpfile leaves
// out of the same memory, page for page as far as it counts them.
func checkExcluded(t *testing.T, l *lab.Lab, elf string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "excluded")
	var r struct {
		Excluded []struct {
			Kind string
			Size uint64
		}
	}
	text := must(t, l, "export", "vmcore", "-m", "l1", "-o", file, "--format", "kdump-zlib", "--exclude", "free,user,cache", "--json")
	if err := json.Unmarshal([]byte(text), &r); err != nil || len(r.Excluded) != 3 {
		t.Fatalf("%v: %s", err, text)
	}
	const counts = "16" // makedumpfile's --message-level
	out := tool(t, "", "makedumpfile", "-c", "-d", "26", "--message-level", counts, elf, file+".makedumpfile")
	for i, line := range []string{"Non-private cache pages", "Free pages", "User process data pages"} {
		m := regexp.MustCompile(line + ` *: 0x([0-9a-f]+)`).FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("makedumpfile does not say %q:\n%s", line, out)
		}
		want, err := strconv.ParseUint(m[1], 16, 64)
		if err != nil || want == 0 || r.Excluded[i].Size != want*4096 {
			t.Errorf("%s: %d bytes, makedumpfile %d pages (%v)", r.Excluded[i].Kind, r.Excluded[i].Size, want, err)
		}
	}
	// An ELF file leaves out the same; that zeros are named as well changes nothing.
	inELF := file + ".elf"
	must(t, l, "export", "vmcore", "-m", "l1", "-o", inELF, "--exclude", "zero,free,user,cache")
	want := sizeOf(t, elf)
	for _, e := range r.Excluded {
		want -= int64(e.Size)
	}
	const moreHeaders = 8 << 20
	if got := sizeOf(t, inELF); got < want || got > want+moreHeaders {
		t.Errorf("an ELF file of %d bytes, want %d and headers", got, want)
	}
	// What the kernel has of its own is all there; command lines are memory of processes.
	for _, q := range [][]string{{"dmesg"}, {"lsmod"}, {"sym", "schedule"}, {"struct", "task_struct", "init_task"}} {
		want := must(t, l, append(q, "-m", "l1")...)
		for _, f := range []string{file, inELF} {
			if got := nestdbg(t, append([]string{"-t", f, "-m", "l1"}, q...)...); got.status != 0 || got.stdout != want {
				t.Errorf("%v of %s without what can be missed: %+v", q, filepath.Base(f), got)
			}
		}
	}
}

func sizeOf(t *testing.T, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
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
from drgn.helpers.linux.printk import get_printk_records
os.write(1, b"LOG\n")
for r in get_printk_records(prog):
    os.write(1, b"%d %d %d %d %s\n" % (r.seq, r.timestamp, r.facility, r.level, r.text.hex().encode()))
os.write(1, b"TASKS\n")
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
	log, tasks, ok := strings.Cut(out, "TASKS\n")
	if !ok {
		t.Fatalf("drgn said:\n%s", out)
	}
	compareLogs(t, decode[logReport](t, must(t, l, "dmesg", "--json", "-m", machine)).Records, strings.Split(strings.TrimSpace(log), "\n"))
	var want []string
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
	got := trimmedLines(tasks)
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

// compareLogs compares every record with drgn's: number, time, facility, level, and
// text in hex.
func compareLogs(t *testing.T, want []logRecord, got []string) {
	t.Helper()
	want = slices.DeleteFunc(want, func(r logRecord) bool { return r.Text == "" }) // drgn leaves these out
	if len(want) != len(got) {
		t.Errorf("the log: drgn has %d records, nestdbg %d", len(got), len(want))
		return
	}
	wrapped := 0
	for i, w := range want {
		head, text, _ := strings.Cut(got[i]+" ", fmt.Sprint(w.Seq, " ", w.TimeNs, " ", w.Facility, " ", w.Level, " "))
		raw, err := hex.DecodeString(strings.TrimSpace(text))
		if head != "" || err != nil {
			t.Errorf("the log: drgn %q, nestdbg %+v, %v", got[i], w, err)
			continue
		}
		if asJSON(raw) == w.Text {
			continue
		}
		// drgn 0.0.22 takes the number of its data block for the first 8 bytes of a
		// record that is wrapped around the end of the ring. There is one at most.
		const number = 8
		if wrapped++; wrapped > 1 || len(raw) < number || !strings.HasPrefix(w.Text, asJSON(raw[number:])) {
			t.Errorf("the log: drgn %q, nestdbg %+v", raw, w)
		}
	}
}

// asJSON is a text as it comes out of JSON, which knows no invalid UTF-8.
func asJSON(text []byte) string { return string([]rune(string(text))) }

// dotted are lines of a log with a dot for every byte that does not print, as crash
// shows them; nestdbg and dmesg show it as \xNN.
func dotted(lines []string) []string {
	for i, line := range lines {
		b := []byte(regexp.MustCompile(`\\x[0-9a-f]{2}`).ReplaceAllString(line, "."))
		for i, c := range b {
			if c != '\t' && (c < ' ' || c > '~') {
				b[i] = '.'
			}
		}
		lines[i] = string(b)
	}
	return lines
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
	want, got := dotted(trimmedLines(must(t, l, "dmesg", "-m", machine))), dotted(trimmedLines(out))
	if missing := without(want, got); len(missing) > 0 {
		t.Errorf("crash lacks %d of %d lines of the log, first %q", len(missing), len(want), missing[0])
	}
	if release := l.Machine(machine).Release; release == "" || !slices.Contains(got, "RELEASE: "+release) {
		t.Errorf("crash does not say that the release is %s:\n%.2000s", release, out)
	}
}
