package nested_test

import (
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/nested"
	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/svm/svmtest"
)

// On a host with KVM the device state has no nested CR3, and the page that KVM gives out
// has the guest's controls and the hypervisor's own state.
func TestVMCBInDeviceState(t *testing.T) {
	w := nestedtest.New()
	g := w.Guest()
	g.Write(g.TextPhys(text), []byte("text of the guest"))
	v := g.CPU(text+0x10, stack)
	cpu := v.Running(0, text+0x20, stack)
	cpu.Forget("nested_cr3", "nested_pg_mode")
	cpu.SetControlBlock(svmtest.VMCB(svmtest.Values{"nCR3": uint64(g.NPT.Root()), "CR3": uint64(w.Tables.Root()),
		"CR4": 0x740ea0, "RIP": text + 0x103, "RSP": stack, "RAX": uint64(v.Control), "GS base": 0x1234, "LSTAR": 0x5678}))
	tower := new(nested.Finder).Build(w.Machine(cpu), nested.Options{})
	check(t, tower, "l1.0 hosting on 0 at +0x103", "vm0.0 running on 0 at +0x20")
	if vm := tower.Machines[1]; vm.Second.Kind != "npt4" || vm.Second.Space.Root() != g.NPT.Root() {
		t.Errorf("%s at %#x", vm.Second.Kind, vm.Second.Space.Root())
	}
	readsText(t, tower)
	host := tower.Machines[0].CPUs[0].Regs
	if root, ok := host.Get("cr3"); !ok || mem.Phys(root) != w.Tables.Root() {
		t.Errorf("L1's root is %#x (%v)", root, ok)
	}
	// VMLOAD has brought the guest's.
	for _, name := range []string{"gs_base", "lstar", "tr_base"} {
		if x, ok := host.Get(name); ok {
			t.Errorf("L1's %s is taken to be %#x", name, x)
		}
	}
}
