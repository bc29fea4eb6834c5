/*
 * Page tables. A second stage and a guest's own tables differ in bits and in whose addresses
 * stand in the entries; both is data (struct paging, struct space), so there is one map().
 */
#include "monitor.h"

#define ADDRESS 0x000ffffffffff000ul
#define LARGE_LEAF (1ul << 7) /* the same bit in all formats */

/* AMD APM Vol. 2, "Page Translation and Protection": present, writable, no-execute. */
const struct paging x86 = { "x86", .table = 1 | 2, .leaf = 1, .write = 2, .noexec = 1ul << 63 };
/* "Nested Paging": every access of a guest is a user access, so U/S has to be set throughout. */
const struct paging npt = { "npt", .table = 1 | 2 | 4, .leaf = 1 | 4, .write = 2, .noexec = 1ul << 63 };
/* Intel SDM Vol. 3C, "EPT Translation Mechanism": read, write, execute; bits 3 to 5 of a leaf are the
   memory type, 6 is write-back. */
const struct paging ept = { "ept", .table = 1 | 2 | 4, .leaf = 1 | 6 << 3, .write = 2, .exec = 4 };

static u64 *entry_of(u64 *table, u64 address, int level)
{
	return &table[address >> (12 + 9 * level) & 511];
}

void map(struct space *s, u64 from, u64 to, int level, int rights)
{
	const struct paging *f = s->format;
	u64 *table = s->at(s, s->root);
	for (int l = 3; l > level; l--) {
		u64 *entry = entry_of(table, from, l);
		if (!*entry)
			*entry = s->new_table(s) | f->table;
		table = s->at(s, *entry & ADDRESS);
	}
	u64 *leaf = entry_of(table, from, level);
	if (*leaf)
		die("%s %s: %x is mapped already", s->owner, s->stage, from);
	*leaf = to | f->leaf | (level ? LARGE_LEAF : 0) | (rights & WRITE ? f->write : 0) |
		(rights & EXEC ? f->exec : f->noexec);
	say("truth %s %s %x %x %x r%s%s", s->owner, s->stage, from, to, PAGE << 9 * level,
	    rights & WRITE ? "w" : "-", rights & EXEC ? "x" : "-");
}

bool walk(struct space *s, u64 address, u64 *to)
{
	u64 *table = s->at(s, s->root);
	for (int level = 3;; level--) {
		u64 entry = *entry_of(table, address, level);
		if (!entry)
			return false;
		u64 within = (PAGE << 9 * level) - 1;
		if (!level || entry & LARGE_LEAF) {
			*to = (entry & ADDRESS & ~within) | (address & within);
			return true;
		}
		table = s->at(s, entry & ADDRESS);
	}
}
