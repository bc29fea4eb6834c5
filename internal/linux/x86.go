package linux

import (
	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
)

// layout is what differs between architectures: where a kernel maps itself,
// which registers point into it. Addresses are virtual.
type layout struct {
	imageArea mem.Range // where the image can be mapped
	imageStep uint64    // alignment of the image's start, virtual and physical
	imageMax  uint64    // largest image that is believed, in bytes
	mapBase   uint64    // the address that physical address phys_base is mapped at
	linkText  uint64    // link address of _text
	kernelMin uint64    // lowest address that can be a kernel pointer
	userRange mem.Range // where user programs are; page 0 is nobody's

	rootReg     string   // register that holds the page-table root
	rootMask    uint64   // its bits that are the address
	userRootBit uint64   // set in the root of user mode where the kernel hides itself, 0 if never
	textRegs    []string // registers that point into kernel text
	perCPURegs  []string // registers that may hold the base of per-CPU data

	// switched are the members of struct inactive_task_frame, which a task that does
	// not run has at its saved stack pointer, with the registers that they hold.
	switched []savedRegister

	rootSymbols []string // names of the kernel's own root, best first
	// physBase computes phys_base from VMCOREINFO.
	physBase func(VMCoreInfo) (int64, bool)

	// callBefore decodes the call instruction that ends where code ends, at the
	// return address. target is 0 if the call is indirect.
	callBefore func(code []byte, returns uint64) (target uint64, ok bool)
	callMax    int // bytes of the longest call instruction
	// jumpAt decodes a direct jump of jumpMax bytes at the start of code.
	jumpAt  func(code []byte, pc uint64) (target uint64, ok bool)
	jumpMax int

	// irqStackInUse is the per-CPU flag that the interrupt stack is in use, irqStackTop
	// where its top is; empty if there is none.
	irqStackInUse, irqStackTop string

	kvm []kvmFlavour // KVM's vendor modules
	// kvmRegs are the names of struct kvm_vcpu_arch.regs[] in its order.
	kvmRegs []string
	// kvmDebugRegs are those of kvm_vcpu_arch.db[].
	kvmDebugRegs []string
	// kvmEntry are the functions that enter a guest and leave it.
	kvmEntry []string
	// kvmShutDown are the functions for a guest's CPU that has shut down.
	kvmShutDown []string
}

type savedRegister struct{ member, register string }

// layoutOf returns the table of an architecture, nil if there is none yet.
func layoutOf(a *arch.Arch) *layout {
	if a == arch.X86 {
		return &x86
	}
	return nil
}

// x86 is x86-64. Linux 6.1 Documentation/x86/x86_64/mm.rst and
// arch/x86/include/asm/page_64_types.h: the image lies in the 1 GiB (512 MiB
// without CONFIG_RANDOMIZE_BASE) from __START_KERNEL_map on, at a multiple of
// 2 MiB; arch/x86/mm/pti.c: the user root is the page behind the kernel root.
// kernelMin is the first address of the upper half with 5-level paging.
var x86 = layout{
	imageArea: mem.Range{First: 0xffffffff80000000, Last: 0xffffffffbfffffff},
	imageStep: 2 << 20,
	imageMax:  256 << 20,
	mapBase:   0xffffffff80000000,
	linkText:  0xffffffff81000000,
	kernelMin: 0xff00000000000000,
	userRange: mem.Range{First: 0x1000, Last: 0x00ffffffffffffff},

	rootReg:     "cr3",
	rootMask:    0x000ffffffffff000,
	userRootBit: 1 << 12,
	textRegs:    []string{"lstar"},
	perCPURegs:  []string{"gs_base", "k_gs_base"},

	// Linux 6.1 arch/x86/include/asm/switch_to.h.
	switched: []savedRegister{{"ret_addr", "rip"}, {"bp", "rbp"}, {"bx", "rbx"},
		{"r12", "r12"}, {"r13", "r13"}, {"r14", "r14"}, {"r15", "r15"}},

	rootSymbols: []string{"init_top_pgt", "swapper_pg_dir", "init_level4_pgt"},
	physBase:    func(i VMCoreInfo) (int64, bool) { return i.Number("phys_base") },

	callBefore: x86CallBefore,
	callMax:    7,
	jumpAt:     x86JumpAt,
	jumpMax:    5,

	irqStackInUse: "hardirq_stack_inuse",
	irqStackTop:   "hardirq_stack_ptr",

	kvm: []kvmFlavour{kvmSVM, kvmVMX},
	// Linux 6.1 arch/x86/include/asm/kvm_host.h, enum kvm_reg.
	kvmRegs: []string{"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
		"r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip"},
	kvmDebugRegs: []string{"dr0", "dr1", "dr2", "dr3"},
	// Linux 6.1 arch/x86/kvm/svm/vmenter.S and vmx/vmenter.S; vmx_vmenter before 6.0.
	kvmEntry: []string{"__svm_vcpu_run", "__svm_sev_es_vcpu_run", "__vmx_vcpu_run", "vmx_vmexit", "vmx_vmenter"},
	// Linux 6.1 arch/x86/kvm/svm/svm.c and vmx/vmx.c.
	kvmShutDown: []string{"shutdown_interception", "handle_triple_fault"},
}
