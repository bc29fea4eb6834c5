/*
 * What a VM is made of: its memory, in pages from all over the place, and the program in it, with
 * page tables of its own. The addresses of the three layers have nothing to do with each other.
 */
#include <elf.h>
#include "monitor.h"

struct vm vms[MAX_VMS];
extern u8 program_file[];

/* Guest-physical. Below QUILT_AT are 4 KiB pages, downward, with holes. */
#define SMALL_END  0x0000000000300000
#define ALMANAC_AT 0x0000000000600000 /* one 2 MiB page, read-only */
#define HEAP_AT    0x0000000000800000 /* one 2 MiB page */
#define QUILT_AT   0x0000000000c00000 /* 4 KiB pages here and there */
#define PLANT_AT   0x0000000000e00000 /* for vm_overlap */
#define LAKE_AT    0x0000000040000000 /* 1 GiB page, or 2 MiB if there is none */

/* Virtual: LARGE pages for the heap and the quilt, HUGE for the lake. */
#define QUILT_VA   0x0000500000000000
#define PROGRAM_VA 0x0000558000000000
#define APART      0x0000001123456000 /* of the programs of two VMs */
#define HEAP_VA    0x0000600000000000
#define ALMANAC_VA 0x0000610000000000
#define LAKE_VA    0x0000700000000000
#define STACK_VA   0x00007ffff0000000 /* its end */
#define ALMANAC_PAGES 16
#define STACK_PAGES 4

static void *second_stage_at(struct space *s, u64 address)
{
	(void)s;
	return at(address);
}

static u64 second_stage_table(struct space *s)
{
	u64 page = own_page();
	say("truth %s stage2-table %x", s->owner, page);
	return page;
}

void *vm_at(struct vm *vm, u64 guest_physical)
{
	u64 physical;
	if (!walk(&vm->second, guest_physical, &physical))
		die("%s: nothing at guest-physical %x", vm->name, guest_physical);
	return at(physical);
}

/* A guest's 4 KiB page: guest-physical addresses go down, every fifth is left out. */
static u64 small_page(struct vm *vm, int rights)
{
	do
		vm->lowest -= PAGE;
	while (vm->lowest / PAGE % 5 == 0);
	u64 page = scattered_page();
	map(&vm->second, vm->lowest, page, 0, rights);
	clear(page, PAGE);
	return vm->lowest;
}

static void *guest_at(struct space *s, u64 address) { return vm_at(s->vm, address); }

/* A walk of the guest writes to its tables, accessed and dirty bits: the second stage must let it. */
static u64 guest_table(struct space *s)
{
	u64 page = small_page(s->vm, READ | WRITE);
	say("truth %s stage1-table %x", s->owner, page);
	return page;
}

static void *virtual_at(struct vm *vm, u64 address)
{
	u64 physical;
	if (!walk(&vm->first, address, &physical))
		die("%s: nothing at virtual %x", vm->name, address);
	return vm_at(vm, physical);
}

static void load_segment(struct vm *vm, const Elf64_Phdr *p)
{
	int rights = READ | (p->p_flags & PF_W ? WRITE : 0) | (p->p_flags & PF_X ? EXEC : 0);
	u64 end = p->p_vaddr + p->p_memsz;
	for (u64 va = p->p_vaddr & -PAGE; va < end; va += PAGE)
		map(&vm->first, vm->base + va, small_page(vm, rights), 0, rights);
	for (u64 i = 0; i < p->p_filesz; i++)
		*(u8 *)virtual_at(vm, vm->base + p->p_vaddr + i) = program_file[p->p_offset + i];
}

/* A position-independent program needs one kind of relocation: addresses of its own. */
static void relocate(struct vm *vm, const Elf64_Dyn *dynamic)
{
	u64 rela = 0, size = 0;
	for (; dynamic->d_tag != DT_NULL; dynamic++) {
		if (dynamic->d_tag == DT_RELA)
			rela = dynamic->d_un.d_ptr;
		if (dynamic->d_tag == DT_RELASZ)
			size = dynamic->d_un.d_val;
	}
	for (u64 i = 0; i < size; i += sizeof(Elf64_Rela)) {
		const Elf64_Rela *r = virtual_at(vm, vm->base + rela + i);
		if (ELF64_R_TYPE(r->r_info) != R_X86_64_RELATIVE)
			die("%s: relocation of type %u", vm->name, (u64)ELF64_R_TYPE(r->r_info));
		*(u64 *)virtual_at(vm, vm->base + r->r_offset) = vm->base + r->r_addend;
	}
}

static void load_program(struct vm *vm)
{
	const Elf64_Ehdr *file = (void *)program_file;
	const Elf64_Phdr *segments = (void *)(program_file + file->e_phoff);
	vm->base = PROGRAM_VA + vm->number * APART;
	say("truth %s program %x", vm->name, vm->base);
	for (int i = 0; i < file->e_phnum; i++)
		if (segments[i].p_type == PT_LOAD)
			load_segment(vm, &segments[i]);
	for (int i = 0; i < file->e_phnum; i++)
		if (segments[i].p_type == PT_DYNAMIC)
			relocate(vm, (void *)(program_file + segments[i].p_offset));
	vm->rip = vm->base + file->e_entry;
}

static void make_arenas(struct vm *vm)
{
	static const u64 quilt[] = { QUILT };
	map(&vm->second, ALMANAC_AT, large_page(), 1, READ);
	map(&vm->second, HEAP_AT, large_page(), 1, READ | WRITE);
	map(&vm->first, HEAP_VA, HEAP_AT, 1, READ | WRITE);
	/* What the guest may do by its own tables and not by the second stage: write here. */
	for (u64 i = 0; i < ALMANAC_PAGES; i++)
		map(&vm->first, ALMANAC_VA + i * PAGE, ALMANAC_AT + (ALMANAC_PAGES - 1 - i) * PAGE, 0, READ | WRITE);
	for (u64 i = 0; i < ALMANAC_PAGES * PAGE / 8; i++)
		*(u64 *)virtual_at(vm, ALMANAC_VA + i * 8) = almanac_entry(i);
	/* One large page of the guest, a few small ones of ours. */
	for (u64 i = 0; i < sizeof quilt / sizeof *quilt; i++)
		map(&vm->second, QUILT_AT + quilt[i] * PAGE, scattered_page(), 0, READ | WRITE);
	map(&vm->first, QUILT_VA, QUILT_AT, 1, READ | WRITE);
	u64 lake = technology->huge() ? huge_page() : 0;
	int level = lake ? 2 : 1;
	map(&vm->second, LAKE_AT, lake ? lake : large_page(), level, READ | WRITE);
	map(&vm->first, LAKE_VA, LAKE_AT, level, READ | WRITE);
	for (u64 i = 1; i <= STACK_PAGES; i++)
		map(&vm->first, STACK_VA - i * PAGE, small_page(vm, READ | WRITE), 0, READ | WRITE);
}

static u64 wanted_crash(struct vm *vm)
{
	static const char *const names[] = { [CRASH_STORE] = "store", "call", "hole", "readonly" };
	for (u64 i = CRASH_STORE; i < sizeof names / sizeof *names; i++)
		if (option_is("crash", names[i]) && vm->number == option("crash-vm", 0))
			return i;
	return CRASH_NONE;
}

/* The program's VM. */
static void program_load(struct vm *vm)
{
	vm->lowest = SMALL_END;
	vm->first.root = guest_table(&vm->first);
	load_program(vm);
	make_arenas(vm);
	*(struct start *)virtual_at(vm, HEAP_VA) = (struct start){
		.number = vm->number, .vmcall = technology == &vmx,
		.crash = wanted_crash(vm), .crash_round = option("crash-round", 3),
		.heap = HEAP_VA, .almanac = ALMANAC_VA, .lake = LAKE_VA, .quilt = QUILT_VA,
	};
	vm->regs.rdi = HEAP_VA;
	vm->rsp = STACK_VA;
}

void vm_create(struct vm *vm, u64 number)
{
	copy(vm->name, (char[]){ 'v', 'm', '0' + number, 0 }, sizeof vm->name);
	vm->number = number;
	vm->second = (struct space){ technology->second, vm->name, "stage2", 0, vm, second_stage_table, second_stage_at };
	vm->second.root = second_stage_table(&vm->second);
	vm->first = (struct space){ &x86, vm->name, "stage1", 0, vm, guest_table, guest_at };
	if (option_is("guest", "linux"))
		linux_load(vm);
	else
		program_load(vm);
	technology->create(vm);
	say("truth %s control %x", vm->name, vm->control);
	say("truth %s stage2-root %x %s", vm->name, vm->second.root, technology->second->name);
	say("truth %s stage1-root %x", vm->name, vm->first.root);
}

/* Mistakes that a monitor's author would like to be told of. */
void vm_overlap(void)
{
	if (option_is("plant", "page")) {
		if (!vms[1].control)
			die("monitor: plant=page is of two VMs");
		u64 page = scattered_page();
		say("plant page %x", page);
		for (int i = 0; i < 2; i++)
			map(&vms[i].second, PLANT_AT + i * PAGE, page, 0, READ | WRITE);
	}
	if (option_is("plant", "table")) {
		say("plant table %x", vms[0].second.root);
		map(&vms[0].second, PLANT_AT, vms[0].second.root, 0, READ | WRITE);
	}
}
