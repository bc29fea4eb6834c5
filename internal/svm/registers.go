package svm

import (
	"fmt"
	"slices"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
)

// slot says which register a 64-bit field of the save area is.
type slot struct {
	reg string
	at  int
}

// What VMRUN loads from and #VMEXIT stores into the save area (APM Vol. 2,
// "VMRUN and #VMEXIT Instructions"), apart from segments and CPL.
var vmrunSlots = []slot{
	{"rip", offRIP}, {"rsp", offRSP}, {"rax", offRAX}, {"eflags", offRFLAGS},
	{"cr0", offCR0}, {"cr2", offCR2}, {"cr3", offCR3}, {"cr4", offCR4}, {"efer", offEFER},
	{"dr6", offDR6}, {"dr7", offDR7}, {"gdtr_base", offGDTR + segBase}, {"idtr_base", offIDTR + segBase},
}

// What VMLOAD and VMSAVE move (APM Vol. 3, "VMSAVE"), apart from selectors.
var vmsaveSlots = []slot{
	{"fs_base", offFS + segBase}, {"gs_base", offGS + segBase},
	{"tr_base", offTR + segBase}, {"ldtr_base", offLDTR + segBase},
	{"k_gs_base", offKernelGSBase}, {"star", offSTAR}, {"lstar", offLSTAR}, {"cstar", offCSTAR},
	{"fmask", offSFMASK}, {"sysenter_cs", offSysenterCS}, {"sysenter_esp", offSysenterESP},
	{"sysenter_eip", offSysenterEIP},
}

// V_INTR (APM Vol. 2, VMCB control area): the guest's own TPR, valid while
// V_INTR_MASKING gives it one.
const (
	vTPR         = 0xf
	vIntrMasking = 1 << 24
	vAVIC        = 1 << 31
)

// Registers returns the guest's state as far as a VMCB has it; see VMCB for how
// old it can be. The other general registers are never in a VMCB: they stay
// unknown. So does all state of a guest whose registers are encrypted (SEV-ES).
func (v *VMCB) Registers() *arch.Registers {
	r := arch.NewRegisters(arch.X86)
	if v.u64(offNPEnable)&sevESEnable != 0 {
		return r
	}
	v.runState(r)
	v.saveState(r)
	r.Set("cpl", uint64(v.u8(offCPL)))
	if v.NestedPaging() {
		r.Set("pat", v.u64(offGPAT)) // used, loaded and stored with nested paging only
	}
	if intr := v.u32(offVIntr); intr&vIntrMasking != 0 {
		r.Set("cr8", uint64(intr&vTPR))
	}
	return r
}

// runState sets what VMRUN and #VMEXIT move.
func (v *VMCB) runState(r *arch.Registers) {
	for _, s := range vmrunSlots {
		r.Set(s.reg, v.u64(s.at))
	}
	for reg, at := range map[string]int{"es": offES, "cs": offCS, "ss": offSS, "ds": offDS} {
		r.Set(reg, uint64(v.u16(at)))
		r.Set(reg+"_base", v.u64(at+segBase))
	}
	r.Set("gdtr_limit", uint64(v.u32(offGDTR+segLimit)))
	r.Set("idtr_limit", uint64(v.u32(offIDTR+segLimit)))
}

// Selectors that VMLOAD and VMSAVE move.
var vmsaveSelectors = []slot{{"fs", offFS}, {"gs", offGS}, {"tr", offTR}, {"ldtr", offLDTR}}

// saveState sets what VMSAVE stores.
func (v *VMCB) saveState(r *arch.Registers) {
	for _, s := range vmsaveSlots {
		r.Set(s.reg, v.u64(s.at))
	}
	for _, s := range vmsaveSelectors {
		r.Set(s.reg, uint64(v.u16(s.at)))
	}
}

// LoadedRegisters are the registers that VMLOAD loads, and VMRUN does not.
func LoadedRegisters() []string {
	var out []string
	for _, s := range append(slices.Clip(vmsaveSlots), vmsaveSelectors...) {
		out = append(out, s.reg)
	}
	return out
}

// HostRegisters reads the hypervisor's own state from its host save area, the
// page that MSR VM_HSAVE_PA points to. Processors leave its format open; QEMU's
// TCG uses that of a VMCB's save area (QEMU 7.2
// target/i386/tcg/sysemu/svm_helper.c:helper_vmrun), KVM as the hypervisor
// executes VMSAVE to the same page (Linux 6.1
// arch/x86/kvm/svm/svm.c:svm_prepare_switch_to_guest).
//
// RIP is behind the VMRUN, RAX the address of the VMCB it ran. What the page has
// no trace of stays unknown: without VMSAVE (Xen has another page for that) FS,
// GS, TR and the system call registers; under a KVM as L0, which keeps the
// hypervisor's state to itself, everything that VMRUN would have saved. A page
// with neither is ErrCorrupt.
func HostRegisters(page []byte) (*arch.Registers, error) {
	v, err := Parse(page)
	if err != nil {
		return nil, err
	}
	run, saved := v.u64(offEFER)&eferSVME != 0, v.u64(offTR+segBase) != 0
	if !run && !saved {
		return nil, fmt.Errorf("%w: host save area with neither EFER.SVME nor a task register", ErrCorrupt)
	}
	r := arch.NewRegisters(arch.X86)
	if run {
		v.runState(r)
		r.Set("cpl", 0) // VMRUN is a privileged instruction
	}
	if saved {
		v.saveState(r)
	}
	return r, nil
}

// NestedHost reads the hypervisor's own state from the VMCB in KVM's nested state, which
// has the guest's controls and the hypervisor's save area (Linux 6.12
// arch/x86/kvm/svm/nested.c:svm_get_nested_state: svm->vmcb01.ptr->save). RIP is behind
// the VMRUN. What VMLOAD moves is left out: the hypervisor has loaded its guest's.
func NestedHost(page []byte) (*arch.Registers, error) {
	v, err := Parse(page)
	if err != nil {
		return nil, err
	}
	if v.u64(offEFER)&eferSVME == 0 {
		return nil, fmt.Errorf("%w: save area of a hypervisor without EFER.SVME", ErrCorrupt)
	}
	r := arch.NewRegisters(arch.X86)
	v.runState(r)
	r.Set("cpl", 0)
	return r, nil
}

// HostVMCB is the physical address of the VMCB that the hypervisor was running
// when it filled this host save area.
func HostVMCB(page []byte) (mem.Phys, error) {
	r, err := HostRegisters(page)
	if err != nil {
		return 0, err
	}
	a, ok := r.Get("rax")
	if !ok || a == 0 || a%PageSize != 0 {
		return 0, fmt.Errorf("%w: host save area without the address of a VMCB in RAX", ErrCorrupt)
	}
	return mem.Phys(a), nil
}
