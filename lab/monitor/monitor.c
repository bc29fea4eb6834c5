/*
 * A small hypervisor: it starts some VMs, each with a program of its own, and answers their calls.
 * On its command line: vms=N cpus=N crash=store|call|hole|readonly crash-vm=N crash-round=N
 * plant=page|table.
 */
#include "monitor.h"

#define PIC1_MASK 0x21
#define PIC2_MASK 0xa1

extern u32 magic, info; /* boot.S: what the loader left */

const struct technology *technology;
static u64 vm_count, cpu_count;
static u32 beginners; /* VMs whose first round is not done */

static u64 round_done(struct vm *vm, u64 round)
{
	vm->rounds = round;
	if (round == 1 && __atomic_sub_fetch(&beginners, 1, __ATOMIC_ACQ_REL) == 0)
		say("monitor: ready");
	return vm->calls;
}

static u64 call(struct vm *vm, u64 number, u64 argument)
{
	vm->calls++;
	switch (number) {
	case CALL_ROUND:
		return round_done(vm, argument);
	case CALL_DOUBLE:
		return argument * 2;
	}
	return ~0ul;
}

/* The VM stays as it is, for a debugger to look at. */
static void crashed(struct vm *vm, const struct exit *e)
{
	vm->crashed = true;
	switch (e->why) {
	case EXIT_EXCEPTION:
		say("crash %s exception %u address %x rip %x", vm->name, e->vector, e->address, e->rip);
		break;
	case EXIT_SECOND_STAGE:
		say("crash %s second-stage address %x rip %x", vm->name, e->address, e->rip);
		break;
	default:
		say("crash %s exit %x rip %x", vm->name, e->code, e->rip);
	}
}

/* Lets a VM run until it calls or does what it must not. */
static void turn(struct vm *vm)
{
	struct exit e = technology->run(vm);
	if (e.why == EXIT_CALL)
		technology->answer(vm, call(vm, vm->regs.rax, vm->regs.rdi));
	else
		crashed(vm, &e);
}

/* The VMs of one CPU, in turns. */
void run(u64 cpu)
{
	technology->enable();
	for (bool alive = true; alive;) {
		alive = false;
		for (struct vm *vm = vms; vm < vms + vm_count; vm++) {
			if (vm->cpu != cpu || vm->crashed)
				continue;
			turn(vm);
			alive = true;
		}
	}
}

/* On the first CPU, once. */
void monitor(void)
{
	console_init();
	/* Firmware leaves its timer ticking, and nothing here would take an interrupt. A Linux is started
	   like this too (Linux 6.1 arch/x86/boot/pm.c:mask_all_interrupts). */
	out8(PIC1_MASK, 0xff);
	out8(PIC2_MASK, 0xff);
	memory_init(magic, info);
	technology = svm.here() ? &svm : vmx.here() ? &vmx : 0;
	if (!technology)
		die("monitor: this CPU has neither SVM with nested paging nor VMX with EPT");
	vm_count = option("vms", 1);
	cpu_count = option("cpus", 1);
	if (vm_count > MAX_VMS || cpu_count > MAX_CPUS)
		die("monitor: at most %u VMs and %u CPUs", (u64)MAX_VMS, (u64)MAX_CPUS);
	say("monitor: %s", technology->name);
	say("truth l1 stage1-root %x", (u64)tables);
	beginners = vm_count;
	for (u64 i = 0; i < vm_count; i++) {
		vm_create(&vms[i], i);
		vms[i].cpu = i % cpu_count;
	}
	vm_overlap();
	if (cpu_count > 1)
		start_other_cpus(cpu_count);
}
