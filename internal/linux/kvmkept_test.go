package linux

import (
	"encoding/binary"
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
)

// What a VMCS has nowhere, or not while it is of use, KVM has: some of it only while the
// CPU has not.
func TestKeptRegisters(t *testing.T) {
	types := strings.Replace(fakeCore, "long db[4]; }", "long db[4]; long cr2; long efer; }", 1) + `
struct loaded_vmcs { long pad; ptr vmcs; }
struct vmx_uret_msr { u8 load_into_hardware; long data; long mask; }
struct vcpu_vmx { kvm_vcpu vcpu; loaded_vmcs vmcs01; ptr loaded_vmcs; u8 guest_state_loaded; long msr_guest_kernel_gs_base;
  vmx_uret_msr guest_uret_msrs[3]; }
`
	f := newFake(t, types)
	list := f.variable("kvm_uret_msrs_list", 64)
	for i, number := range []uint32{0xc0000084, 0xc0000082, 0x122} {
		list.put(uint64(4*i), binary.LittleEndian.AppendUint32(nil, number))
	}
	v := f.make("vcpu_vmx").set("msr_guest_kernel_gs_base", 0xffff88800f600000).
		set("vcpu.arch.cr2", 0x7000).set("vcpu.arch.efer", 0xd01).
		set("guest_uret_msrs[0].data", 0x257fd5).set("guest_uret_msrs[1].data", 0xffffffff81800080)
	k := f.find()
	all, err := k.Types()
	if err != nil {
		t.Fatal(err)
	}
	s, err := newFlavourShape(all, &kvmVMX)
	if err != nil {
		t.Fatal(err)
	}
	always := map[string]uint64{"efer": 0xd01, "fmask": 0x257fd5, "lstar": 0xffffffff81800080}
	for _, c := range []struct {
		loaded uint64
		mode   VCPUMode
		more   map[string]uint64
	}{
		{0, VCPUOutside, map[string]uint64{"k_gs_base": 0xffff88800f600000, "cr2": 0x7000}},
		{1, VCPUOutside, map[string]uint64{"cr2": 0x7000}},
		{1, VCPUInGuest, nil},
	} {
		v.set("guest_state_loaded", c.loaded)
		r := &kvmReader{k: k}
		cpu := VCPU{Regs: arch.NewRegisters(arch.X86), Mode: c.mode,
			Again: &ControlReader{space: k.space, flavour: s, vendor: mem.Virt(v.va)}}
		r.keep(&cpu)
		for i, reg := range arch.X86.Regs {
			want, ok := always[reg.Name]
			if x, more := c.more[reg.Name]; more {
				want, ok = x, true
			}
			if got, _ := cpu.Regs.Get(reg.Name); cpu.Regs.Known(i) != ok || ok && got != want {
				t.Errorf("loaded %d, %v: %s is %#x (%v), want %#x (%v)", c.loaded, c.mode, reg.Name, got, cpu.Regs.Known(i), want, ok)
			}
		}
		if len(r.problems) != 0 {
			t.Errorf("problems %v", r.problems)
		}
	}
}
