package nested_test

import (
	"slices"
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
	"nestdbg/internal/nested"
	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/svm/svmtest"
	"nestdbg/internal/vmx/vmxtest"
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

// A control block that a CPU or what it saved names is a guest's although no entry takes it:
// that is when its author looks at it.
func TestEntryFails(t *testing.T) {
	svmCase := func(pc uint64, values svmtest.Values) func() (*nestedtest.World, *arch.Registers, *arch.Registers) {
		return func() (*nestedtest.World, *arch.Registers, *arch.Registers) {
			w := nestedtest.New()
			v := w.Guest().CPU(pc, stack)
			v.Park(pc, stack, values)
			named := w.Host(0, text+0x200, stack)
			named.Set("vm_vmcb", uint64(v.Control))
			return w, w.Host(0, text+0x200, stack), named
		}
	}
	vmxCase := func(pc uint64, values vmxtest.Values) func() (*nestedtest.World, *arch.Registers, *arch.Registers) {
		return func() (*nestedtest.World, *arch.Registers, *arch.Registers) {
			w, g := vmxWorld()
			at := w.Take()
			page := g.VMCS(vmxtest.KVM, pc, exitHandler, values)
			w.RAM.Put(at, page)
			return w, w.Host(0, text+0x200, stack), g.UnderVMX(false, at, page, text+0x200)
		}
	}
	const invalid, nowhere = 1<<64 - 1, text + 0x9000
	for wrong, world := range map[string]func() (w *nestedtest.World, unnamed, named *arch.Registers){
		"EFER.SVME clear":                svmCase(text+0x10, svmtest.Values{"EFER": 0xd01}),
		"ASID 0":                         svmCase(nowhere, svmtest.Values{"ASID": 0, "EXITCODE": invalid}),
		"CR0.CD clear with NW set":       svmCase(nowhere, svmtest.Values{"CR0": 0xa0050033, "ASID": 0x10000, "EXITCODE": invalid}),
		"guest CR4.VMXE clear":           vmxCase(text+0x10, vmxtest.Values{"guest CR4": 0x7406b0}),
		"guest RFLAGS bit 1 clear":       vmxCase(nowhere, vmxtest.Values{"guest RFLAGS": 0x200, "exit reason": 1<<31 | 33}),
		"host CR4.VMXE clear":            vmxCase(nowhere, vmxtest.Values{"host CR4": 0x740ea0, "VM-instruction error": 8}),
		"primary controls: a reserved b": vmxCase(text+0x10, vmxtest.Values{"primary controls": 0xb1a06dfa}),
	} {
		w, unnamed, named := world()
		if tower := new(nested.Finder).Build(w.Machine(unnamed), scan); len(tower.Machines) != 1 {
			t.Errorf("%s: found by content:\n%s", wrong, outline(tower))
		}
		for _, opt := range []nested.Options{scan, {}} {
			tower := new(nested.Finder).Build(w.Machine(named.Clone()), opt)
			if len(tower.Machines) != 2 {
				t.Errorf("%s: the tower is\n%s", wrong, outline(tower))
				continue
			}
			vm := tower.Machines[1]
			c := vm.CPUs[0]
			if c.State != machine.Parked || !strings.HasSuffix(c.Why, "its next VM entry fails") {
				t.Errorf("%s: %s after %q", wrong, c.State, c.Why)
			}
			if d, err := nested.Describe(vm, c); err != nil || !slices.ContainsFunc(wrongs(d), func(s string) bool { return strings.HasPrefix(s, wrong) }) {
				t.Errorf("%s: %v", wrong, err)
			}
		}
		lines, all := search(t, w.Machine(named))
		if len(lines) == 0 || !strings.HasPrefix(lines[0], "entry fails ") || all[0].Machine != "vm0" || len(all[0].Against) == 0 {
			t.Errorf("%s: found %q", wrong, lines)
		}
	}
}

// Of an entry that was refused, the host save area tells whose it was; the CPU may have
// entered another since.
func TestEntryFailsSaved(t *testing.T) {
	w := nestedtest.New()
	v := w.Guest().CPU(text+0x10, stack)
	v.Park(text+0x10, stack, svmtest.Values{"EFER": 0xd01})
	w.Save(0, v, text+0x103, stack)
	lines, all := search(t, w.Machine(w.Host(0, text+0x200, stack)))
	candidates(t, lines, "entry fails VMCB", "host save host save area")
	if len(all) > 0 && all[0].At != v.Control {
		t.Errorf("at %#x, want %#x", all[0].At, v.Control)
	}
}
