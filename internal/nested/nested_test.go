package nested_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/nested"
	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/paging"
	"nestdbg/internal/svm/svmtest"
	"nestdbg/internal/vmx/vmxtest"
)

const (
	text  = uint64(nestedtest.Text)
	stack = text + 0x3f00
)

// outline is a tower in one line per CPU: machine, its CPU, state, QEMU's CPU,
// program counter.
func outline(t *machine.Tower) string {
	var b strings.Builder
	for _, m := range t.Machines {
		for _, c := range m.CPUs {
			pc, ok := c.Regs.PC()
			fmt.Fprintf(&b, "%s.%d %s on %d at ", m.Name, c.Index, c.State, c.On)
			if ok {
				fmt.Fprintf(&b, "+%#x\n", pc-text)
			} else {
				b.WriteString("?\n")
			}
		}
	}
	return b.String()
}

func check(t *testing.T, tower *machine.Tower, lines ...string) {
	t.Helper()
	if got, want := outline(tower), strings.Join(lines, "\n")+"\n"; got != want {
		t.Errorf("the tower is\n%swant\n%sproblems %q", got, want, tower.Problems)
	}
}

// scan is what a first look does where no hypervisor is understood.
var scan = nested.Options{Scan: true}

func TestGuestMode(t *testing.T) {
	w := nestedtest.New()
	v := w.Guest().CPU(text, 0)
	w.Save(0, v, text+0x103, stack)
	regs := v.Running(0, text+0x20, stack)
	regs.Set("rbx", 0xb)
	tower := new(nested.Finder).Build(w.Machine(regs), nested.Options{})
	check(t, tower, "l1.0 hosting on 0 at +0x103", "vm0.0 running on 0 at +0x20")
	if len(tower.Problems) != 0 {
		t.Errorf("problems: %q", tower.Problems)
	}
	l1, vm := tower.Machines[0], tower.Machines[1]
	if vm.Level != 2 || vm.Parent != l1 || vm.Second.Kind != "npt4" || vm.Second.Space.Root() != v.Guest.NPT.Root() {
		t.Errorf("level %d, parent %v, %s at %#x", vm.Level, vm.Parent, vm.Second.Kind, vm.Second.Space.Root())
	}
	host, guest := l1.CPUs[0], vm.CPUs[0]
	if host.EntryPC != text+0x103 || guest.Control != v.Control {
		t.Errorf("entered before %#x with %#x", host.EntryPC, guest.Control)
	}
	for _, c := range []struct {
		of    *arch.Registers
		reg   string
		value uint64
		known bool
	}{
		{guest.Regs, "rbx", 0xb, true},
		{guest.Regs, "cr3", uint64(v.Guest.Tables.Root()), true},
		// What the CPU says of its virtualisation is not the guest's to have.
		{guest.Regs, "guest_mode", 0, false},
		{guest.Regs, "nested_cr3", 0, false},
		{guest.Regs, "vm_hsave", 0, false},
		{host.Regs, "rsp", stack, true},
		{host.Regs, "cr3", uint64(w.Tables.Root()), true},
		{host.Regs, "rbx", 0, false}, // the guest's now; nobody knows the host's
		{host.Regs, "nested_cr3", 0, false},
	} {
		if got, ok := c.of.Get(c.reg); got != c.value || ok != c.known {
			t.Errorf("%s is %#x, %v; want %#x, %v", c.reg, got, ok, c.value, c.known)
		}
	}
}

// The same virtual address leads to each machine's own memory.
func TestMemoryOfBoth(t *testing.T) {
	w := nestedtest.New()
	g := w.Guest()
	v := g.CPU(text, 0)
	w.Save(0, v, text+0x103, stack)
	w.RAM.Put(w.TextPhys(text+0x10), []byte("host"))
	g.Write(g.TextPhys(text+0x10), []byte("gast"))
	tower := new(nested.Finder).Build(w.Machine(v.Running(0, text, stack)), nested.Options{})
	for i, want := range []string{"host", "gast"} {
		m := tower.Machines[i]
		space, err := m.Space(m.CPUs[0])
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4)
		if _, err := space.ReadVirt(b, mem.Virt(text+0x10)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", m.Name, b, err)
		}
	}
}

func TestParked(t *testing.T) {
	w := nestedtest.New()
	v := w.Guest().CPU(text+0x40, stack)
	device := w.Host(0, text+0x200, stack)
	check(t, new(nested.Finder).Build(w.Machine(device.Clone()), nested.Options{}), "l1.0 running on 0 at +0x200")

	tower := new(nested.Finder).Build(w.Machine(device.Clone()), scan)
	check(t, tower, "l1.0 running on 0 at +0x200", "vm0.0 parked on -1 at +0x40")
	c := tower.Machines[1].CPUs[0]
	if c.Why != "INTR" || c.Control != v.Control {
		t.Errorf("parked after %q, VMCB at %#x", c.Why, c.Control)
	}
	for reg, want := range map[string]bool{"rip": true, "rax": true, "cr3": true, "rbx": false, "r15": false, "xmm0": false} {
		i, _ := arch.X86.Index(reg)
		if c.Regs.Known(i) != want {
			t.Errorf("%s of a parked CPU is known: %v", reg, !want)
		}
	}

	// The CPU that entered it last knows it without a scan, and where that was.
	device.Set("vm_vmcb", uint64(v.Control))
	w.Save(0, v, text+0x103, stack)
	tower = new(nested.Finder).Build(w.Machine(device), nested.Options{})
	check(t, tower, "l1.0 running on 0 at +0x200", "vm0.0 parked on -1 at +0x40")
	if e := tower.Machines[0].CPUs[0].EntryPC; e != text+0x103 {
		t.Errorf("entered before %#x", e)
	}
}

// An address bit that the processor does not have is a reserved one, in the tables of every
// machine and in both formats of second stages.
func TestPhysBits(t *testing.T) {
	const bit = uint64(1) << 45
	for kind, build := range map[string]func(w *nestedtest.World) *nestedtest.Guest{
		"npt4": func(w *nestedtest.World) *nestedtest.Guest {
			g := w.Guest()
			g.CPU(text, stack)
			return g
		},
		"ept4-mbec": func(w *nestedtest.World) *nestedtest.Guest {
			g := w.EPTGuest()
			w.RAM.Put(w.Take(), g.VMCS(vmxtest.KVM, text, exitHandler, vmxtest.Values{"secondary controls": 0x4010ee}))
			return g
		},
	} {
		for bits, want := range map[uint]paging.Cause{0: paging.Unreadable, 40: paging.Malformed} {
			w := nestedtest.New()
			g := build(w)
			set := func(e uint64) uint64 { return e | bit }
			w.Tables.Edit(text+0x1000, 2, set)
			m := w.Machine(w.Host(0, text, stack))
			m.PhysBits = bits
			tower := new(nested.Finder).Build(m, scan)
			if len(tower.Machines) != 2 || tower.Machines[1].Second.Kind != kind {
				t.Fatalf("%s: %s", kind, outline(tower))
			}
			vm := tower.Machines[1]
			g.Tables.Edit(text+0x1000, 2, set)
			own := walk(t, vm)
			g.NPT.Edit(0x4_0000, 2, set)
			_, second := vm.Second.Space.Walk(0x4_0000)
			for what, err := range map[string]error{"second stage": second, "l1": walk(t, m), "vm0": own} {
				var missing *paging.NotMappedError
				if !errors.As(err, &missing) || missing.Cause != want {
					t.Errorf("%s, %d bits: %s: %v", kind, bits, what, err)
				}
			}
		}
	}
}

// walk follows an address by a machine's own tables.
func walk(t *testing.T, m *machine.Machine) error {
	t.Helper()
	space, err := m.Space(m.CPUs[0])
	if err != nil {
		t.Fatal(err)
	}
	_, err = space.Walk(text + 0x1000)
	return err
}

// Pages that look like a VMCB, or did, and are none now.
func TestNoGuest(t *testing.T) {
	for name, spoil := range map[string]func(w *nestedtest.World, v *nestedtest.VCPU){
		"program counter leads nowhere": func(_ *nestedtest.World, v *nestedtest.VCPU) { v.Park(text+0x9000, stack, nil) },
		"tables outside RAM":            func(_ *nestedtest.World, v *nestedtest.VCPU) { v.Park(text, stack, svmtest.Values{"nCR3": 0x900000}) },
		"tables in the hole":            func(_ *nestedtest.World, v *nestedtest.VCPU) { v.Park(text, stack, svmtest.Values{"nCR3": 0xfffff000}) },
		"tables reused": func(w *nestedtest.World, v *nestedtest.VCPU) {
			w.RAM.Put(v.Guest.NPT.Root(), []byte(strings.Repeat("reused. ", 512)))
		},
		"no nested paging": func(_ *nestedtest.World, v *nestedtest.VCPU) { v.Park(text, stack, svmtest.Values{"NP_ENABLE": 0}) },
		"not a VMCB, and its guest is nowhere": func(_ *nestedtest.World, v *nestedtest.VCPU) {
			v.Park(text+0x9000, stack, svmtest.Values{"EFER": 0x500})
		},
		"paging is off and zero is not mapped": func(_ *nestedtest.World, v *nestedtest.VCPU) {
			v.Park(0x200000, 0, svmtest.Values{"CR0": 0x10, "EFER": 0x1000, "CR4": 0})
		},
		"all ones": func(w *nestedtest.World, v *nestedtest.VCPU) {
			w.RAM.Put(v.Control, []byte(strings.Repeat("\xff", 4096)))
		},
	} {
		w := nestedtest.New()
		v := w.Guest().CPU(text, stack)
		spoil(w, v)
		device := w.Host(0, text+0x200, stack)
		device.Set("vm_vmcb", uint64(v.Control)) // both by scan and by what the CPU says
		tower := new(nested.Finder).Build(w.Machine(device), scan)
		if len(tower.Machines) != 1 {
			t.Errorf("%s: found\n%s%q", name, outline(tower), tower.Machines[1].Evidence)
		}
	}
}

func TestWhatIsMissingIsSaid(t *testing.T) {
	for name, c := range map[string]struct {
		spoil   func(w *nestedtest.World, r *arch.Registers)
		tower   []string
		problem string
	}{
		"no nested root": {
			func(_ *nestedtest.World, r *arch.Registers) { r.Forget("nested_cr3") },
			[]string{"l1.0 hosting on 0 at +0x103"}, "nested CR3 is not in the device state",
		},
		"no nested mode": {
			func(_ *nestedtest.World, r *arch.Registers) { r.Forget("nested_pg_mode") },
			[]string{"l1.0 hosting on 0 at +0x103"}, "mode of its nested paging",
		},
		"unknown nested mode": {
			func(_ *nestedtest.World, r *arch.Registers) { r.Set("nested_pg_mode", 0x107) },
			[]string{"l1.0 hosting on 0 at +0x103"}, "0x107 has unknown bits",
		},
		"no host save area": {
			func(_ *nestedtest.World, r *arch.Registers) { r.Forget("vm_hsave") },
			[]string{"l1.0 hosting on 0 at ?", "vm0.0 running on 0 at +0x20"}, "VM_HSAVE_PA",
		},
		"host save area outside RAM": {
			func(_ *nestedtest.World, r *arch.Registers) { r.Set("vm_hsave", 0x900000) },
			[]string{"l1.0 hosting on 0 at ?", "vm0.0 running on 0 at +0x20"}, "0x900000",
		},
		"host save area empty": {
			func(w *nestedtest.World, _ *arch.Registers) { w.RAM.Put(w.HostSave(0), make([]byte, 4096)) },
			[]string{"l1.0 hosting on 0 at ?", "vm0.0 running on 0 at +0x20"}, "host save area",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := nestedtest.New()
			v := w.Guest().CPU(text, 0)
			w.Save(0, v, text+0x103, stack)
			device := v.Running(0, text+0x20, stack)
			c.spoil(w, device)
			tower := new(nested.Finder).Build(w.Machine(device), nested.Options{})
			check(t, tower, c.tower...)
			if len(tower.Problems) != 1 || !strings.Contains(tower.Problems[0], c.problem) {
				t.Errorf("problems: %q", tower.Problems)
			}
		})
	}
}

// A CPU in guest mode is believed even if its tables are nonsense: the machine is
// there, and what cannot be read of it is a fault.
func TestNestedRootOutsideRAM(t *testing.T) {
	for _, root := range []uint64{0x900000, 0xfffff000, 0xffffffffff000, ^uint64(0)} {
		w := nestedtest.New()
		v := w.Guest().CPU(text, 0)
		w.Save(0, v, text+0x103, stack)
		device := v.Running(0, text+0x20, stack)
		device.Set("nested_cr3", root)
		tower := new(nested.Finder).Build(w.Machine(device), scan)
		check(t, tower, "l1.0 hosting on 0 at +0x103", "vm0.0 running on 0 at +0x20")
		vm := tower.Machines[1]
		if r := vm.Phys.PhysRanges(); len(r) != 0 {
			t.Errorf("root %#x: memory at %v", root, r)
		}
		space, err := vm.Space(vm.CPUs[0])
		if err != nil {
			t.Fatal(err)
		}
		if n, err := space.ReadVirt(make([]byte, 8), mem.Virt(text)); n != 0 || !errors.Is(err, mem.ErrFault) {
			t.Errorf("root %#x: %d bytes, %v", root, n, err)
		}
	}
}

func TestTwoGuests(t *testing.T) {
	w := nestedtest.New()
	a, b := w.Guest(), w.Guest()
	a0, a1 := a.CPU(text+0x10, stack), a.CPU(text+0x11, stack)
	b0 := b.CPU(text+0x20, stack)
	w.Save(1, b0, text+0x103, stack)
	tower := new(nested.Finder).Build(w.Machine(w.Host(0, text+0x200, stack), b0.Running(1, text+0x28, stack)), scan)
	check(t, tower,
		"l1.0 running on 0 at +0x200", "l1.1 hosting on 1 at +0x103",
		"vm0.0 parked on -1 at +0x10", "vm0.1 parked on -1 at +0x11",
		"vm1.0 running on 1 at +0x28")
	if c := tower.Machines[1].CPUs; c[0].Control != a0.Control || c[1].Control != a1.Control {
		t.Errorf("VMCBs %#x and %#x", c[0].Control, c[1].Control)
	}
	if m, c := tower.At(1); m != tower.Machines[2] || c.Index != 0 {
		t.Errorf("CPU 1 executes %v", m)
	}
	if m, _ := tower.At(0); m != tower.Machines[0] {
		t.Errorf("CPU 0 executes %v", m)
	}
}

// A guest that may halt the CPU itself (its hypervisor does not intercept HLT)
// is halted, and its hypervisor hosts it as before.
func TestHaltedInGuestMode(t *testing.T) {
	w := nestedtest.New()
	v := w.Guest().CPU(text, 0)
	w.Save(0, v, text+0x103, stack)
	device := v.Running(0, text+0x20, stack)
	device.Set("halted", 1)
	tower := new(nested.Finder).Build(w.Machine(device), nested.Options{})
	check(t, tower, "l1.0 hosting on 0 at +0x103", "vm0.0 halted on 0 at +0x20")
	if m, c := tower.At(0); m != tower.Machines[1] || c != m.CPUs[0] {
		t.Errorf("CPU 0 is in %v", m)
	}
}

func TestEvidence(t *testing.T) {
	w := nestedtest.New()
	v := w.Guest().CPU(text+0x10, stack)
	tower := new(nested.Finder).Build(w.Machine(w.Host(0, text, stack)), scan)
	e := tower.Machines[1].Evidence
	for _, want := range []string{"found by content", fmt.Sprintf("program counter %#x leads to memory", text+0x10)} {
		if !slices.ContainsFunc(e, func(s string) bool {
			return strings.HasPrefix(s, fmt.Sprintf("VMCB at %#x: ", v.Control)) && strings.Contains(s, want)
		}) {
			t.Errorf("no %q in %q", want, e)
		}
	}
}
