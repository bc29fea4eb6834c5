package linux

import (
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
)

// KERNEL_GS_BASE of a guest under VMX is in its VMCS nowhere: kvm_intel has it while the
// CPU has not.
func TestKeptRegisters(t *testing.T) {
	f := newFake(t, fakeCore+`
struct loaded_vmcs { long pad; ptr vmcs; }
struct vcpu_vmx { kvm_vcpu vcpu; loaded_vmcs vmcs01; ptr loaded_vmcs; u8 guest_state_loaded; long msr_guest_kernel_gs_base; }
`)
	v := f.make("vcpu_vmx")
	v.set("msr_guest_kernel_gs_base", 0xffff88800f600000)
	k := f.find()
	types, err := k.Types()
	if err != nil {
		t.Fatal(err)
	}
	s, err := newFlavourShape(types, &kvmVMX)
	if err != nil {
		t.Fatal(err)
	}
	for loaded, want := range map[uint64]bool{0: true, 1: false} {
		v.set("guest_state_loaded", loaded)
		r := &kvmReader{k: k}
		cpu := VCPU{Regs: arch.NewRegisters(arch.X86), Again: &ControlReader{space: k.space, flavour: s, vendor: mem.Virt(v.va)}}
		r.keep(&cpu)
		got, ok := cpu.Regs.Get("k_gs_base")
		if ok != want || ok && got != 0xffff88800f600000 || len(r.problems) != 0 {
			t.Errorf("loaded %d: %#x, %v, problems %v", loaded, got, ok, r.problems)
		}
	}
}
