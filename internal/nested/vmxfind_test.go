package nested_test

import (
	"strings"
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

// The VMCS, what its controls make the processor use, and the tables of EPT are the
// hypervisor's alone; what no control turns on is not, and neither is what a guest is meant
// to reach.
func TestAuditVMX(t *testing.T) {
	const primary, second, at = 0xb5a06dfa, 0x10ee, mem.Phys(0x153000)
	for what, c := range map[string]struct {
		values vmxtest.Values
		page   mem.Phys // at by default
	}{
		"VMCS of vm0 CPU 0":               {page: 1},
		"root of the second stage of vm0": {page: 2},
		"MSR bitmaps of vm0 CPU 0":        {values: vmxtest.Values{"MSR bitmaps": uint64(at)}},
		"I/O bitmap B of vm0 CPU 0":       {values: vmxtest.Values{"I/O bitmap B": uint64(at), "primary controls": primary | 1<<25}},
		"virtual-APIC of vm0 CPU 0":       {values: vmxtest.Values{"virtual-APIC address": uint64(at)}},
		"PML of vm0 CPU 0":                {values: vmxtest.Values{"PML address": uint64(at), "secondary controls": second | 1<<17}},
		"VMREAD-bitmap of vm0 CPU 0":      {values: vmxtest.Values{"VMREAD-bitmap address": uint64(at), "secondary controls": second | 1<<14}},
		"EPTP-list of vm0 CPU 0":          {values: vmxtest.Values{"EPTP-list address": uint64(at), "VM-function controls": 1, "secondary controls": second | 1<<13}},
		"VM-exit MSR-load of vm0 CPU 0":   {values: vmxtest.Values{"VM-exit MSR-load address": uint64(at) + 0x20, "VM-exit MSR-load count": 3}},
		"VM-entry MSR-load of vm0 CPU 0":  {values: vmxtest.Values{"VM-entry MSR-load address": uint64(at) - 0xff0, "VM-entry MSR-load count": 256}},
		"VM-exit MSR-store of vm0 CPU 0":  {values: vmxtest.Values{"VM-exit MSR-store address": uint64(at), "VM-exit MSR-store count": 1}},
		"shadow VMCS of vm0 CPU 0":        {values: vmxtest.Values{"VMCS link pointer": uint64(at), "secondary controls": second | 1<<14}},
		"posted-interrupt descriptor of vm0 CPU 0": {values: vmxtest.Values{"posted-interrupt descriptor address": uint64(at) + 0x40, "pin-based controls": 0xff,
			"secondary controls": second | 1<<9, "VM-exit controls": 0x2befff}},
		"": {values: vmxtest.Values{"APIC-access address": uint64(at), "secondary controls": second | 1, "PML address": uint64(at),
			"VMREAD-bitmap address": uint64(at), "EPTP-list address": uint64(at), "VM-exit MSR-load address": uint64(at), "VM-function controls": 1}},
	} {
		w, g := vmxWorld()
		control := w.Take()
		w.RAM.Put(control, g.VMCS(vmxtest.KVM, text+0x10, exitHandler, c.values))
		page := map[mem.Phys]mem.Phys{0: at, 1: control, 2: g.NPT.Root()}[c.page]
		g.NPT.Map(0x10_0000, page, 4096, rw)
		tower := new(nested.Finder).Build(w.Machine(w.Host(0, text+0x200, 0)), scan)
		if len(tower.Machines) != 2 {
			t.Errorf("%q: %s", what, outline(tower))
			continue
		}
		audit := nested.NewAudit(tower, nil)
		var got []string
		for _, e := range audit.Exposed {
			got = append(got, e.What)
		}
		if strings.Join(got, ", ") != what {
			t.Errorf("%q, want %q; problems %q", got, what, audit.Problems)
		}
	}
}
