/* A small hypervisor; README.md says what is where. */
#ifndef MONITOR_H
#define MONITOR_H

#include <stdarg.h>
#include <stdbool.h>
#include "call.h"

#define PAGE 4096ul
#define LARGE (512 * PAGE)
#define HUGE (512 * LARGE)
#define MAX_CPUS 16
#define MAX_VMS 4
#define STACK_SIZE 16384 /* boot.S has this and MAX_CPUS, too */

/* console.c: the serial line. %s, %u, %x; every number is a u64. A line is said in one piece. */
void console_init(void);
void say(const char *format, ...);
_Noreturn void die(const char *format, ...);

/* memory.c: the machine's memory, which is at its physical addresses, and the command line. */
void memory_init(u32 magic, u64 info);
u64 own_page(void);       /* a zeroed page for the monitor itself; in order */
u64 scattered_page(void); /* a page for a guest: of neighbours none is next to the other */
u64 large_page(void);     /* 2 MiB, aligned; in no order */
u64 huge_page(void);      /* 1 GiB, aligned; 0: there is none left */
u64 option(const char *name, u64 otherwise);           /* name=NUMBER */
bool option_is(const char *name, const char *value);   /* name=value */
void copy(void *to, const void *from, u64 size);
void clear(u64 physical, u64 size);
void *loader_file(u64 *size); /* what the loader brought beside the monitor; size 0: nothing */

static inline void *at(u64 physical) { return (void *)physical; }

/* table.c: page tables of four levels, which are the same thing in both stages. */
enum rights { READ = 1, WRITE = 2, EXEC = 4 };

struct paging {
	const char *name;
	u64 table;                /* bits of an entry that leads to a table */
	u64 leaf;                 /* bits of one that leads to memory */
	u64 write, exec, noexec;  /* and those that say what may be done there */
};

extern const struct paging x86, npt, ept;

/* The addresses in entries are the ones of the machine that walks: for a guest's own tables, the guest's. */
struct space {
	const struct paging *format;
	const char *owner, *stage; /* for the truth */
	u64 root;
	struct vm *vm;
	u64 (*new_table)(struct space *);         /* a zeroed page for a table */
	void *(*at)(struct space *, u64 address); /* where we see it */
};

/* Maps one page of level 0 (4 KiB), 1 (2 MiB) or 2 (1 GiB), and tells the truth about it. */
void map(struct space *, u64 from, u64 to, int level, int rights);
bool walk(struct space *, u64 address, u64 *to);

/* vm.c: what a VM is, without how the processor runs it. */
struct regs { u64 rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15; };

struct vm {
	char name[4];
	u64 number, cpu;
	bool crashed;
	u64 rounds, calls;
	struct regs regs;
	u64 rip, rsp;         /* where it begins; from then on the control block knows */
	u64 base;             /* of the program in it */
	u64 control;          /* the VMCB or VMCS */
	bool passed_through;  /* it has the machine but for its memory: no other exits than must be */
	bool launched;        /* VMX distinguishes the first entry from the others */
	u64 lowest;           /* guest-physical page that was given away last */
	struct space first, second;
};

extern struct vm vms[MAX_VMS];
void vm_create(struct vm *, u64 number);
void vm_overlap(void); /* option plant=page or plant=table: see README.md */
void linux_load(struct vm *); /* linux.c: option guest=linux */
void *vm_at(struct vm *, u64 guest_physical);

/* svm.c and vmx.c: how the processor runs it. */
struct exit {
	enum { EXIT_CALL, EXIT_EXCEPTION, EXIT_SECOND_STAGE, EXIT_OTHER } why;
	u64 code;    /* as the processor has it */
	u64 vector;  /* of an exception */
	u64 address; /* that was accessed: virtual for an exception, guest-physical for the second stage */
	u64 rip;
};

struct technology {
	const char *name;
	const struct paging *second;
	bool (*here)(void);            /* whether this CPU has it */
	bool (*huge)(void);            /* whether its second stage may have 1 GiB pages */
	void (*enable)(void);          /* on this CPU */
	void (*create)(struct vm *);   /* vm->control, from the rest of vm */
	struct exit (*run)(struct vm *);
	void (*answer)(struct vm *, u64 rax); /* and on behind the VM call */
};

extern const struct technology svm, vmx;
extern const struct technology *technology;
void svm_enter(u64 vmcb, struct regs *);                /* entry.S */
bool vmx_enter(struct regs *, bool launched);
void vmx_exit(void);

/* cpu.c: the CPUs, and what C has no words for. */
extern volatile u32 cpus;      /* that have started */
extern u8 stacks[MAX_CPUS][STACK_SIZE];
extern u64 tables[];           /* the monitor's own page tables */
void start_other_cpus(u64 count);
u64 tss_of(u64 cpu);
u64 this_cpu(void);

static inline void out8(u16 port, u8 v) { asm volatile("outb %0, %1" :: "a"(v), "Nd"(port)); }
static inline u8 in8(u16 port) { u8 v; asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }

static inline u64 rdmsr(u32 n)
{
	u32 low, high;
	asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(n));
	return (u64)high << 32 | low;
}

static inline void wrmsr(u32 n, u64 v)
{
	asm volatile("wrmsr" :: "c"(n), "a"((u32)v), "d"((u32)(v >> 32)));
}

struct cpuid { u32 a, b, c, d; };
static inline struct cpuid cpuid(u32 leaf, u32 subleaf)
{
	struct cpuid r;
	asm volatile("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d) : "a"(leaf), "c"(subleaf));
	return r;
}

#define EFER 0xc0000080
#define EFER_LME (1 << 8)
#define EFER_LMA (1 << 10)
#define EFER_NXE (1 << 11)
#define CR0_PE (1 << 0)
#define CR0_NE (1 << 5)
#define CR0_WP (1 << 16)
#define CR0_PG (1ul << 31)
#define CR4_PAE (1 << 5)

#endif
