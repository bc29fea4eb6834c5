package bochstests

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"nestdbg/internal/session"
	"nestdbg/internal/target"
	"nestdbg/lab"
)

// TestLinuxUnderMonitor: Debian's Linux, to which a hypervisor that is no Linux passes a machine
// with VMX, all but its memory. From memory alone: every page of EPT by the hypervisor's word;
// release, symbols, log and tasks by the guest's.
func TestLinuxUnderMonitor(t *testing.T) {
	l := lab.Start(t, lab.Options{Kind: lab.BochsMonitorKind, Kernel: lab.DefaultKernel})
	truth, err := l.Truth()
	if err != nil || truth["vm0"] == nil {
		t.Fatalf("the monitor said nothing of vm0: %v", err)
	}
	back, err := target.Recognise(t.Context(), l.MemoryFile, target.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	tower, err := session.New(back).Look(t.Context(), session.Full)
	if err != nil {
		t.Fatal(err)
	}
	m, ok := tower.Machine("vm0")
	if !ok || m.Second.Kind != "ept4" || uint64(m.CPUs[0].Control) != truth["vm0"].Control {
		t.Fatalf("vm0 is %+v, its VMCS is at %#x", m, truth["vm0"].Control)
	}
	compare(t, "vm0 stage 2", m.Second.Space, truth["vm0"].Second)
	checkBlocks(t, l, truth)
	checkLinux(t, l)
}

// checkLinux compares what the guest said on the serial line with nestdbg's answers.
func checkLinux(t *testing.T, l *lab.Lab) {
	t.Helper()
	told := func(what string) []string {
		out, err := l.LinuxTold(what)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	machines := askFile[struct {
		Machines []struct {
			Name   string
			Kernel struct{ Release string }
		}
	}](t, l.MemoryFile, "status").Machines
	if len(machines) != 2 || machines[1].Kernel.Release != told("release")[0] {
		t.Errorf("machines %+v, the guest is %q", machines, told("release"))
	}
	symbols := told("symbols")
	for _, line := range symbols {
		f := strings.Fields(line) // address, type, name
		r := askFile[struct{ Symbols []struct{ Addr string } }](t, l.MemoryFile, "sym", "-m", "vm0", f[2])
		if len(r.Symbols) != 1 || r.Symbols[0].Addr != "0x"+f[0] {
			t.Errorf("%s is at %v", line, r.Symbols)
		}
	}
	var log []string
	for _, r := range askFile[struct{ Records []struct{ Text string } }](t, l.MemoryFile, "dmesg", "-m", "vm0").Records {
		log = append(log, strings.Split(r.Text, "\n")...)
	}
	lines := told("log")
	for i, line := range lines {
		if _, text, _ := strings.Cut(line, "] "); i >= len(log) || log[i] != text {
			t.Fatalf("line %d of the log is %q, the guest had %q", i, log[min(i, len(log)-1)], line)
		}
	}
	var tasks []string
	for _, x := range askFile[struct {
		Tasks []struct {
			PID  int
			Comm string
		}
	}](t, l.MemoryFile, "ps", "-m", "vm0").Tasks {
		tasks = append(tasks, fmt.Sprintf("%d (%s)", x.PID, x.Comm))
	}
	count := 0
	for _, x := range told("tasks") {
		// Workers are named after their last work, and who asked is gone.
		if strings.Contains(x, "kworker") || strings.Contains(x, "busybox") || strings.Contains(x, "(cat)") {
			continue
		}
		if count++; !slices.ContainsFunc(tasks, func(s string) bool { return strings.HasPrefix(x, strings.TrimSuffix(s, ")")) }) {
			t.Errorf("task %s is not in the list", x)
		}
	}
	if len(symbols) != 6 || len(lines) < 100 || count < 20 {
		t.Errorf("the guest told %d symbols, %d lines, %d tasks", len(symbols), len(lines), count)
	}
}
