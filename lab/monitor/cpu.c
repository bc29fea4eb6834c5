/* The CPUs: what boot.S leaves to C. */
#include "monitor.h"

u8 stacks[MAX_CPUS][STACK_SIZE] __attribute__((aligned(4096)));
struct { u16 limit; u64 base; } __attribute__((packed)) idt_pointer;

static struct gate { u16 low, selector, flags, middle; u32 high, zero; } idt[32];
static u8 tss[MAX_CPUS][104] __attribute__((aligned(128)));

extern u8 vectors[], trampoline[], trampoline_end[];
extern u64 gdt_tss[];

#define LOCAL_APIC 0xfee00000
#define ICR_LOW (LOCAL_APIC + 0x300)
#define INIT_ALL_OTHERS 0x000c4500
#define START_ALL_OTHERS 0x000c4600
#define TRAMPOLINE 0x8000
#define PATIENCE 5000000 /* microseconds or so */

/* Made by the first CPU: it is zero, and so are no gates, when the others come by. */
static void make_idt(void)
{
	for (int i = 0; i < 32; i++) {
		u64 handler = (u64)vectors + 16 * i;
		idt[i] = (struct gate){ handler, 8, 0x8e00, handler >> 16, handler >> 32, 0 };
	}
	idt_pointer.limit = sizeof idt - 1;
	idt_pointer.base = (u64)idt;
}

u64 tss_of(u64 cpu) { return (u64)tss[cpu]; }

/* Nothing here uses a TSS, but VMX demands that a host has one. */
static void load_tss(u64 cpu)
{
	u64 base = tss_of(cpu);
	gdt_tss[2 * cpu] = (base & 0xffffff) << 16 | (base >> 24 & 0xff) << 56 | 0x89ul << 40 | (sizeof tss[0] - 1);
	gdt_tss[2 * cpu + 1] = base >> 32;
	asm volatile("ltr %w0" :: "r"(32 + 16 * cpu));
}

/* By where the stack is, so that nothing has to be set up for it. */
u64 this_cpu(void)
{
	return ((u64)__builtin_frame_address(0) - (u64)stacks) / STACK_SIZE;
}

void monitor(void);
void run(u64 cpu);

/* Called by boot.S on every CPU, with interrupts off, as they stay. */
_Noreturn void cpu_start(u64 cpu)
{
	if (cpu == 0)
		make_idt();
	asm volatile("lidt %0" :: "m"(idt_pointer));
	load_tss(cpu);
	if (cpu == 0)
		monitor();
	run(cpu);
	for (;;)
		asm volatile("cli; hlt");
}

_Noreturn void unexpected(u64 vector, u64 *pushed)
{
	die("monitor: exception %u on CPU %u; stack: %x %x %x %x", vector, this_cpu(), pushed[0], pushed[1], pushed[2], pushed[3]);
}

/* Intel SDM Vol. 3A, "MP Initialization Protocol Algorithm for MP Systems". */
void start_other_cpus(u64 count)
{
	volatile u32 *icr = at(ICR_LOW);
	copy(at(TRAMPOLINE), trampoline, trampoline_end - trampoline);
	*icr = INIT_ALL_OTHERS;
	for (int i = 0; i < 10000; i++)
		out8(0x80, 0); /* about a microsecond each: the protocol wants 10 ms */
	*icr = START_ALL_OTHERS | TRAMPOLINE >> 12;
	for (u64 i = 0; cpus < count; i++) {
		if (i == PATIENCE)
			die("monitor: %u CPUs have started, not %u", (u64)cpus, count);
		out8(0x80, 0);
	}
}
