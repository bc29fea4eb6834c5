/*
 * The machine's memory: what the loader says there is, dealt out so that no two things that
 * belong together lie together. A debugger that assumes otherwise is found out here.
 *
 *     1 MiB   the monitor
 *     8 MiB   own_page(): tables, control blocks
 *    16 MiB   scattered_page()
 *   128 MiB   large_page(), to 512 MiB
 *    1 GiB    huge_page(), where the memory has 1 GiB in one piece; the highest first
 */
#include "monitor.h"

#define OWN (8ul << 20)
#define SCATTERED (16ul << 20)
#define SCATTERED_COUNT 4096
#define LARGE_FIRST (128ul << 20)
#define LARGE_COUNT 192
#define END (LARGE_FIRST + LARGE_COUNT * LARGE)

static struct range { u64 first, end; } ram[32];
static u64 ranges;
static char command_line[1024];
static u64 file, file_size; /* that the loader brought beside the monitor */

static void found(u64 first, u64 size, u32 type)
{
	if (type == 1 && ranges < sizeof ram / sizeof *ram)
		ram[ranges++] = (struct range){ first, first + size };
}

/* What the loader says is where it pleases, and that may be what is dealt out later. */
static void keep_command_line(const char *text)
{
	u64 length = 0;
	while (text[length])
		length++;
	if (length >= sizeof command_line)
		die("monitor: a command line of %u bytes", length);
	copy(command_line, text, length + 1);
}

static bool is_ram(u64 first, u64 end)
{
	for (u64 i = 0; i < ranges; i++)
		if (ram[i].first <= first && end <= ram[i].end)
			return true;
	return false;
}

/* The same of the file, once the memory is known: behind all that is dealt out. */
static void keep_file(void)
{
	if (file >= END || !file_size)
		return;
	if (file + file_size > END || !is_ram(END, END + file_size))
		die("monitor: no room at %x for the %u bytes that came with it", END, file_size);
	copy(at(END), at(file), file_size);
	file = END;
}

/* Xen's "x86/HVM direct boot ABI", which QEMU's -kernel speaks. */
static void pvh(u64 info)
{
	struct start_info {
		u32 magic, version, flags, modules;
		u64 module_list, command_line, rsdp, memory_map;
		u32 memory_map_entries, reserved;
	} *s = at(info);
	struct entry { u64 first, size; u32 type, reserved; } *e = at(s->memory_map);
	for (u32 i = 0; i < s->memory_map_entries; i++)
		found(e[i].first, e[i].size, e[i].type);
	if (s->command_line)
		keep_command_line(at(s->command_line));
	struct module { u64 address, size, command_line, reserved; } *m = at(s->module_list);
	if (s->modules)
		file = m->address, file_size = m->size;
}

/* Multiboot2 Specification, "Boot information format": tags, each on 8 bytes. */
static void multiboot2(u64 info)
{
	struct tag { u32 type, size; } *t;
	for (u64 p = info + 8; (t = at(p))->type != 0; p += (t->size + 7) & ~7ul) {
		if (t->type == 1)
			keep_command_line((char *)(t + 1));
		if (t->type == 3 && !file_size) {
			const u32 *module = (u32 *)(t + 1); /* where it begins and ends */
			file = module[0], file_size = module[1] - module[0];
		}
		if (t->type != 6)
			continue;
		u32 entry_size = *(u32 *)(t + 1);
		for (u64 e = p + 16; e < p + t->size; e += entry_size)
			found(*(u64 *)at(e), *(u64 *)at(e + 8), *(u32 *)at(e + 16));
	}
}

void memory_init(u32 magic, u64 info)
{
	if (magic == 0x36d76289)
		multiboot2(info);
	else if (*(u32 *)at(info) == 0x336ec578)
		pvh(info);
	else
		die("monitor: no loader that is known: EAX %x, EBX %x", (u64)magic, info);
	if (!is_ram(OWN, END))
		die("monitor: it needs memory from %x to %x", OWN, END);
	keep_file();
}

u64 own_page(void)
{
	static u64 next = OWN;
	if (next == SCATTERED)
		die("monitor: out of pages for itself");
	u64 page = next;
	next += PAGE;
	clear(page, PAGE);
	return page;
}

u64 scattered_page(void)
{
	static u64 count;
	if (count == SCATTERED_COUNT)
		die("monitor: out of pages for guests");
	/* An odd factor and a power of two: every page once. */
	return SCATTERED + (count++ * 1637 + 911) % SCATTERED_COUNT * PAGE;
}

u64 large_page(void)
{
	static u64 count;
	if (count == LARGE_COUNT)
		die("monitor: out of large pages");
	/* 77 and the count have no common divisor. */
	return LARGE_FIRST + (count++ * 77 + 31) % LARGE_COUNT * LARGE;
}

u64 huge_page(void)
{
	static u64 end = ~0ul;
	u64 best = 0;
	for (u64 i = 0; i < ranges; i++) {
		u64 top = (ram[i].end < end ? ram[i].end : end) & -HUGE;
		if (top >= HUGE && top - HUGE >= ram[i].first && top - HUGE > best)
			best = top - HUGE;
	}
	if (best)
		end = best;
	return best;
}

/* The text behind "name=" on the command line, NULL if it is not there. */
static const char *value_of(const char *name)
{
	for (const char *p = command_line; *p;) {
		const char *n = name;
		while (*n && *p == *n)
			p++, n++;
		if (!*n && *p == '=')
			return p + 1;
		while (*p && *p++ != ' ')
			;
	}
	return 0;
}

u64 option(const char *name, u64 otherwise)
{
	const char *p = value_of(name);
	if (!p || *p < '0' || *p > '9')
		return otherwise;
	u64 n = 0;
	for (; *p >= '0' && *p <= '9'; p++)
		n = n * 10 + (*p - '0');
	return n;
}

bool option_is(const char *name, const char *value)
{
	const char *p = value_of(name);
	while (p && *value && *p == *value)
		p++, value++;
	return p && !*value && (!*p || *p == ' ');
}

void *loader_file(u64 *size)
{
	*size = file_size;
	return at(file);
}

void clear(u64 physical, u64 size)
{
	void *to = at(physical);
	asm volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(0) : "memory");
}

void copy(void *to, const void *from, u64 size)
{
	asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) :: "memory");
}
