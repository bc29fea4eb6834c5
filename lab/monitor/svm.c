/* AMD SVM with nested paging. The manual is AMD64 APM Vol. 2, "Secure Virtual Machine". */
#include "monitor.h"

#define EFER_SVME (1 << 12)
#define VM_CR 0xc0010114
#define VM_CR_SVMDIS (1 << 4)
#define VM_HSAVE_PA 0xc0010117

/* Where things are in a VMCB (Appendix B, "Layout of VMCB"). */
enum {
	INTERCEPT_EXCEPTIONS = 0x008, INTERCEPTS3 = 0x00c, INTERCEPTS4 = 0x010,
	IOPM_BASE = 0x040, MSRPM_BASE = 0x048, ASID = 0x058, TLB_CONTROL = 0x05c,
	EXITCODE = 0x070, EXITINFO1 = 0x078, EXITINFO2 = 0x080, NP_ENABLE = 0x090, N_CR3 = 0x0b0,
	ES = 0x400, CS = 0x410, SS = 0x420, DS = 0x430, FS = 0x440, GS = 0x450,
	GDTR = 0x460, LDTR = 0x470, IDTR = 0x480, TR = 0x490,
	EFER_AT = 0x4d0, CR4 = 0x548, CR3 = 0x550, CR0 = 0x558, DR7 = 0x560, DR6 = 0x568,
	RFLAGS = 0x570, RIP = 0x578, RSP = 0x5d8, RAX = 0x5f8, G_PAT = 0x668,
};

#define FIELD(vm, type, offset) (*(type *)at((vm)->control + (offset)))

enum { CODE_EXCEPTION = 0x40, CODE_VMMCALL = 0x81, CODE_NPF = 0x400 };

/* Every port and every MSR is ours: a bit for each, all set. */
static u8 all_ports[3 * PAGE] __attribute__((aligned(4096)));
static u8 all_msrs[2 * PAGE] __attribute__((aligned(4096)));
static u64 host_save[MAX_CPUS];

static bool svm_here(void)
{
	return cpuid(0x80000000, 0).a >= 0x8000000a && cpuid(0x80000001, 0).c & 1 << 2 && cpuid(0x8000000a, 0).d & 1;
}

/* Nested tables are those of the processor, and boot.S has used such pages already. */
static bool svm_huge(void) { return true; }

static void svm_enable(void)
{
	if (rdmsr(VM_CR) & VM_CR_SVMDIS)
		die("monitor: the firmware has disabled SVM");
	wrmsr(EFER, rdmsr(EFER) | EFER_SVME);
	wrmsr(VM_HSAVE_PA, host_save[this_cpu()]);
}

static void segment(struct vm *vm, int offset, u16 selector, u16 attributes, u32 limit)
{
	FIELD(vm, u16, offset) = selector;
	FIELD(vm, u16, offset + 2) = attributes;
	FIELD(vm, u32, offset + 4) = limit;
}

/* A guest that is in 64-bit mode from the start, in ring 0, and has no interrupt table: what
   goes wrong in it exits to us. */
static void svm_create(struct vm *vm)
{
	for (u64 i = 0; i < MAX_CPUS && !host_save[i]; i++)
		host_save[i] = own_page();
	for (u64 i = 0; i < sizeof all_ports; i++)
		all_ports[i] = 0xff;
	for (u64 i = 0; i < sizeof all_msrs; i++)
		all_msrs[i] = 0xff;

	vm->control = own_page();
	if (vm->passed_through) {
		FIELD(vm, u32, INTERCEPTS3) = 1u << 31; /* shutdown */
	} else {
		FIELD(vm, u32, INTERCEPT_EXCEPTIONS) = ~0;
		/* INTR, NMI, SMI, INIT; RDPMC, CPUID; HLT, IOIO, MSR; shutdown */
		FIELD(vm, u32, INTERCEPTS3) = 0xf | 1 << 15 | 1 << 18 | 1 << 24 | 1 << 27 | 1 << 28 | 1u << 31;
	}
	/* VMRUN, without which no VMRUN is accepted, VMMCALL, and the others of SVM */
	FIELD(vm, u32, INTERCEPTS4) = 0x7f;
	FIELD(vm, u64, IOPM_BASE) = (u64)all_ports;
	FIELD(vm, u64, MSRPM_BASE) = (u64)all_msrs;
	FIELD(vm, u32, ASID) = vm->number + 1;
	FIELD(vm, u64, NP_ENABLE) = 1;
	FIELD(vm, u64, N_CR3) = vm->second.root;
	FIELD(vm, u64, G_PAT) = 0x0007040600070406; /* as after a reset */

	segment(vm, CS, 8, 0x29b, 0); /* 64-bit code, present */
	for (int s = ES; s <= GS; s += 0x10)
		if (s != CS)
			segment(vm, s, 16, 0xc93, ~0);
	segment(vm, LDTR, 0, 0x082, 0);
	segment(vm, TR, 0, 0x08b, 0xffff);
	FIELD(vm, u64, EFER_AT) = EFER_SVME | EFER_NXE | EFER_LMA | EFER_LME;
	FIELD(vm, u64, CR0) = CR0_PG | CR0_WP | CR0_NE | CR0_PE;
	FIELD(vm, u64, CR3) = vm->first.root;
	FIELD(vm, u64, CR4) = CR4_PAE;
	FIELD(vm, u64, DR6) = 0xffff0ff0;
	FIELD(vm, u64, DR7) = 0x400;
	FIELD(vm, u64, RFLAGS) = 2;
	FIELD(vm, u64, RIP) = vm->rip;
	FIELD(vm, u64, RSP) = vm->rsp;
}

static struct exit svm_run(struct vm *vm)
{
	FIELD(vm, u64, RAX) = vm->regs.rax;
	svm_enter(vm->control, &vm->regs);
	vm->regs.rax = FIELD(vm, u64, RAX);

	struct exit e = { .code = FIELD(vm, u64, EXITCODE), .address = FIELD(vm, u64, EXITINFO2), .rip = FIELD(vm, u64, RIP) };
	e.vector = e.code - CODE_EXCEPTION;
	e.why = e.code == CODE_VMMCALL ? EXIT_CALL : e.code == CODE_NPF ? EXIT_SECOND_STAGE :
		e.vector < 32 ? EXIT_EXCEPTION : EXIT_OTHER;
	return e;
}

static void svm_answer(struct vm *vm, u64 rax)
{
	vm->regs.rax = rax;
	FIELD(vm, u64, RIP) += 3; /* the length of VMMCALL; not every processor says where the next one is */
}

const struct technology svm = { "svm", &npt, svm_here, svm_huge, svm_enable, svm_create, svm_run, svm_answer };
