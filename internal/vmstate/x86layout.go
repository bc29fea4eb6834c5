package vmstate

import "strings"

// x86Field is one field of the section "cpu": count elements of size bytes.
type x86Field struct {
	name  string
	count int
	size  int
	// regs are the registers of the elements, in order: "-" for an element that
	// is none. Empty if none is, or if it takes more than a copy (x86.go).
	regs string
}

// x86Version is the version of the section "cpu" this layout is for, in use
// since QEMU 2.x.
const x86Version = 12

// x86Main is the fixed part of the section "cpu": vmstate_x86_cpu.fields in
// QEMU 7.2.22 and, the same, 10.0.13 (target/i386/machine.c), built for x86_64.
// Test: against the description of a real stream, field by field.
var x86Main = []x86Field{
	{"env.regs", 16, 8, "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15"},
	{"env.eip", 1, 8, "rip"},
	{"env.eflags", 1, 8, "eflags"},
	{"env.hflags", 1, 4, "hflags"},
	{"env.fpuc", 1, 2, "fctrl"},
	{"env.fpus_vmstate", 1, 2, "fstat"},
	{"env.fptag_vmstate", 1, 2, ""}, // bit i: register i is not empty
	{"env.fpregs_format_vmstate", 1, 2, ""},
	{"env.fpregs", 8, 10, ""},
	{"env.segs", 6, x86SegmentSize, ""}, // es cs ss ds fs gs
	{"env.ldt", 1, x86SegmentSize, ""},
	{"env.tr", 1, x86SegmentSize, ""},
	{"env.gdt", 1, x86SegmentSize, ""},
	{"env.idt", 1, x86SegmentSize, ""},
	{"env.sysenter_cs", 1, 4, "sysenter_cs"},
	{"env.sysenter_esp", 1, 8, "sysenter_esp"},
	{"env.sysenter_eip", 1, 8, "sysenter_eip"},
	{"env.cr[0]", 1, 8, "cr0"},
	{"env.cr[2]", 1, 8, "cr2"},
	{"env.cr[3]", 1, 8, "cr3"},
	{"env.cr[4]", 1, 8, "cr4"},
	{"env.dr", 8, 8, "dr0 dr1 dr2 dr3 - - dr6 dr7"},
	{"env.a20_mask", 1, 4, ""},
	{"env.mxcsr", 1, 4, "mxcsr"},
	{"env.xmm_regs[0]", 16, 16, ""}, // bits 0-63, then 64-127
	{"env.efer", 1, 8, "efer"},
	{"env.star", 1, 8, "star"},
	{"env.lstar", 1, 8, "lstar"},
	{"env.cstar", 1, 8, "cstar"},
	{"env.fmask", 1, 8, "fmask"},
	{"env.kernelgsbase", 1, 8, "k_gs_base"},
	{"env.smbase", 1, 4, ""},
	{"env.pat", 1, 8, "pat"},
	{"env.hflags2", 1, 4, "hflags2"},
	{"env.vm_hsave", 1, 8, "vm_hsave"},
	{"env.vm_vmcb", 1, 8, "vm_vmcb"},
	{"env.tsc_offset", 1, 8, ""},
	{"env.intercept", 1, 8, ""},
	{"env.intercept_cr_read", 1, 2, ""},
	{"env.intercept_cr_write", 1, 2, ""},
	{"env.intercept_dr_read", 1, 2, ""},
	{"env.intercept_dr_write", 1, 2, ""},
	{"env.intercept_exceptions", 1, 4, ""},
	{"env.v_tpr", 1, 1, ""},
	{"env.mtrr_fixed", 11, 8, ""},
	{"env.mtrr_deftype", 1, 8, ""},
	{"env.mtrr_var", 8, 16, ""},
	{"env.interrupt_injected", 1, 4, ""},
	{"env.mp_state", 1, 4, ""},
	{"env.tsc", 1, 8, ""},
	{"env.exception_nr", 1, 4, ""},
	{"env.soft_interrupt", 1, 1, ""},
	{"env.nmi_injected", 1, 1, ""},
	{"env.nmi_pending", 1, 1, ""},
	{"env.has_error_code", 1, 1, ""},
	{"env.sipi_vector", 1, 4, ""},
	{"env.mcg_cap", 1, 8, ""},
	{"env.mcg_status", 1, 8, ""},
	{"env.mcg_ctl", 1, 8, ""},
	{"env.mce_banks", 40, 8, ""},
	{"env.tsc_aux", 1, 8, ""},
	{"env.system_time_msr", 1, 8, ""},
	{"env.wall_clock_msr", 1, 8, ""},
	{"env.xcr0", 1, 8, ""},
	{"env.xstate_bv", 1, 8, ""},
	{"env.xmm_regs[1]", 16, 16, ""}, // bits 128-255
}

// x86Segment is a SegmentCache in the stream: selector u32, base u64, limit u32,
// flags u32 (the descriptor's second word: DPL in bits 14:13).
const (
	x86SegmentSize  = 20
	x86SegmentBase  = 4
	x86SegmentLimit = 12
	x86SegmentFlags = 16
)

// x86Offsets are the offsets of the fields in the section, by name, and
// x86MainSize their size altogether.
var x86Offsets, x86MainSize = func() (map[string]int, int) {
	offsets, at := make(map[string]int), 0
	for _, f := range x86Main {
		offsets[f.name] = at
		at += f.count * f.size
	}
	return offsets, at
}()

// x86Subsections are the subsections of the section "cpu" with the size of
// their fields (QEMU 7.2.22 and 10.0.13 target/i386/machine.c; all are version
// 1). Like sections they have no length in the stream. Those of
// cpu/nested_state's own structure follow it directly, so one flat list is
// enough: each subsection ends where the next one begins.
var x86Subsections = map[string]int{
	"cpu/exception_info":                     3 + 8,
	"cpu/async_pf_msr":                       8,
	"cpu/async_pf_int_msr":                   8,
	"cpu/async_pv_eoi_msr":                   8,
	"cpu/steal_time_msr":                     8,
	"cpu/poll_control_msr":                   8,
	"cpu/fpop_ip_dp":                         2 + 8 + 8,
	"cpu/msr_tsc_adjust":                     8,
	"cpu/msr_tscdeadline":                    8,
	"cpu/msr_ia32_misc_enable":               8,
	"cpu/msr_ia32_feature_control":           8,
	"cpu/msr_architectural_pmu":              4*8 + 3*8 + 2*18*8,
	"cpu/mpx":                                4*16 + 3*8,
	"cpu/msr_hyperv_hypercall":               2 * 8,
	"cpu/msr_hyperv_vapic":                   8,
	"cpu/msr_hyperv_time":                    8,
	"cpu/msr_hyperv_crash":                   5 * 8,
	"cpu/msr_hyperv_runtime":                 8,
	"cpu/msr_hyperv_synic":                   3*8 + 16*8,
	"cpu/msr_hyperv_stimer":                  2 * 4 * 8,
	"cpu/msr_hyperv_reenlightenment":         3 * 8,
	"cpu/avx512":                             8*8 + 16*32 + 16*64,
	"cpu/xss":                                8,
	"cpu/umwait":                             4,
	"cpu/tsc_khz":                            8,
	"cpu/msr_smi_count":                      8,
	"cpu/pkru":                               4,
	"cpu/pkrs":                               4,
	"cpu/spec_ctrl":                          8,
	"cpu/amd_tsc_scale_msr":                  8,
	"cpu/mcg_ext_ctl":                        8,
	"cpu/intel_pt":                           5*8 + 8*8,
	"cpu/virt_ssbd":                          8,
	"cpu/svn_npt":                            8 + 4, // spelled so
	"cpu/svm_guest":                          4,
	"cpu/nested_state":                       2 + 2 + 4,
	"cpu/kvm_nested_state/vmx":               8 + 8 + 2,
	"cpu/kvm_nested_state/vmx/vmcs12":        4096,
	"cpu/kvm_nested_state/vmx/shadow_vmcs12": 4096,
	"cpu/kvm_nested_state/svm":               8 + 4096,
	"cpu/xen_vcpu":                           4*8 + 1 + 24*2 + 2*8, // since 8.0
	"cpu/msr_tsx_ctrl":                       4,
	"cpu/intel_sgx":                          4 * 8,
	"cpu/pdptrs":                             4 * 8,
	"cpu/msr_xfd":                            2 * 8,
	"cpu/msr_hwcr":                           8, // since 9.1
	"cpu/fred":                               9 * 8,
	"cpu/intel_amx_xtile":                    64 + 8192,
	"cpu/arch_lbr":                           2*8 + 32*24,
	"cpu/triple_fault":                       1,
}

// names splits a list of register names.
func (f x86Field) names() []string { return strings.Fields(f.regs) }
