/* Intel VMX with EPT. The manual is the SDM, Vol. 3C; names in quotes are its titles. */
#include "monitor.h"

#define CPUID_VMX (1 << 5)       /* leaf 1, ECX, as is */
#define CPUID_OSXSAVE (1 << 27)
#define CPUID_OSPKE (1 << 4)     /* leaf 7, ECX */
#define FEATURE_CONTROL 0x3a
#define FEATURE_LOCKED (1 << 0)
#define FEATURE_VMXON (1 << 2)
#define VMX_BASIC 0x480
#define BASIC_HAS_TRUE (1ul << 55)
#define CR0_FIXED0 0x486
#define CR4_FIXED0 0x488
#define EPT_CAPABILITIES 0x48c
#define EPT_HAS_4_LEVELS (1 << 6)
#define EPT_HAS_WRITE_BACK (1 << 14)
#define EPT_HAS_LARGE (1 << 16)
#define EPT_HAS_HUGE (1 << 17)

/* "Field Encoding in VMCS" (Appendix B). */
enum {
	GUEST_SELECTORS = 0x0800, HOST_SELECTORS = 0x0c00, HOST_TR = 0x0c0c,
	MSR_BITMAP = 0x2004, EPT_POINTER = 0x201a, XSS_EXITS = 0x202c, GUEST_PHYSICAL = 0x2400, LINK_POINTER = 0x2800,
	GUEST_DEBUGCTL = 0x2802, GUEST_EFER = 0x2806, HOST_EFER = 0x2c02,
	PIN_CONTROLS = 0x4000, CPU_CONTROLS = 0x4002, EXCEPTION_BITMAP = 0x4004, PF_MASK = 0x4006, PF_MATCH = 0x4008,
	CR3_TARGETS = 0x400a, EXIT_CONTROLS = 0x400c, EXIT_MSR_STORES = 0x400e, EXIT_MSR_LOADS = 0x4010,
	ENTRY_CONTROLS = 0x4012, ENTRY_MSR_LOADS = 0x4014, ENTRY_EVENT = 0x4016, ENTRY_ERROR_CODE = 0x4018, CPU_CONTROLS2 = 0x401e,
	INSTRUCTION_ERROR = 0x4400, EXIT_REASON = 0x4402, EXIT_EVENT = 0x4404, INSTRUCTION_LENGTH = 0x440c,
	GUEST_LIMITS = 0x4800, GUEST_GDTR_LIMIT = 0x4810, GUEST_IDTR_LIMIT = 0x4812, GUEST_RIGHTS = 0x4814,
	GUEST_INTERRUPTIBILITY = 0x4824, GUEST_ACTIVITY = 0x4826, GUEST_SYSENTER_CS = 0x482a, HOST_SYSENTER_CS = 0x4c00,
	CR0_MASK = 0x6000, CR4_MASK = 0x6002, CR0_SHADOW = 0x6004, CR4_SHADOW = 0x6006, QUALIFICATION = 0x6400,
	GUEST_CR0 = 0x6800, GUEST_CR3 = 0x6802, GUEST_CR4 = 0x6804, GUEST_BASES = 0x6806,
	GUEST_GDTR_BASE = 0x6816, GUEST_IDTR_BASE = 0x6818, GUEST_DR7 = 0x681a, GUEST_RSP = 0x681c, GUEST_RIP = 0x681e,
	GUEST_RFLAGS = 0x6820, GUEST_DEBUG = 0x6822, GUEST_SYSENTER_ESP = 0x6824, GUEST_SYSENTER_EIP = 0x6826,
	HOST_CR0 = 0x6c00, HOST_CR3 = 0x6c02, HOST_CR4 = 0x6c04, HOST_FS_BASE = 0x6c06, HOST_GS_BASE = 0x6c08,
	HOST_TR_BASE = 0x6c0a, HOST_GDTR_BASE = 0x6c0c, HOST_IDTR_BASE = 0x6c0e,
	HOST_SYSENTER_ESP = 0x6c10, HOST_SYSENTER_EIP = 0x6c12, HOST_RIP = 0x6c16,
};

/* Segments are numbered in this order, in steps of 2, in all groups of fields. */
enum { ES, CS, SS, DS, FS, GS, LDTR, TR, SEGMENTS };

enum {
	REASON_EXCEPTION = 0, REASON_CPUID = 10, REASON_INVD = 13, REASON_VMCALL = 18,
	REASON_RDMSR = 31, REASON_WRMSR = 32, REASON_EPT_VIOLATION = 48, REASON_XSETBV = 55,
};

/* "VM-Execution Control Fields", "VM-Exit Controls", "VM-Entry Controls". */
enum {
	PIN = 0x481, CPU = 0x482, EXIT = 0x483, ENTRY = 0x484, CPU2 = 0x48b, /* the MSRs that say what may be */
	PIN_NMI_EXITS = 1 << 3,
	CPU_HLT_EXITS = 1 << 7, CPU_IO_EXITS = 1 << 24, CPU_MSR_BITMAP = 1 << 28, CPU_MORE = 1u << 31,
	CPU2_EPT = 1 << 1, CPU2_RDTSCP = 1 << 3, CPU2_UNRESTRICTED = 1 << 7, CPU2_INVPCID = 1 << 12, CPU2_XSAVES = 1 << 20,
	EXIT_SAVE_DEBUG = 1 << 2, EXIT_64 = 1 << 9, EXIT_SAVE_EFER = 1 << 20, EXIT_LOAD_EFER = 1 << 21,
	ENTRY_LOAD_DEBUG = 1 << 2, ENTRY_64 = 1 << 9, ENTRY_LOAD_EFER = 1 << 15,
};

/* "VM-Entry Controls for Event Injection": valid, with an error code, an exception, 13. */
#define GENERAL_PROTECTION (1u << 31 | 1 << 11 | 3 << 8 | 13)

#define CR4_VMXE (1 << 13)
#define CR4_OSXSAVE (1 << 18)
#define CR4_PKE (1 << 22)

static u64 current[MAX_CPUS]; /* the VMCS that a CPU has loaded */

static void check(bool ok, const char *what, u64 with)
{
	if (!ok)
		die("monitor: %s %x failed on CPU %u", what, with, this_cpu());
}

/* VMfailInvalid sets CF, VMfailValid ZF; neither is "above". */
static void write(u64 field, u64 value)
{
	bool ok;
	asm volatile("vmwrite %1, %2" : "=@cca"(ok) : "r"(value), "r"(field));
	check(ok, "VMWRITE", field);
}

static u64 read(u64 field)
{
	u64 value;
	bool ok;
	asm volatile("vmread %2, %1" : "=@cca"(ok), "=r"(value) : "r"(field));
	check(ok, "VMREAD", field);
	return value;
}

/* "Reserved Controls and Default Settings": an MSR says which bits must be 1 (low half) and which
   may be (high half). Newer processors have a second one for some, which leaves more to us. */
static u64 allowed_controls(u32 msr)
{
	bool second = msr <= ENTRY && rdmsr(VMX_BASIC) & BASIC_HAS_TRUE;
	return rdmsr(second ? msr + 0x48d - PIN : msr);
}

static u64 controls(u32 msr, u64 wanted)
{
	u64 allowed = allowed_controls(msr);
	check(!(wanted & ~(allowed >> 32)), "VMX controls", wanted);
	return (wanted | (u32)allowed) & allowed >> 32;
}

static bool may(u32 msr, u32 control) { return allowed_controls(msr) >> 32 & control; }

static bool vmx_here(void)
{
	u64 wanted = EPT_HAS_4_LEVELS | EPT_HAS_WRITE_BACK | EPT_HAS_LARGE;
	return cpuid(1, 0).c & CPUID_VMX && may(CPU, CPU_MORE) && may(CPU2, CPU2_EPT) && (rdmsr(EPT_CAPABILITIES) & wanted) == wanted;
}

static bool vmx_huge(void) { return rdmsr(EPT_CAPABILITIES) & EPT_HAS_HUGE; }

/* VMXON and VMCS regions begin with the revision that the processor names. */
static u64 region(void)
{
	u64 page = own_page();
	*(u32 *)at(page) = rdmsr(VMX_BASIC) & 0x7fffffff;
	return page;
}

static u64 vmxon_regions[MAX_CPUS];

static void vmx_enable(void)
{
	u64 feature = rdmsr(FEATURE_CONTROL), cr0, cr4;
	if (!(feature & FEATURE_LOCKED))
		wrmsr(FEATURE_CONTROL, feature | FEATURE_VMXON | FEATURE_LOCKED);
	else if (!(feature & FEATURE_VMXON))
		die("monitor: the firmware has disabled VMX");
	asm volatile("mov %%cr0, %0" : "=r"(cr0));
	asm volatile("mov %0, %%cr0" :: "r"(cr0 | rdmsr(CR0_FIXED0)));
	asm volatile("mov %%cr4, %0" : "=r"(cr4));
	asm volatile("mov %0, %%cr4" :: "r"(cr4 | rdmsr(CR4_FIXED0))); /* CR4.VMXE among them */
	bool ok;
	asm volatile("vmxon %1" : "=@cca"(ok) : "m"(vmxon_regions[this_cpu()]) : "memory");
	check(ok, "VMXON", vmxon_regions[this_cpu()]);
}

/* The fields cannot be written before VMXON: see load(). */
static void vmx_create(struct vm *vm)
{
	for (u64 i = 0; i < MAX_CPUS && !vmxon_regions[i]; i++)
		vmxon_regions[i] = region();
	vm->control = region();
	if (vm->passed_through && !(rdmsr(VMX_BASIC) & BASIC_HAS_TRUE))
		die("%s: this processor cannot pass CR3 through", vm->name);
}

/* A guest that is in 64-bit mode from the start, in ring 0, and has no interrupt table: what
   goes wrong in it exits to us. */
static void fill_guest(struct vm *vm)
{
	for (int s = ES; s < SEGMENTS; s++) {
		write(GUEST_SELECTORS + 2 * s, s == CS ? 8 : s >= LDTR ? 0 : 16);
		write(GUEST_BASES + 2 * s, 0);
		write(GUEST_LIMITS + 2 * s, s == TR ? 0x67 : 0xffffffff);
		/* 64-bit code; no LDT; a busy TSS, which there has to be; data */
		write(GUEST_RIGHTS + 2 * s, s == CS ? 0xa09b : s == LDTR ? 0x10000 : s == TR ? 0x8b : 0xc093);
	}
	write(GUEST_CR0, (CR0_PG | CR0_WP | CR0_NE | CR0_PE) | rdmsr(CR0_FIXED0));
	write(GUEST_CR3, vm->first.root);
	write(GUEST_CR4, CR4_PAE | rdmsr(CR4_FIXED0));
	write(GUEST_EFER, EFER_NXE | EFER_LMA | EFER_LME);
	write(GUEST_DR7, 0x400);
	write(GUEST_RFLAGS, 2);
	write(GUEST_RIP, vm->rip);
	write(GUEST_RSP, vm->rsp);
	write(LINK_POINTER, ~0ul); /* "Guest Non-Register State": none */
	static const u16 zero[] = {
		GUEST_GDTR_BASE, GUEST_GDTR_LIMIT, GUEST_IDTR_BASE, GUEST_IDTR_LIMIT, GUEST_INTERRUPTIBILITY, GUEST_ACTIVITY,
		GUEST_DEBUGCTL, GUEST_DEBUG, GUEST_SYSENTER_CS, GUEST_SYSENTER_ESP, GUEST_SYSENTER_EIP,
	};
	for (u64 i = 0; i < sizeof zero / sizeof *zero; i++)
		write(zero[i], 0);
}

/* What this CPU is after an exit. */
static void fill_host(void)
{
	extern struct { u16 limit; u64 base; } __attribute__((packed)) gdt_pointer, idt_pointer;
	u64 cr0, cr3, cr4;
	asm("mov %%cr0, %0" : "=r"(cr0));
	asm("mov %%cr3, %0" : "=r"(cr3));
	asm("mov %%cr4, %0" : "=r"(cr4));
	for (int s = ES; s <= GS; s++)
		write(HOST_SELECTORS + 2 * s, s == CS ? 8 : s >= FS ? 0 : 16);
	write(HOST_TR, 32 + 16 * this_cpu());
	write(HOST_TR_BASE, tss_of(this_cpu()));
	write(HOST_GDTR_BASE, gdt_pointer.base);
	write(HOST_IDTR_BASE, idt_pointer.base);
	write(HOST_CR0, cr0);
	write(HOST_CR3, cr3);
	write(HOST_CR4, cr4);
	write(HOST_EFER, rdmsr(EFER));
	write(HOST_RIP, (u64)vmx_exit); /* and HOST_RSP at each entry */
	static const u16 zero[] = { HOST_FS_BASE, HOST_GS_BASE, HOST_SYSENTER_CS, HOST_SYSENTER_ESP, HOST_SYSENTER_EIP };
	for (u64 i = 0; i < sizeof zero / sizeof *zero; i++)
		write(zero[i], 0);
}

/* What must exit. Interrupts do not, since they would even from a guest that has them off; and so
   has the program, and so have we. */
static void fill_controls(struct vm *vm)
{
	u64 pin = PIN_NMI_EXITS, cpu = CPU_HLT_EXITS | CPU_IO_EXITS | CPU_MORE, cpu2 = CPU2_EPT;
	if (vm->passed_through) {
		/* A Linux that starts goes through 32-bit mode once more, without paging. */
		pin = 0, cpu = CPU_MSR_BITMAP | CPU_MORE, cpu2 = CPU2_EPT | CPU2_UNRESTRICTED;
		/* Instructions that are none without their control: where CPUID has them, so they are. */
		static const u32 more[] = { CPU2_RDTSCP, CPU2_INVPCID, CPU2_XSAVES };
		for (u64 i = 0; i < sizeof more / sizeof *more; i++)
			cpu2 |= may(CPU2, more[i]) ? more[i] : 0;
		write(MSR_BITMAP, own_page());
		if (cpu2 & CPU2_XSAVES)
			write(XSS_EXITS, 0);
	}
	write(PIN_CONTROLS, controls(PIN, pin));
	write(CPU_CONTROLS, controls(CPU, cpu));
	write(CPU_CONTROLS2, controls(CPU2, cpu2));
	write(EXIT_CONTROLS, controls(EXIT, EXIT_SAVE_DEBUG | EXIT_64 | EXIT_SAVE_EFER | EXIT_LOAD_EFER));
	write(ENTRY_CONTROLS, controls(ENTRY, ENTRY_LOAD_DEBUG | ENTRY_64 | ENTRY_LOAD_EFER));
	write(EPT_POINTER, vm->second.root | (4 - 1) << 3 | 6); /* four levels, write-back */
	write(EXCEPTION_BITMAP, vm->passed_through ? 0 : 0xffffffff);
	write(CR4_MASK, CR4_VMXE); /* has to be set, and a guest sees it clear */
	static const u16 zero[] = {
		PF_MASK, PF_MATCH, CR3_TARGETS, EXIT_MSR_STORES, EXIT_MSR_LOADS, ENTRY_MSR_LOADS, ENTRY_EVENT,
		CR0_MASK, CR0_SHADOW, CR4_SHADOW,
	};
	for (u64 i = 0; i < sizeof zero / sizeof *zero; i++)
		write(zero[i], 0);
}

static void load(struct vm *vm)
{
	bool ok;
	if (current[this_cpu()] == vm->control)
		return;
	if (!vm->launched) {
		asm volatile("vmclear %1" : "=@cca"(ok) : "m"(vm->control) : "memory");
		check(ok, "VMCLEAR", vm->control);
	}
	asm volatile("vmptrld %1" : "=@cca"(ok) : "m"(vm->control) : "memory");
	check(ok, "VMPTRLD", vm->control);
	current[this_cpu()] = vm->control;
	if (!vm->launched) {
		fill_controls(vm);
		fill_host();
		fill_guest(vm);
	}
}

static void skip_instruction(void) { write(GUEST_RIP, read(GUEST_RIP) + read(INSTRUCTION_LENGTH)); }

/* The processor's own answer, but that there is no VMX, and what depends on the guest's CR4. */
static void answer_cpuid(struct vm *vm)
{
	u32 leaf = vm->regs.rax;
	struct cpuid r = cpuid(leaf, vm->regs.rcx);
	u64 cr4 = read(GUEST_CR4);
	if (leaf == 1)
		r.c = (r.c & ~(CPUID_VMX | CPUID_OSXSAVE)) | (cr4 & CR4_OSXSAVE ? CPUID_OSXSAVE : 0);
	if (leaf == 7 && (u32)vm->regs.rcx == 0)
		r.c = (r.c & ~CPUID_OSPKE) | (cr4 & CR4_PKE ? CPUID_OSPKE : 0);
	vm->regs.rax = r.a, vm->regs.rbx = r.b, vm->regs.rcx = r.c, vm->regs.rdx = r.d;
}

static void set_xcr(struct vm *vm)
{
	u64 cr4;
	asm volatile("mov %%cr4, %0" : "=r"(cr4));
	asm volatile("mov %0, %%cr4" :: "r"(cr4 | CR4_OSXSAVE));
	asm volatile("xsetbv" :: "c"((u32)vm->regs.rcx), "a"((u32)vm->regs.rax), "d"((u32)vm->regs.rdx));
	asm volatile("mov %0, %%cr4" :: "r"(cr4));
}

/* "Instructions That Cause VM Exits Unconditionally": those of a guest that has the machine are
   executed for it. */
static bool executed(struct vm *vm, u64 reason)
{
	switch (reason) {
	case REASON_CPUID:
		answer_cpuid(vm);
		break;
	case REASON_XSETBV:
		set_xcr(vm);
		break;
	case REASON_INVD:
		asm volatile("wbinvd");
		break;
	case REASON_RDMSR: /* of numbers that the bitmap has no bits for, and no processor has */
	case REASON_WRMSR:
		write(ENTRY_EVENT, GENERAL_PROTECTION);
		write(ENTRY_ERROR_CODE, 0);
		return true;
	default:
		return false;
	}
	skip_instruction();
	return true;
}

static struct exit vmx_run(struct vm *vm)
{
	load(vm);
	do {
		if (!vmx_enter(&vm->regs, vm->launched))
			die("%s: VM entry refused, error %u", vm->name, read(INSTRUCTION_ERROR));
		vm->launched = true;
	} while (vm->passed_through && executed(vm, read(EXIT_REASON)));

	struct exit e = { .code = read(EXIT_REASON), .rip = read(GUEST_RIP), .why = EXIT_OTHER };
	switch (e.code) { /* bit 31 is set when the guest's state was refused */
	case REASON_EXCEPTION:
		e.why = EXIT_EXCEPTION;
		e.vector = read(EXIT_EVENT) & 0xff;
		e.address = read(QUALIFICATION);
		break;
	case REASON_VMCALL:
		e.why = EXIT_CALL;
		break;
	case REASON_EPT_VIOLATION:
		e.why = EXIT_SECOND_STAGE;
		e.address = read(GUEST_PHYSICAL);
		break;
	}
	return e;
}

static void vmx_answer(struct vm *vm, u64 rax)
{
	vm->regs.rax = rax;
	skip_instruction();
}

const struct technology vmx = { "vmx", &ept, vmx_here, vmx_huge, vmx_enable, vmx_create, vmx_run, vmx_answer };
