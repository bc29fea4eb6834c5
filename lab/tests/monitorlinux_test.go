package tests

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"nestdbg/lab"
)

// TestMonitorLinux: Linux under a hypervisor of which nestdbg is told nothing. What it
// says of itself, and every page of the second stage by the hypervisor's word, is what
// nestdbg says; a breakpoint by name; and the same from memory alone when QEMU is gone.
func TestMonitorLinux(t *testing.T) {
	l, truth := bootMonitor(t, lab.Options{Kernel: lab.DefaultKernel})
	second := decode[monitorMaps](t, must(t, l, "maps", "-m", "vm0", "--stage", "2", "--json"))
	comparePages(t, "vm0 stage 2", expand(second, nil), pages(truth["vm0"].Second))
	live := func(args ...string) string { return must(t, l, append(args, "-m", "vm0")...) }
	checkMonitorLinux(t, l, live)

	script := filepath.Join("testdata", "monitor", "linux.gdb")
	expectScript(t, script, monitorGDB(t, []string{"-t", fmt.Sprint(l.PID)}, script))

	file := killQEMU(t, l)
	checkMonitorLinux(t, l, func(args ...string) string {
		args = append([]string{"-t", file, "-m", "vm0"}, args...)
		r := nestdbg(t, args...)
		if r.status != 0 {
			t.Fatalf("nestdbg %q: status %d, %s", args, r.status, r.stderr)
		}
		return r.stdout
	})
}

// checkMonitorLinux compares what the guest said on its console with nestdbg's answers.
func checkMonitorLinux(t *testing.T, l *lab.Lab, ask func(args ...string) string) {
	t.Helper()
	told := func(what string) []string {
		out, err := l.LinuxTold(what)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if status := ask("status"); !strings.Contains(status, "Linux "+told("release")[0]+",") {
		t.Errorf("the kernel is %s, status is\n%s", told("release")[0], status)
	}
	symbols := told("symbols")
	if len(symbols) != 6 {
		t.Errorf("the guest told %q", symbols)
	}
	for _, s := range symbols {
		word := strings.Fields(s) // address, type, name
		if got := ask("sym", word[2]); !strings.HasPrefix(got, "0x"+word[0]+" "+word[1]+" "+word[2]+"+0x0") {
			t.Errorf("%s is %s", s, got)
		}
	}
	log := strings.Split(ask("dmesg"), "\n")
	want := told("log")
	const stamp = len("[    0.000000] ") // which nestdbg gives a record, and the guest each of its lines
	for i, line := range want {
		if i < len(log) && strings.HasPrefix(log[i], strings.Repeat(" ", stamp)) {
			log[i] = line[:min(stamp, len(line))] + log[i][stamp:]
		}
		if i >= len(log) || log[i] != line {
			t.Fatalf("line %d of the log is %q, the guest had %q", i, log[min(i, len(log)-1)], line)
		}
	}
	if len(want) < 100 {
		t.Errorf("%d lines of log", len(want))
	}
	tasks := decode[struct {
		Tasks []struct {
			PID  int
			Comm string
		}
	}](t, ask("ps", "--json"))
	known := make(map[string]bool)
	for _, x := range tasks.Tasks {
		known[fmt.Sprintf("%d (%s", x.PID, x.Comm)] = true
	}
	count := 0
	for _, x := range told("tasks") {
		// Workers are named after their last work, and who asked is gone.
		if strings.Contains(x, "kworker") || strings.Contains(x, "busybox") || strings.Contains(x, "(cat)") {
			continue
		}
		pid, name, _ := strings.Cut(strings.TrimSuffix(x, ")"), " (")
		if count++; !known[pid+" ("+name[:min(len(name), 15)]] { // of a thread's name the task has 15 bytes
			t.Errorf("task %s is not in the list", x)
		}
	}
	if count < 20 {
		t.Errorf("%d tasks", count)
	}
}
