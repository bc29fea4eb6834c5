package session_test

import (
	"errors"
	"strconv"
	"strings"
	"testing"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/session"
	"nestdbg/internal/svm/svmtest"
	"nestdbg/internal/vmx/vmxtest"
)

func number(s string) (uint64, error) { return strconv.ParseUint(s, 0, 64) }

func stage(t *testing.T, w string, root mem.Phys) session.Hint {
	t.Helper()
	h, err := session.StageHint("--second-stage", "l1", w+":"+strconv.FormatUint(uint64(root), 10), number)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// What a person says is believed where it can be true, marked, and refused in one line
// where it cannot.
func TestAssume(t *testing.T) {
	w := nestedtest.New()
	g := w.Guest()
	v := g.CPU(text+0x40, text+0x3f00)
	v.Park(text+0x9000, text+0x3f00, svmtest.Values{"EFER": 0xd01}) // no SVME: no search finds it
	odd := w.Take()
	w.RAM.Put(odd, svmtest.VMCB(svmtest.Values{"NP_ENABLE": 0}))
	control := func(at mem.Phys) session.Hint { return session.ControlHint("--vmcb", "l1", "VMCB", uint64(at)) }
	for name, c := range map[string]struct {
		assume  session.Assumptions
		problem string
		given   string // the evidence of vm0
	}{
		"nothing":             {session.Assumptions{}, "", ""},
		"a VMCB":              {session.Assumptions{Hints: []session.Hint{control(v.Control)}}, "", "given by --vmcb"},
		"inside a page":       {session.Assumptions{Hints: []session.Hint{control(v.Control + 8)}}, "0x8 into one", ""},
		"an empty page":       {session.Assumptions{Hints: []session.Hint{control(0x3ff000)}}, "is empty", ""},
		"outside RAM":         {session.Assumptions{Hints: []session.Hint{control(0x900000)}}, "no RAM", ""},
		"no nested paging":    {session.Assumptions{Hints: []session.Hint{control(odd)}}, "nested paging is off", ""},
		"no such machine":     {session.Assumptions{Hints: []session.Hint{session.ControlHint("--vmcb", "vm7", "VMCB", 0)}}, `no machine "vm7"`, ""},
		"no such kind":        {session.Assumptions{Hints: []session.Hint{session.ControlHint("--vmcx", "l1", "VMCX", 0)}}, "not known", ""},
		"a second stage":      {session.Assumptions{Hints: []session.Hint{stage(t, "npt4", g.NPT.Root())}}, "", "given by --second-stage"},
		"both":                {session.Assumptions{Hints: []session.Hint{control(v.Control), stage(t, "npt4", g.NPT.Root())}}, "", "its second stage is given by"},
		"no tables there":     {session.Assumptions{Hints: []session.Hint{stage(t, "npt4", 0x3ff000)}}, "map nothing", ""},
		"tables nowhere":      {session.Assumptions{Hints: []session.Hint{stage(t, "npt4", 0x900000)}}, "no RAM", ""},
		"no place of a table": {session.Assumptions{Hints: []session.Hint{stage(t, "npt4", 0x3ff008)}}, "not at such an address", ""},
		"a root":              {session.Assumptions{Roots: map[string]uint64{"": uint64(w.Tables.Root())}}, "", ""},
		"no root":             {session.Assumptions{Roots: map[string]uint64{"l1": 0x3ff000}}, "map anything", ""},
	} {
		s := session.New(nestedtest.NewStill(w, w.Host(0, text+0x200, text+0x3f00)))
		s.Assume(c.assume)
		tower, err := s.Look(t.Context(), session.Full)
		if c.problem != "" {
			var assumed *session.AssumptionError
			if !errors.As(err, &assumed) || !strings.Contains(err.Error(), c.problem) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %v", name, err)
			}
			if _, err := s.Look(t.Context(), session.Full); err != nil {
				t.Errorf("%s: the machine ran on, and is not looked at: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if want := map[bool]int{true: 2, false: 1}[c.given != ""]; len(tower.Machines) != want {
			t.Errorf("%s: %d machines", name, len(tower.Machines))
		} else if want == 2 && !strings.Contains(strings.Join(tower.Machines[1].Evidence, "\n"), c.given) {
			t.Errorf("%s: %q", name, tower.Machines[1].Evidence)
		}
	}
}

// A second stage and page tables are enough to read memory; no register is made up.
func TestAssumeMemory(t *testing.T) {
	w := nestedtest.New()
	g := w.Guest()
	g.Write(g.TextPhys(text+0x10), []byte("gast"))
	s := session.New(nestedtest.NewStill(w, w.Host(0, text+0x200, text+0x3f00)))
	s.Assume(session.Assumptions{Hints: []session.Hint{stage(t, "npt4", g.NPT.Root())},
		Roots: map[string]uint64{"vm0": uint64(g.Tables.Root())}})
	if _, err := s.Look(t.Context(), session.Full); err != nil {
		t.Fatal(err)
	}
	m, err := s.Machine("")
	if err != nil || m.Name != "vm0" || len(m.CPUs) != 1 {
		t.Fatal(m, err)
	}
	c := m.CPUs[0]
	if _, ok := c.Regs.PC(); ok || c.State != machine.Lost || c.Control != 0 {
		t.Errorf("CPU %+v", c)
	}
	v, err := s.VirtMemory(m, c)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if _, err := v.ReadVirt(b, mem.Virt(text+0x10)); err != nil || string(b) != "gast" {
		t.Errorf("%q, %v", b, err)
	}
}

// A VMCS whose layout is not known to have an EPT pointer has the second stage that is given
// with it, if there is one such.
func TestAssumeStageOfVMCS(t *testing.T) {
	w := nestedtest.New()
	g, other := w.EPTGuest(), w.EPTGuest()
	at := w.Take()
	w.RAM.Put(at, g.VMCS(vmxtest.VMware, text+0x40, text+0x100, nil))
	vmcs := session.ControlHint("--vmcs", "l1", "VMCS", uint64(at))
	for name, c := range map[string]struct {
		hints   []session.Hint
		problem string
	}{
		"alone":              {[]session.Hint{vmcs}, "--second-stage says what it is"},
		"with its stage":     {[]session.Hint{vmcs, stage(t, "ept4", g.NPT.Root())}, ""},
		"in the other order": {[]session.Hint{stage(t, "ept4", g.NPT.Root()), vmcs}, ""},
		"with two":           {[]session.Hint{vmcs, stage(t, "ept4", g.NPT.Root()), stage(t, "ept4", other.NPT.Root())}, "which of 2 is not known"},
		"with none there":    {[]session.Hint{vmcs, stage(t, "ept4", 0x3ff000)}, "map nothing"},
	} {
		s := session.New(nestedtest.NewStill(w, w.Host(0, text+0x200, text+0x3f00)))
		s.Assume(session.Assumptions{Hints: c.hints})
		tower, err := s.Look(t.Context(), session.Full)
		if c.problem != "" {
			if err == nil || !strings.Contains(err.Error(), c.problem) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || len(tower.Machines) != 2 {
			t.Errorf("%s: %v", name, err)
			continue
		}
		vm := tower.Machines[1]
		pc, _ := vm.CPUs[0].Regs.PC()
		if pc != text+0x40 || vm.Second.Space.Root() != g.NPT.Root() || vm.CPUs[0].Control != at {
			t.Errorf("%s: pc %#x, second stage at %#x, %+v", name, pc, vm.Second.Space.Root(), vm.Evidence)
		}
	}
}
