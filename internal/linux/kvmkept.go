package linux

import (
	"fmt"

	"nestdbg/internal/mem"
)

// keptRegisters are registers that KVM keeps, since the control block has them nowhere.
type keptRegisters struct {
	always  map[string]string // by register: the member that has it whenever one looks
	outside map[string]string // that has it while the vCPU is outside its guest
	parked  map[string]string // that has it while the CPU has not, as loaded tells
	loaded  string
	msrs    string // array of the MSRs that are switched when a process of the VMM runs
	msr     string // its element; member data is the guest's value, whenever one looks
	numbers string // symbol of KVM: the numbers of these MSRs
}

// kvmKept by the vendor's structure. SVM has all of these in the VMCB. Linux 6.1
// arch/x86/kvm/vmx/vmx.c: vmx_set_efer, vmx_vcpu_enter_exit, vmx_prepare_switch_to_guest,
// vmx_prepare_switch_to_host, vmx_set_guest_uret_msr.
var kvmKept = map[string]keptRegisters{
	"vcpu_vmx": {
		always:  map[string]string{"efer": "vcpu.arch.efer"},
		outside: map[string]string{"cr2": "vcpu.arch.cr2"},
		parked:  map[string]string{"k_gs_base": "msr_guest_kernel_gs_base"}, loaded: "guest_state_loaded",
		msrs: "guest_uret_msrs", msr: "vmx_uret_msr", numbers: "kvm_uret_msrs_list",
	},
}

// kvmMSRs are the registers of MSRs in keptRegisters.msrs (Intel SDM Vol. 4,
// "Architectural MSRs").
var kvmMSRs = map[uint32]string{
	0xc0000081: "star", 0xc0000082: "lstar", 0xc0000083: "cstar", 0xc0000084: "fmask",
}

// keep completes the registers of a vCPU by those that the vendor's module keeps.
func (r *kvmReader) keep(v *VCPU) {
	if v.Again == nil {
		return
	}
	f := v.Again.flavour
	kept, ok := kvmKept[f.of.vcpu]
	if !ok {
		return
	}
	s := newShape(f.shape.types, f.of.vcpu)
	find := func(members map[string]string) map[string]Field {
		out := make(map[string]Field)
		for reg, member := range members {
			if at, ok := s.want(member); ok {
				out[reg] = at
			}
		}
		return out
	}
	always, outside, parked := find(kept.always), find(kept.outside), find(kept.parked)
	loaded, tells := s.want(kept.loaded)
	msrs, hasMSRs := s.want(kept.msrs)
	if s.first > s.end {
		return // none of them is there
	}
	rec, err := s.read(r.k.space, v.Again.vendor)
	if err != nil {
		r.problem(fmt.Sprintf("registers of vCPU %#x in %s", v.Addr, f.of.vcpu), err)
		return
	}
	set := func(fields map[string]Field) {
		for reg, at := range fields {
			v.Regs.Set(reg, rec.uint(at))
		}
	}
	set(always)
	if v.Mode == VCPUOutside {
		set(outside)
	}
	if tells && rec.uint(loaded) == 0 {
		set(parked)
	}
	if hasMSRs {
		r.keepMSRs(v, &kept, &rec, msrs)
	}
}

// keepMSRs takes those of the MSRs that are registers. The array's elements are in the
// order of KVM's list of their numbers.
func (r *kvmReader) keepMSRs(v *VCPU, kept *keptRegisters, rec *record, array Field) {
	list, err := r.k.symbolOf("kvm", kept.numbers)
	if err != nil {
		return // before Linux 5.11 it has another name and form
	}
	data, err := v.Again.flavour.shape.types.Field(kept.msr, "data")
	if err != nil || array.Stride < data.Offset+8 || uint64(array.Stride)*uint64(array.Count) > uint64(array.Size) {
		return
	}
	for i := range array.Count {
		number, err := mem.VirtUint32(r.k.space, list+mem.Virt(4*i))
		if err != nil {
			r.problem(fmt.Sprintf("MSRs of vCPU %#x", v.Addr), err)
			return
		}
		if reg, ok := kvmMSRs[number]; ok {
			v.Regs.Set(reg, rec.uint(Field{Offset: array.Offset + i*array.Stride + data.Offset, Size: 8}))
		}
	}
}
