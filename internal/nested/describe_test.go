package nested_test

import (
	"slices"
	"strings"
	"testing"

	"nestdbg/internal/nested"
	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/svm/svmtest"
)

// wrongs are the conditions of a VM entry that a control block breaks.
func wrongs(d *nested.Description) (out []string) {
	for _, c := range d.Checks {
		if !c.OK {
			out = append(out, c.Wrong)
		}
	}
	return out
}

// A control block that a person says is a VMCB is described as one, and kept from guests as
// one, however broken it is: any page can be read as a VMCS.
func TestBrokenVMCB(t *testing.T) {
	for wrong, values := range map[string]svmtest.Values{
		"EFER.SVME clear":       {"EFER": 0xd01},
		"ASID 0":                {"ASID": 0},
		"VMRUN intercept clear": {"intercepts 4": 0x6e4e},
	} {
		w := nestedtest.New()
		v := w.Guest().CPU(text+0x10, stack)
		v.Park(text+0x10, stack, values)
		v.Guest.NPT.Map(0x10_0000, v.Control, 4096, rw)
		opt := nested.Options{Hints: []nested.Hint{{Flag: "--vmcb", In: "l1", Control: "VMCB", At: v.Control}}}
		tower := new(nested.Finder).Build(w.Machine(w.Host(0, text+0x200, 0)), opt)
		check(t, tower, "l1.0 running on 0 at +0x200", "vm0.0 parked on -1 at +0x10")
		vm := tower.Machines[1]
		d, err := nested.Describe(vm, vm.CPUs[0])
		if err != nil {
			t.Fatal(err)
		}
		if got := wrongs(d); d.Kind != "VMCB" || !slices.Equal(got, []string{wrong}) {
			t.Errorf("%s: a %s with %q", wrong, d.Kind, got)
		}
		exposed := says(nested.NewAudit(tower, nil))
		if !strings.Contains(exposed, "VMCB of vm0 CPU 0 of l1") || strings.Contains(exposed, "VMCS") {
			t.Errorf("%s: %s", wrong, exposed)
		}
		if l, err := nested.Land(vm, vm.CPUs[0]); err == nil {
			t.Errorf("%s: it lands at %#x", wrong, l.PC)
		}
	}
}
