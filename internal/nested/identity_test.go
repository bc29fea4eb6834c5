package nested_test

import (
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/nested"
	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/svm/svmtest"
)

// A machine keeps its name while its CPU parks and its tables move, found without
// a scan.
func TestKeepsItsName(t *testing.T) {
	w := nestedtest.New()
	g := w.Guest()
	v := g.CPU(text+0x10, stack)
	w.Save(0, v, text+0x103, stack)
	var f nested.Finder
	quick := nested.Options{}
	host := func() string { return "l1.0 running on 0 at +0x200" }
	check(t, f.Build(w.Machine(v.Running(0, text+0x20, stack)), quick), "l1.0 hosting on 0 at +0x103", "vm0.0 running on 0 at +0x20")
	check(t, f.Build(w.Machine(w.Host(0, text+0x200, stack)), quick), host(), "vm0.0 parked on -1 at +0x10")

	// The hypervisor builds new tables: the root moves, the VMCB stays.
	page := make([]byte, 4096)
	if _, err := w.RAM.ReadPhys(page, g.NPT.Root()); err != nil {
		t.Fatal(err)
	}
	moved := w.Take()
	w.RAM.Put(moved, page)
	w.RAM.Put(g.NPT.Root(), make([]byte, 4096))
	v.Park(text+0x11, stack, svmtest.Values{"nCR3": uint64(moved)})
	tower := f.Build(w.Machine(w.Host(0, text+0x200, stack)), quick)
	check(t, tower, host(), "vm0.0 parked on -1 at +0x11")
	if r := tower.Machines[1].Second.Space.Root(); r != moved {
		t.Errorf("root %#x, want %#x", r, moved)
	}

	// While it runs, what the CPU walks counts, not what the VMCB says.
	device := v.Running(0, text+0x21, stack)
	device.Set("nested_cr3", uint64(moved))
	v.Park(text, stack, svmtest.Values{"nCR3": 0x900000})
	tower = f.Build(w.Machine(device), quick)
	check(t, tower, "l1.0 hosting on 0 at +0x103", "vm0.0 running on 0 at +0x21")
	if r := tower.Machines[1].Second.Space.Root(); r != moved {
		t.Errorf("root %#x, want %#x", r, moved)
	}
}

// Two CPUs of one guest: when one runs on new tables and the other is still
// parked with the old root, they are one machine by what was known before, or two
// at the first sight.
func TestCPUsComeAndGo(t *testing.T) {
	w := nestedtest.New()
	g := w.Guest()
	v0, v1 := g.CPU(text+0x10, stack), g.CPU(text+0x11, stack)
	w.Save(0, v0, text+0x103, stack)
	var f nested.Finder
	check(t, f.Build(w.Machine(w.Host(0, text, stack)), scan),
		"l1.0 running on 0 at +0x0", "vm0.0 parked on -1 at +0x10", "vm0.1 parked on -1 at +0x11")
	check(t, f.Build(w.Machine(v1.Running(0, text+0x21, stack)), nested.Options{}),
		"l1.0 hosting on 0 at +0x103", "vm0.0 parked on -1 at +0x10", "vm0.1 running on 0 at +0x21")
	// The first one's VMCB is gone; the second one is the machine.
	w.RAM.Put(v0.Control, make([]byte, 4096))
	tower := f.Build(w.Machine(w.Host(0, text, stack)), nested.Options{})
	if len(tower.Machines) != 2 || tower.Machines[1].Name != "vm0" || len(tower.Machines[1].CPUs) != 1 ||
		tower.Machines[1].CPUs[0].Control != v1.Control {
		t.Errorf("the tower is\n%s", outline(tower))
	}
}

// The name of a machine that ended is not given to the next one, even if that
// has its pages.
func TestNamesAreNotReused(t *testing.T) {
	w := nestedtest.New()
	a, b := w.Guest(), w.Guest()
	a0, b0 := a.CPU(text+0x10, stack), b.CPU(text+0x20, stack)
	var f nested.Finder
	look := func() string { return outline(f.Build(w.Machine(w.Host(0, text, stack)), scan)) }
	l1 := "l1.0 running on 0 at +0x0\n"
	vm := func(name, at string) string { return name + ".0 parked on -1 at " + at + "\n" }
	for i, c := range []struct {
		change func()
		want   string
	}{
		{func() {}, vm("vm0", "+0x10") + vm("vm1", "+0x20")},
		{func() { w.RAM.Put(a0.Control, make([]byte, 4096)) }, vm("vm1", "+0x20")},
		{func() { a0.Park(text+0x12, stack, nil) }, vm("vm2", "+0x12") + vm("vm1", "+0x20")},
		{func() { w.RAM.Put(a0.Control, make([]byte, 4096)); w.RAM.Put(b0.Control, make([]byte, 4096)) }, ""},
		{func() { b0.Park(text+0x22, stack, nil) }, vm("vm3", "+0x22")},
	} {
		c.change()
		if got := look(); got != l1+c.want {
			t.Errorf("look %d:\n%swant\n%s", i, got, l1+c.want)
		}
	}
}

// VMCBs in the memory of a guest are machines of that guest, not of L1, which
// may not be said of what only looks like one.
func TestVMCBInGuestMemory(t *testing.T) {
	w := nestedtest.New()
	g := w.Guest()
	v := g.CPU(text+0x10, stack)
	page := svmtest.VMCB(svmtest.Values{"nCR3": 0x50000, "CR3": uint64(g.Tables.Root()), "CR4": 0x740ea0, "RIP": text})
	g.Write(0x50000, make([]byte, 4096)) // its nested tables map nothing
	g.Write(0x60000, page)
	check(t, new(nested.Finder).Build(w.Machine(w.Host(0, text, stack)), scan),
		"l1.0 running on 0 at +0x0", "vm0.0 parked on -1 at +0x10")
	if v.Control == 0 {
		t.Error("no VMCB")
	}
}

// A guest that sees all of L1's memory where it is, the hypervisor's own VMCB
// and tables included, is one machine all the same.
func TestGuestThatMapsItsParent(t *testing.T) {
	w := nestedtest.New()
	g := w.Guest()
	v := g.CPU(text+0x10, stack)
	b := g.NPT
	for a := uint64(0x400000); a < 0x800000; a += 0x200000 {
		b.Map(a, mem.Phys(a-0x400000), 0x200000, b.Express(7))
	}
	w.Save(0, v, text+0x103, stack)
	for _, opt := range []nested.Options{{}, scan} {
		tower := new(nested.Finder).Build(w.Machine(v.Running(0, text+0x20, stack)), opt)
		check(t, tower, "l1.0 hosting on 0 at +0x103", "vm0.0 running on 0 at +0x20")
	}
}
