package nested_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/nested"
	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/paging"
	"nestdbg/internal/paging/pagingtest"
	"nestdbg/internal/svm/svmtest"
)

// search builds the tower and searches it; each candidate is a line.
func search(t *testing.T, m *machine.Machine) (lines []string, all []nested.Candidate) {
	t.Helper()
	tower := new(nested.Finder).Build(m, scan)
	all, problems := nested.Find(tower, scan)
	if len(problems) != 0 {
		t.Errorf("problems %q", problems)
	}
	for _, c := range all {
		at := fmt.Sprintf("%s %s", c.State, c.Kind)
		if c.Machine != "" {
			at += fmt.Sprintf(" %s.%d", c.Machine, c.CPU)
		}
		lines = append(lines, at)
	}
	return lines, all
}

func candidates(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

// One guest runs, one is parked; one is gone, one is a copy; the host save area names what
// is in use.
func TestFind(t *testing.T) {
	w := nestedtest.New()
	running, parked, gone := w.Guest().CPU(text, stack), w.Guest().CPU(text+0x40, stack), w.Guest().CPU(text, stack)
	w.Save(0, running, text+0x103, stack)
	w.RAM.Put(gone.Guest.NPT.Root(), make([]byte, 4096))
	w.RAM.Put(w.Take(), read(t, w, parked.Control))
	lines, all := search(t, w.Machine(running.Running(0, text+0x20, stack)))
	candidates(t, lines, "executing VMCB vm0.0", "live VMCB vm1.0", "stale VMCB", "stale VMCB", "host save host save area")
	if c := all[0]; c.At != running.Control || c.Score != 100 || c.Second != "npt4" || c.Root != running.Guest.NPT.Root() || *c.PC != text+0x20 {
		t.Errorf("%+v", c)
	}
	if c := all[1]; c.At != parked.Control || c.Score <= 60 || *c.PC != text+0x40 || !slices.Contains(c.Evidence, "found by content") {
		t.Errorf("%+v", c)
	}
	var why []string
	for _, c := range all[2:4] {
		why = append(why, c.Against[len(c.Against)-1])
		if c.Score > 25 || c.Score >= all[1].Score {
			t.Errorf("%+v", c)
		}
	}
	text := strings.Join(why, "\n")
	if !strings.Contains(text, "leads nowhere") || !strings.Contains(text, fmt.Sprintf("the same state of the same CPU is at %#x", parked.Control)) {
		t.Error(text)
	}
	if c := all[4]; c.At != w.HostSave(0) || !strings.Contains(c.Evidence[0], fmt.Sprintf("VMCB at %#x", running.Control)) {
		t.Errorf("%+v", c)
	}
}

// A second stage of which no control block is known is found by its tables, in the format
// that the hypervisor can have.
func TestFindRoots(t *testing.T) {
	for _, format := range []string{"npt4", "npt5", "ept4", "ept5"} {
		w := nestedtest.New()
		b := pagingtest.New(format, w.RAM, pagingtest.NewFrames(mem.Range{First: 0x180000, Last: 0x1fffff}, 9))
		all := b.Express(paging.Read | paging.Write | paging.Exec)
		for i := range uint64(30) {
			b.Map(i<<12, mem.Phys(0x120000+(i*7%30)<<12), 4096, all)
		}
		device := w.Host(0, text, stack)
		if format[0] == 'e' {
			device.Set("efer", 0xd01)
			device.Set("cr4", 0x742ea0)
		} else if format == "npt5" {
			device.Set("cr4", 0x741ea0)
		}
		_, found := search(t, w.Machine(device))
		if len(found) != 1 || found[0].State != nested.Possible || found[0].At != b.Root() || found[0].Second != format || found[0].Mapped != 30<<12 {
			t.Errorf("%s: %+v", format, found)
		}
	}
}

// What has nothing in it that runs a guest: no candidate that could be one.
func TestFindNothing(t *testing.T) {
	w := nestedtest.New()
	lines, _ := search(t, w.Machine(w.Host(0, text, stack)))
	candidates(t, lines)

	for i := range uint64(100) {
		w.RAM.Put(w.Take(), svmtest.VMCB(svmtest.Values{"nCR3": 0x200000 + i<<13, "CR3": i << 12, "RIP": text + i<<4}))
	}
	lines, _ = search(t, w.Machine(w.Host(0, text, stack)))
	if len(lines) != 100 || slices.ContainsFunc(lines, func(s string) bool { return s != "stale VMCB" }) {
		t.Errorf("%d: %q", len(lines), lines)
	}
}

// A page that a guest can reach says so.
func TestFindInGuest(t *testing.T) {
	w := nestedtest.New()
	g := w.Guest()
	v := g.CPU(text, stack)
	w.Save(0, v, text+0x103, stack)
	g.Write(0x70000, svmtest.VMCB(nil)) // of the guest's own hypervisor
	lines, all := search(t, w.Machine(v.Running(0, text, stack)))
	candidates(t, lines, "executing VMCB vm0.0", "stale VMCB", "stale VMCB", "host save host save area")
	if c := all[1]; !strings.Contains(strings.Join(c.Against, "\n"), "it is memory of vm0, at 0x70000 there") || all[2].In != "vm0" {
		t.Errorf("%+v", all[1:3])
	}
}

// What a person says of is listed as said, with what speaks against it.
func TestFindGiven(t *testing.T) {
	w := nestedtest.New()
	v, g := w.Guest().CPU(text+0x9000, stack), w.Guest()
	v.Park(text+0x9000, stack, svmtest.Values{"EFER": 0xd01})
	opt := scan
	opt.Hints = []nested.Hint{{Flag: "--vmcb", In: "l1", Control: "VMCB", At: v.Control},
		{Flag: "--second-stage", In: "l1", Second: paging.NPTFourLevel, At: g.NPT.Root()}}
	all, _ := nested.Find(new(nested.Finder).Build(w.Machine(w.Host(0, text, stack)), opt), opt)
	said := make(map[mem.Phys]string)
	for _, c := range all {
		if c.State == nested.Given {
			said[c.At] = c.Kind + " " + c.Machine + ": " + strings.Join(c.Evidence, "; ")
		}
	}
	if len(said) != 2 || !strings.Contains(said[v.Control], "VMCB vm0: ") || !strings.Contains(said[v.Control], "given by --vmcb") ||
		!strings.Contains(said[g.NPT.Root()], "root of npt4 vm1: ") || !strings.Contains(said[g.NPT.Root()], "given by --second-stage") {
		t.Errorf("%v", said)
	}
}
