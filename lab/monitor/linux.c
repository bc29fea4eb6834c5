/*
 * A Linux in a VM, instead of the program: what a boot loader does, by the kernel's "64-bit boot
 * protocol" (Documentation/x86/boot.rst). Everything but memory is passed through: ports, MSRs,
 * and interrupts, which go where the guest has its table. So this is for one VM on one CPU.
 */
#include "monitor.h"

/* Guest-physical. Memory ends at RAM_END and has a hole; the first 2 MiB are of small pages. */
#define BOOT_PARAMS 0x10000
#define COMMAND_LINE 0x20000
#define TABLES 0x70000
#define LOW_END 0x9f000
#define HIGH 0x100000
#define HOLE 0x6000000
#define RAM_END 0xc000000
#define INITRD 0x8000000

/* Where things are in boot_params, which begins like the kernel's file (struct boot_params). */
enum {
	E820_ENTRIES = 0x1e8, SETUP_SECTS = 0x1f1, JUMP_LENGTH = 0x201, HEADER_END = 0x202, LOADER = 0x210,
	RAMDISK_IMAGE = 0x218, RAMDISK_SIZE = 0x21c, COMMAND_LINE_AT = 0x228, PREFERRED_ADDRESS = 0x258, E820_TABLE = 0x2d0,
};

#define ENTRY_64 0x200 /* behind the beginning of the protected-mode kernel */

static const char arguments[] = "console=ttyS0 quiet acpi=off noapic nolapic pci=off nowatchdog panic=-1";

static void to_guest(struct vm *vm, u64 address, const void *from, u64 size)
{
	for (const u8 *p = from; size;) {
		u64 part = PAGE - address % PAGE < size ? PAGE - address % PAGE : size;
		copy(vm_at(vm, address), p, part);
		address += part, p += part, size -= part;
	}
}

static u64 put8(struct vm *vm, u64 address, u64 value, u64 size)
{
	to_guest(vm, address, &value, size);
	return address + size;
}

static void map_memory(struct vm *vm)
{
	for (u64 a = 0; a < LARGE; a += PAGE) {
		u64 page = scattered_page();
		map(&vm->second, a, page, 0, READ | WRITE | EXEC);
		clear(page, PAGE);
	}
	for (u64 a = LARGE; a < RAM_END; a += LARGE) {
		if (a == HOLE)
			continue;
		u64 page = large_page();
		map(&vm->second, a, page, 1, READ | WRITE | EXEC);
		clear(page, LARGE);
	}
}

static u64 linux_table(struct space *s)
{
	s->vm->lowest += PAGE;
	return s->vm->lowest - PAGE;
}

/* The file that the loader brought: the sizes of kernel and initramfs, and both. */
void linux_load(struct vm *vm)
{
	u64 size, *file = loader_file(&size);
	if (size < 16 || size - 16 < file[0] || size - 16 - file[0] < file[1])
		die("%s: no kernel and initramfs came with the monitor", vm->name);
	const u8 *kernel = (u8 *)(file + 2), *initrd = kernel + file[0];
	u64 skip = (kernel[SETUP_SECTS] + 1) * 512;
	u64 load = *(u64 *)(kernel + PREFERRED_ADDRESS);

	map_memory(vm);
	vm->lowest = TABLES;
	vm->first.new_table = linux_table;
	vm->first.root = linux_table(&vm->first);
	for (u64 a = 0; a < RAM_END; a += LARGE)
		map(&vm->first, a, a, 1, READ | WRITE | EXEC);

	to_guest(vm, load, kernel + skip, file[0] - skip);
	to_guest(vm, INITRD, initrd, file[1]);
	to_guest(vm, COMMAND_LINE, arguments, sizeof arguments);
	to_guest(vm, BOOT_PARAMS + SETUP_SECTS, kernel + SETUP_SECTS, HEADER_END + kernel[JUMP_LENGTH] - SETUP_SECTS);
	put8(vm, BOOT_PARAMS + LOADER, 0xff, 1);
	put8(vm, BOOT_PARAMS + RAMDISK_IMAGE, INITRD, 4);
	put8(vm, BOOT_PARAMS + RAMDISK_SIZE, file[1], 4);
	put8(vm, BOOT_PARAMS + COMMAND_LINE_AT, COMMAND_LINE, 4);
	static const u64 ram[][2] = { { 0, LOW_END }, { HIGH, HOLE }, { HOLE + LARGE, RAM_END } };
	put8(vm, BOOT_PARAMS + E820_ENTRIES, 3, 1);
	for (u64 i = 0, p = BOOT_PARAMS + E820_TABLE; i < 3; i++) {
		p = put8(vm, p, ram[i][0], 8);
		p = put8(vm, p, ram[i][1] - ram[i][0], 8);
		p = put8(vm, p, 1, 4);
	}
	vm->rip = load + ENTRY_64;
	vm->rsp = BOOT_PARAMS;
	vm->regs.rsi = BOOT_PARAMS;
	vm->passed_through = true;
}
