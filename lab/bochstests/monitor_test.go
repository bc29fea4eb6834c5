package bochstests

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
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
	l, stacks := stopInGuest(t)
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
	sizes := make(map[uint64]int)
	for _, x := range truth["vm0"].Second {
		sizes[x.Size]++
	}
	if sizes[4<<10] < 20 || sizes[2<<20] != 2 || sizes[1<<30] != 1 {
		t.Errorf("pages by size %v", sizes)
	}
	checkBlocks(t, l, truth)
	if a := askFile[audit](t, l.MemoryFile, "audit"); len(a.Shared)+len(a.Exposed) != 0 || len(a.Matrix) != 2 || a.Matrix[0][1] != 0 {
		t.Errorf("nothing is shared, and audit says %+v", a)
	}
	checkStacks(t, stacks, " wild_store (item=0x500000001fc8) at ", " crash (item=0x500000001fc8, how=1) at ",
		" by_almanac (item=0x500000001fc8, round=3000)", " weigh (item=0x500000001fc8, round=3000)", " take_stock (round=3000)",
		" one_round (round=3000)", " work (start=0x600000000000)", " start () at ",
		" vmx_enter () at ", inGuest, " turn (vm=", " cpu_start (cpu=0)", " start64 () at ")
}

// inGuest is in the stack of a monitor whose VM runs.
const inGuest = " vmx_run (vm="

// stopInGuest boots a lab in which VM 0 has crashed, late: what would come between has come,
// interrupts of a timer, say. Bochs is stopped at any moment, and in many the monitor answers a
// call of VM 1, on the stack that it had at its last entry. Of those moments nothing is known.
func stopInGuest(t *testing.T) (l *lab.Lab, stacks string) {
	t.Helper()
	for range 6 {
		l = lab.Start(t, lab.Options{Kind: lab.BochsMonitorKind, VMs: 2, Append: "crash=store crash-round=3000"})
		if stacks = allStacks(t, l); strings.Contains(stacks, inGuest) {
			break
		}
	}
	return l, stacks
}

// checkBlocks compares with the monitor's word which control blocks there are, and asks whether
// VM entry would take them.
func checkBlocks(t *testing.T, l *lab.Lab, truth map[string]*lab.Truth) {
	t.Helper()
	guests := make(map[string]bool)
	for _, c := range askFile[struct {
		Candidates []struct{ Kind, At, State string }
	}](t, l.MemoryFile, "find").Candidates {
		guests[c.At] = c.Kind == "VMCS" && c.State == "live"
	}
	for name, want := range truth {
		if !guests[fmt.Sprintf("%#x", want.Control)] || len(guests) != len(truth) {
			t.Errorf("the VMCS of %s is at %#x, found were %v", name, want.Control, guests)
		}
		blocks := askFile[struct {
			Blocks []struct {
				Exit   string
				Failed []struct{ Wrong, Seen string }
				Fields []struct{ Name string }
			}
		}](t, l.MemoryFile, "vmcs", "-m", name).Blocks
		if len(blocks) != 1 || blocks[0].Exit == "" || len(blocks[0].Fields) < 100 || len(blocks[0].Failed) > 0 {
			t.Errorf("%s: %+v", name, blocks)
		}
	}
}

// audit is what the tests need of a report of "audit".
type audit struct {
	Matrix [][]uint64
	Shared []struct {
		Bytes  uint64
		Ranges []struct{ First string }
	}
	Exposed []struct{ Machine, What, First string }
}

// TestMonitorCrashes: the other ways in which a program can end, each in a lab in which one more
// thing is wrong.
func TestMonitorCrashes(t *testing.T) {
	for _, c := range []struct {
		how, line string
		frames    []string
		cause     string // of a violation of EPT
	}{
		{"call", "", []string{"#0  0x0000000000000000 in ?? ()", " null_call (item=0x500000001fc8) at "}, ""},
		{"hole", " plant=page", []string{" store_in_hole (item=0x500000001fc8) at "}, "not-present"},
		{"readonly", " plant=table", []string{" store_in_almanac (item=0x500000001fc8) at "}, "permission"},
	} {
		t.Run(c.how, func(t *testing.T) {
			l := lab.Start(t, lab.Options{Kind: lab.BochsMonitorKind, VMs: 2, Append: "crash=" + c.how + c.line})
			said, err := os.ReadFile(l.Machines[0].Log)
			if err != nil {
				t.Fatal(err)
			}
			if c.cause != "" {
				checkFault(t, l, said, c.cause)
			}
			checkPlant(t, l, c.line, said)
			checkStacks(t, allStacks(t, l), append(c.frames, " by_almanac (item=0x500000001fc8, round=3)",
				" work (start=0x600000000000)", " start () at ")...)
		})
	}
}

// checkFault: vtop says which entry of EPT forbids what VM 0 did, and where.
func checkFault(t *testing.T, l *lab.Lab, said []byte, cause string) {
	t.Helper()
	at := regexp.MustCompile(`(?m)^crash vm0 second-stage address (0x[0-9a-f]+)`).FindSubmatch(said)
	v := askFile[struct {
		PA, Exit string
		Why      struct {
			Stage     int
			Cause, At string
		}
	}](t, l.MemoryFile, "vtop", "-m", "vm0", "--fault")
	if at == nil || v.PA != string(at[1]) || v.Why.Stage != 2 || v.Why.Cause != cause || v.Why.At == "" || !strings.Contains(v.Exit, "EPT violation") {
		t.Errorf("%+v; the monitor says %q", v, at)
	}
}

// checkPlant: what the monitor planted, audit reports: that and nothing else.
func checkPlant(t *testing.T, l *lab.Lab, line string, said []byte) {
	t.Helper()
	a := askFile[audit](t, l.MemoryFile, "audit")
	planted := regexp.MustCompile(`(?m)^plant \S+ (0x[0-9a-f]+)`).FindSubmatch(said)
	switch {
	case line == "":
		if len(a.Shared)+len(a.Exposed) > 0 {
			t.Errorf("nothing was planted, audit says %+v", a)
		}
	case planted == nil:
		t.Errorf("%s: nothing was planted", line)
	case strings.HasSuffix(line, "page"):
		if len(a.Shared) != 1 || len(a.Shared[0].Ranges) != 1 || a.Shared[0].Ranges[0].First != string(planted[1]) ||
			a.Shared[0].Bytes != 4096 || len(a.Exposed) != 0 {
			t.Errorf("planted the page %s, audit says %+v", planted[1], a)
		}
	default:
		if len(a.Exposed) != 1 || a.Exposed[0].First != string(planted[1]) || a.Exposed[0].Machine != "vm0" ||
			a.Exposed[0].What != "root of the second stage of vm0" || len(a.Shared) != 0 {
			t.Errorf("planted the table %s, audit says %+v", planted[1], a)
		}
	}
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

// allStacks is what gdb says of all machines.
func allStacks(t *testing.T, l *lab.Lab) string {
	t.Helper()
	args := []string{"-t", l.MemoryFile, "--registers", "vm0=vms[0].regs"}
	for _, m := range l.Machines {
		args = append(args, "--symbols", m.Symbols())
	}
	args = append(args, "gdb", "--", "-batch", "-nh", "-ex", "set width 0", "-ex", "thread apply all -q backtrace")
	out, err := exec.CommandContext(t.Context(), image.binary, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// checkStacks: what gdb said has these in this order.
func checkStacks(t *testing.T, stacks string, wants ...string) {
	t.Helper()
	rest := stacks
	for _, want := range wants {
		_, behind, ok := strings.Cut(rest, want)
		if !ok {
			t.Fatalf("no %q behind the ones before:\n%s", want, stacks)
		}
		rest = behind
	}
}
