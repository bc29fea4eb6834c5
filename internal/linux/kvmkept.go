package linux

import "fmt"

// keptRegisters are registers that a vendor's module keeps in its own structure while
// they are not in the CPU, since neither the control block nor struct kvm_vcpu has them.
type keptRegisters struct {
	loaded string            // the member that says that the CPU has them
	regs   map[string]string // members by register
}

// kvmKept by the vendor's structure (Linux 6.1 arch/x86/kvm/vmx/vmx.c:
// vmx_prepare_switch_to_guest, vmx_prepare_switch_to_host). SVM has its own in the VMCB.
var kvmKept = map[string]keptRegisters{
	"vcpu_vmx": {loaded: "guest_state_loaded", regs: map[string]string{"k_gs_base": "msr_guest_kernel_gs_base"}},
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
	loaded, ok := s.want(kept.loaded)
	if !ok {
		return // then it is not known whether the CPU has them
	}
	fields := make(map[string]Field)
	for reg, member := range kept.regs {
		if at, ok := s.want(member); ok {
			fields[reg] = at
		}
	}
	rec, err := s.read(r.k.space, v.Again.vendor)
	if err != nil {
		r.problem(fmt.Sprintf("registers of vCPU %#x in %s", v.Addr, f.of.vcpu), err)
		return
	}
	if rec.uint(loaded) != 0 {
		return
	}
	for reg, at := range fields {
		v.Regs.Set(reg, rec.uint(at))
	}
}
