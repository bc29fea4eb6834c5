package bochstests

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
	"nestdbg/internal/session"
	"nestdbg/internal/target"
	"nestdbg/lab"
)

// TestMonitor: a hypervisor that is no Linux, with VMX, and two programs under it, one of
// which has crashed. From memory alone, every page of both stages is where the monitor
// said it put it and nothing else is mapped; gdb tells the crash and the monitor's stack.
func TestMonitor(t *testing.T) {
	l := lab.Start(t, lab.Options{Kind: lab.BochsMonitorKind, VMs: 2, Append: "crash=store"})
	back, err := target.Recognise(t.Context(), l.MemoryFile, target.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	tower, err := session.New(back).Look(t.Context(), session.Full)
	if err != nil {
		t.Fatal(err)
	}
	truth, err := l.Truth()
	if err != nil || len(truth) != 2 || len(tower.Machines) != 3 {
		t.Fatalf("%d VMs, %d machines, %v", len(truth), len(tower.Machines), err)
	}
	for name, want := range truth {
		m, ok := tower.Machine(name)
		if !ok || m.Second.Kind != "ept4" || len(m.CPUs) != 1 || uint64(m.CPUs[0].Control) != want.Control ||
			uint64(m.Second.Space.Root()) != want.SecondRoot {
			t.Fatalf("%s: %+v, want %#x, %#x", name, m, want.Control, want.SecondRoot)
		}
		first, err := m.Space(m.CPUs[0])
		if err != nil || uint64(first.Root()) != want.FirstRoot {
			t.Fatalf("%s: %v, tables at %#x", name, err, want.FirstRoot)
		}
		compare(t, name+" stage 1", first, want.First)
		compare(t, name+" stage 2", m.Second.Space, want.Second)
	}
	if n := len(tower.Machines[0].CPUs); n != 1 {
		t.Errorf("%d CPUs of l1", n)
	}
	tellCrash(t, l)
}

// compare compares leaf by leaf, with sizes and rights, and what is mapped in all.
func compare(t *testing.T, what string, s *paging.Space, want []lab.Leaf) {
	t.Helper()
	rest := make(map[uint64]lab.Leaf)
	for _, x := range want {
		rest[x.From] = x
	}
	for m, err := range s.Ranges(mem.Range{First: 0, Last: 1<<47 - 1}) {
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		for at := m.First; at-m.First < m.Size; {
			x, ok := rest[at]
			o := at - m.First
			if !ok || x.Size > m.Size-o || uint64(m.Phys)+o != x.To || m.Perm.String()[:3] != x.Rights {
				t.Fatalf("%s: %#x to %#x, %s; the monitor has %+v", what, at, uint64(m.Phys)+o, m.Perm, x)
			}
			if _, together, err := s.Translate(at); err != nil || together != x.Size {
				t.Errorf("%s: %#x: a page of %#x bytes, %v; want %#x", what, at, together, err, x.Size)
			}
			delete(rest, at)
			at += x.Size
		}
	}
	if len(want) < 20 || len(rest) > 0 {
		t.Errorf("%s: of %d pages %d are not mapped", what, len(want), len(rest))
	}
}

// tellCrash asks gdb for all stacks.
func tellCrash(t *testing.T, l *lab.Lab) {
	t.Helper()
	args := []string{"-t", l.MemoryFile, "--registers", "vm0=vms[0].regs"}
	for _, m := range l.Machines {
		args = append(args, "--symbols", m.Symbols())
	}
	args = append(args, "gdb", "--", "-batch", "-nh", "-ex", "thread apply all -q backtrace")
	out, err := exec.CommandContext(t.Context(), image.binary, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	rest := string(out)
	for _, want := range []string{
		"wild_store (item=0x500000001fc8) at ", "crash (item=0x500000001fc8, how=1) at ", "by_almanac (item=0x500000001fc8, round=3)",
		"weigh (item=0x500000001fc8, round=3)", "take_stock (round=3)", "one_round (round=3)", "work (start=0x600000000000)", "start () at ",
		"vmx_enter () at ", "vmx_run (vm=", "turn (vm=", "cpu_start (cpu=0)", "start64 () at ",
	} {
		_, behind, ok := strings.Cut(rest, fmt.Sprintf(" %s", want))
		if !ok {
			t.Fatalf("no %q behind the ones before:\n%s", want, out)
		}
		rest = behind
	}
}
