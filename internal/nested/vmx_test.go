package nested_test

import (
	"fmt"
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/nested"
	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/svm/svmtest"
	"nestdbg/internal/vmx/vmxtest"
)

const exitHandler = text + 0x300

// vmxWorld is a machine with one guest under VMX, whose text says so.
func vmxWorld() (*nestedtest.World, *nestedtest.Guest) {
	w := nestedtest.New()
	g := w.EPTGuest()
	g.Write(g.TextPhys(text), []byte("text of the guest"))
	return w, g
}

// readsText fails unless the guest's text is read through both stages.
func readsText(t *testing.T, tower *machine.Tower) {
	t.Helper()
	vm := tower.Machines[1]
	space, err := vm.Space(vm.CPUs[0])
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 17)
	if _, err := space.ReadVirt(b, mem.Virt(text)); err != nil || string(b) != "text of the guest" {
		t.Errorf("%q, %v", b, err)
	}
}

// A VMCS in memory is found by its content, in every layout that is published, with the
// guest's registers and its second stage.
func TestVMCSByContent(t *testing.T) {
	for _, kind := range vmxtest.Kinds {
		w, g := vmxWorld()
		at := w.Take()
		w.RAM.Put(at, g.VMCS(kind, text+0x10, exitHandler, nil))
		tower := new(nested.Finder).Build(w.Machine(w.Host(0, text+0x200, 0)), scan)
		check(t, tower, "l1.0 running on 0 at +0x200", "vm0.0 parked on -1 at +0x10")
		vm := tower.Machines[1]
		if vm.CPUs[0].Control != at || vm.Second.Kind != "ept4" || vm.Second.Space.Root() != g.NPT.Root() {
			t.Errorf("%s: VMCS at %#x, %s at %#x", kind, vm.CPUs[0].Control, vm.Second.Kind, vm.Second.Space.Root())
		}
		if why := vm.CPUs[0].Why; why != "EPT violation" {
			t.Errorf("%s: left because of %q", kind, why)
		}
		readsText(t, tower)
	}
}

// Whether user mode has an execute permission of its own stands in the VMCS.
func TestVMCSModeBased(t *testing.T) {
	w, g := vmxWorld()
	w.RAM.Put(w.Take(), g.VMCS(vmxtest.KVM, text+0x10, exitHandler, vmxtest.Values{"secondary controls": 0x4010ee}))
	tower := new(nested.Finder).Build(w.Machine(w.Host(0, text+0x200, 0)), scan)
	check(t, tower, "l1.0 running on 0 at +0x200", "vm0.0 parked on -1 at +0x10")
	if kind := tower.Machines[1].Second.Kind; kind != "ept4-mbec" {
		t.Errorf("second stage %s", kind)
	}
}

// Under KVM the page of an active VMCS in memory may hold a header and nothing else: the
// device state has the rest, also L1's own state while the guest runs.
func TestVMCSInDeviceState(t *testing.T) {
	w, g := vmxWorld()
	at := w.Take()
	w.RAM.Put(at, vmxtest.Page(vmxtest.KVM, nil))
	page := g.VMCS(vmxtest.KVM, text+0x10, exitHandler, nil)

	running := new(nested.Finder).Build(w.Machine(g.UnderVMX(true, at, page, text+0x20)), nested.Options{})
	check(t, running, "l1.0 hosting on 0 at +0x300", "vm0.0 running on 0 at +0x20")
	readsText(t, running)
	host := running.Machines[0].CPUs[0].Regs
	for name, want := range map[string]uint64{"cr3": uint64(w.Tables.Root()), "rsp": 0xffffc900803fb950, "gs_base": 0xffff88807bf00000, "cpl": 0} {
		if v, ok := host.Get(name); !ok || v != want {
			t.Errorf("L1's %s is %#x (%v), want %#x", name, v, ok, want)
		}
	}
	if v, ok := host.Get("rax"); ok {
		t.Errorf("L1's RAX is known: %#x", v)
	}
	if running.Machines[1].CPUs[0].Regs.ControlBlock() != nil {
		t.Error("the guest's CPU has the control block of its hypervisor")
	}

	parked := new(nested.Finder).Build(w.Machine(g.UnderVMX(false, at, page, text+0x200)), nested.Options{})
	check(t, parked, "l1.0 running on 0 at +0x200", "vm0.0 parked on -1 at +0x10")
	readsText(t, parked)

	// Without the device state's word, memory has nothing to go by.
	alone := new(nested.Finder).Build(w.Machine(w.Host(0, text+0x200, 0)), scan)
	check(t, alone, "l1.0 running on 0 at +0x200")
}

// Of memory alone, the VMCS says in which mode its hypervisor pages: nothing is guessed.
func TestVMCSStatesTheMode(t *testing.T) {
	w, g := vmxWorld()
	w.RAM.Put(w.Take(), g.VMCS(vmxtest.Bochs, text+0x10, exitHandler, nil))
	m := &machine.Machine{Name: "l1", Level: 1, Arch: arch.X86, Phys: w.RAM}
	tower := new(nested.Finder).Build(m, scan)
	if len(tower.Machines) != 2 || m.Mode == nil {
		t.Fatalf("the tower is\n%sproblems %q", outline(tower), tower.Problems)
	}
	for _, p := range tower.Problems {
		if strings.Contains(p, "taken to be") {
			t.Errorf("problem %q", p)
		}
	}
	space, err := m.SpaceAt(uint64(w.Tables.Root()))
	if err != nil || space.Format().Name != "x86-4level" {
		t.Fatalf("L1 pages by %v, %v", space, err)
	}
	if pa, _, err := space.Translate(text); err != nil || pa != w.TextPhys(text) {
		t.Errorf("L1's text is at %#x, %v", pa, err)
	}
	readsText(t, tower)
}

func TestVMXLand(t *testing.T) {
	const handler = 0xffffffff81234567
	for name, c := range map[string]struct {
		info  uint64
		pc    uint64
		sp    bool
		other vmxtest.Values
	}{
		"plain":         {0, text + 0x10, false, nil},
		"not valid":     {0x30e, text + 0x10, false, nil},
		"interrupt":     {0x80000030, text + 0x10, true, vmxtest.Values{"guest RFLAGS": 0x202}},
		"NMI":           {0x80000202, text + 0x10, true, nil},
		"page fault":    {0x80000b0e, handler, false, nil},
		"software":      {0x8000040e, handler, false, nil},
		"other (MTF)":   {0x80000700, text + 0x10, false, nil},
		"in the device": {0x80000b0e, handler, false, nil},
	} {
		w, g := vmxWorld()
		g.Write(g.TextPhys(text+0x1000+14*16), gate(handler))
		values := vmxtest.Values{"guest IDTR base": text + 0x1000, "VM-entry interruption information": c.info}
		for k, v := range c.other {
			values[k] = v
		}
		at := w.Take()
		page := g.VMCS(vmxtest.KVM, text+0x10, exitHandler, values)
		cpu := w.Host(0, text+0x200, 0)
		if name == "in the device" {
			w.RAM.Put(at, vmxtest.Page(vmxtest.KVM, nil))
			cpu = g.UnderVMX(false, at, page, text+0x200)
		} else {
			w.RAM.Put(at, page)
		}
		tower := new(nested.Finder).Build(w.Machine(cpu), scan)
		if len(tower.Machines) != 2 {
			t.Errorf("%s: the tower is\n%s", name, outline(tower))
			continue
		}
		vm := tower.Machines[1]
		l, err := nested.Land(vm, vm.CPUs[0])
		if err != nil || l.PC != c.pc || (l.SP != nil) != c.sp {
			t.Errorf("%s: %#x with SP %v, %v; want %#x", name, l.PC, l.SP, err, c.pc)
		}
	}
}

// VMLAUNCH has no operand, VMRUN has RAX.
func TestVMXEntering(t *testing.T) {
	w, g := vmxWorld()
	r := g.UnderVMX(false, 0x5000, nil, text)
	r.Set("rax", 0x123000)
	m := w.Machine(r)
	if at, ok := nested.Entering(m, m.CPUs[0]); !ok || at != 0x5000 {
		t.Errorf("%#x, %v", at, ok)
	}
}

// A VMCS that no entry would take is described by its fields and by what is wrong.
func TestDescribeVMCS(t *testing.T) {
	w, g := vmxWorld()
	at := w.Take()
	w.RAM.Put(at, g.VMCS(vmxtest.KVM, text+0x10, exitHandler, vmxtest.Values{"exit qualification": 0x182, "guest-physical address": 0xfee00000}))
	tower := new(nested.Finder).Build(w.Machine(w.Host(0, text+0x200, 0)), scan)
	vm := tower.Machines[1]
	d, err := nested.Describe(vm, vm.CPUs[0])
	if err != nil {
		t.Fatal(err)
	}
	if d.Kind != "VMCS" || d.At != at || d.Exit != "EPT violation" || d.Fault == nil || d.Fault.Addr != 0xfee00000 || len(d.Fields) < 140 {
		t.Errorf("%s at %#x: %s, %+v, %d fields", d.Kind, d.At, d.Exit, d.Fault, len(d.Fields))
	}
	if bad := wrongs(d); len(bad) != 0 {
		t.Errorf("VM entry would refuse it: %q", bad)
	}
	w.RAM.Put(at, g.VMCS(vmxtest.KVM, text+0x10, exitHandler, vmxtest.Values{"guest CR4": 0x6b0, "guest RFLAGS": 0x200}))
	if d, err = nested.Describe(vm, vm.CPUs[0]); err != nil {
		t.Fatal(err)
	}
	if bad := wrongs(d); fmt.Sprintf("%q", bad) != `["guest CR4.VMXE clear" "guest RFLAGS bit 1 clear"]` {
		t.Errorf("VM entry would refuse it: %q", bad)
	}
	if notes := strings.Join(d.Notes, "; "); !strings.Contains(notes, "KVM vmcs12") || !strings.Contains(notes, "fits no layout") {
		t.Errorf("notes %q", notes)
	}
}

// What QEMU's emulation of SVM leaves in a VMCB means nothing in a VMCS, which has the
// guest-physical address there.
func TestVMXDeliversNothing(t *testing.T) {
	w, g := vmxWorld()
	w.RAM.Put(w.Take(), g.VMCS(vmxtest.KVM, text+0x10, exitHandler, vmxtest.Values{"guest-physical address": 0x30}))
	root := w.Machine(w.Host(0, text+0x200, 0))
	tower := new(nested.Finder).Build(root, scan)
	if d := nested.NewDeliveries(root, nil, tower); len(d.Blocks()) != 1 || d.Pending() {
		t.Errorf("blocks %#x, pending %v", d.Blocks(), d.Pending())
	}
	w = nestedtest.New()
	v := w.Guest().CPU(text+0x10, stack)
	v.Park(text+0x10, stack, svmtest.Values{"EVENTINJ": 0x30})
	root = w.Machine(w.Host(0, text+0x200, 0))
	tower = new(nested.Finder).Build(root, scan)
	if d := nested.NewDeliveries(root, nil, tower); len(d.Blocks()) != 1 || !d.Pending() {
		t.Errorf("blocks %#x, pending %v", d.Blocks(), d.Pending())
	}
}
