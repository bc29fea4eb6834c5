package nested_test

import (
	"slices"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/nested"
	"nestdbg/internal/vmx/vmxtest"
)

// Under VMX, too, a search tells what is in use from a copy and from what leads nowhere, in
// the layouts of which tests make all that tells CPUs apart.
func TestFindVMX(t *testing.T) {
	for _, kind := range vmxtest.Kinds {
		if kind == vmxtest.Bochs {
			continue
		}
		w, g := vmxWorld()
		live := g.VMCS(kind, text+0x10, exitHandler, vmxtest.Values{"guest RSP": stack})
		at := w.Take()
		w.RAM.Put(at, live)
		w.RAM.Put(w.Take(), live)
		w.RAM.Put(w.Take(), g.VMCS(kind, text+0x9000, exitHandler, nil))
		device := w.Host(0, text+0x200, 0)
		device.Set("cr4", 0x742ea0)
		lines, all := search(t, w.Machine(device))
		candidates(t, lines, "live VMCS vm0.0", "stale VMCS", "stale VMCS")
		if all[0].At != at || all[0].Second != "ept4" || all[0].Root != g.NPT.Root() || all[0].Score <= all[1].Score {
			t.Errorf("%s: %+v", kind, all[0])
		}
	}
}

// A guest that waits for a page of its EPT is there, as under SVM.
func TestStuckInEPT(t *testing.T) {
	lost := text + 0x8000
	for address, found := range map[uint64]bool{0x7000010: true, 0x7001010: false} {
		w, g := vmxWorld()
		g.Tables.Map(lost, 0x7000000, 4096, g.Tables.Express(7))
		w.RAM.Put(w.Take(), g.VMCS(vmxtest.KVM, lost+0x10, exitHandler, vmxtest.Values{
			"exit reason": 48, "exit qualification": 0x184, "guest-physical address": address, "guest RSP": lost}))
		tower := new(nested.Finder).Build(w.Machine(w.Host(0, text, 0)), scan)
		if (len(tower.Machines) == 2) != found {
			t.Errorf("%#x: %d machines", address, len(tower.Machines))
		}
	}
}

// The VMCS, its bitmaps and the tables of EPT are the hypervisor's alone.
func TestAuditVMX(t *testing.T) {
	const bitmap = mem.Phys(0x153000)
	for what, page := range map[string]func(at mem.Phys, root mem.Phys) mem.Phys{
		"VMCS of vm0 CPU 0":               func(at, _ mem.Phys) mem.Phys { return at },
		"MSR bitmaps of vm0 CPU 0":        func(_, _ mem.Phys) mem.Phys { return bitmap },
		"root of the second stage of vm0": func(_, root mem.Phys) mem.Phys { return root },
	} {
		w, g := vmxWorld()
		at := w.Take()
		w.RAM.Put(at, g.VMCS(vmxtest.Bochs, text+0x10, exitHandler, vmxtest.Values{"MSR bitmaps": uint64(bitmap)}))
		g.NPT.Map(0x10_0000, page(at, g.NPT.Root()), 4096, rw)
		audit := nested.NewAudit(new(nested.Finder).Build(w.Machine(w.Host(0, text+0x200, 0)), scan), nil)
		var got []string
		for _, e := range audit.Exposed {
			got = append(got, e.What)
		}
		if !slices.Equal(got, []string{what}) {
			t.Errorf("%q, want %q; problems %q", got, what, audit.Problems)
		}
	}
}
