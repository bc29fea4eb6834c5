/*
 * What the VMs run: a program with functions that call each other, globals, a list that is
 * spread over all of its memory, and a loop that makes progress. There is no kernel and no library.
 */
#include "call.h"

struct item {
	struct item *next;
	u64 serial, weight;
	char label[16];
};

typedef u64 weigher(const struct item *, u64 round);

static u64 by_serial(const struct item *item, u64 round);
static u64 by_almanac(const struct item *item, u64 round);

/* Addresses in data: they are relocated when the program is loaded. */
struct shop {
	const char *name;
	weigher *weighers[2];
	struct item *shelf;
	u64 items;
} shop = { .name = "corner shop", .weighers = { by_serial, by_almanac } };

const struct start *given;
u64 rounds, total, answers;
u64 ledger[2048]; /* four pages that are next to each other here, and nowhere else */

#define ITEMS 12

static u64 call_monitor(u64 number, u64 argument)
{
	u64 answer = number;
	if (given->vmcall)
		asm volatile("vmcall" : "+a"(answer) : "D"(argument) : "memory");
	else
		asm volatile("vmmcall" : "+a"(answer) : "D"(argument) : "memory");
	return answer;
}

static u64 mix(u64 a, u64 b)
{
	u64 mixed = (a ^ b) * 31 + (a >> 7);
	return mixed;
}

static void wild_store(const struct item *item)
{
	u64 *wild = (u64 *)0xdead0000;
	*wild = item->serial;
}

static void null_call(const struct item *item)
{
	void (*nothing)(const struct item *) = 0;
	nothing(item);
}

/* Page 3 of the quilt is not there, but for the program's own page tables. */
static void store_in_hole(const struct item *item) { *(u64 *)(given->quilt + 3 * 4096 + 0x18) = item->serial; }
static void store_in_almanac(const struct item *item) { *(u64 *)(given->almanac + 0x20) = item->serial; }

static void crash(const struct item *item, u64 how)
{
	switch (how) {
	case CRASH_STORE:
		wild_store(item);
		break;
	case CRASH_CALL:
		null_call(item);
		break;
	case CRASH_HOLE:
		store_in_hole(item);
		break;
	case CRASH_READONLY:
		store_in_almanac(item);
		break;
	}
}

static u64 by_serial(const struct item *item, u64 round)
{
	return mix(item->serial, round);
}

static u64 by_almanac(const struct item *item, u64 round)
{
	const u64 *almanac = (const u64 *)given->almanac;
	u64 entry = almanac[(item->serial * 512 + round) % 8192];
	if (given->crash && round == given->crash_round && item->serial == 5)
		crash(item, given->crash);
	return mix(entry, item->weight);
}

static u64 weigh(struct item *item, u64 round)
{
	weigher *how = shop.weighers[item->serial % 2];
	item->weight = how(item, round);
	return item->weight;
}

static u64 take_stock(u64 round)
{
	u64 sum = 0;
	for (struct item *item = shop.shelf; item; item = item->next)
		sum += weigh(item, round);
	return sum;
}

static void write_down(u64 round, u64 sum)
{
	static const u64 patches[] = { QUILT };
	ledger[round % 2048] = sum;
	u64 patch = patches[round % (sizeof patches / sizeof *patches)];
	*(u64 *)(given->quilt + patch * 4096 + 8 * (round % 256)) = sum; /* items are in its other half */
}

static void one_round(u64 round)
{
	u64 sum = take_stock(round);
	write_down(round, sum);
	total += sum;
	answers += call_monitor(CALL_DOUBLE, round);
}

/* Every third item is in the heap, in the lake, in the quilt, the last one first. */
static void fill_shelf(void)
{
	static const u64 patches[] = { QUILT };
	for (u64 i = ITEMS; i--;) {
		struct item *item = (void *)(i % 3 == 0 ? given->heap + 0x1000 + i * 0x10230 :
			i % 3 == 1 ? given->lake + 0x10000 + i * 0x1530 :
			given->quilt + patches[i / 3] * 4096 + 0xff0 - i * 8);
		item->next = shop.shelf;
		item->serial = i;
		item->weight = 0;
		for (int c = 0; c < 15; c++)
			item->label[c] = 'a' + (i + c) % 26;
		item->label[15] = 0;
		shop.shelf = item;
		shop.items++;
	}
}

void work(const struct start *start)
{
	given = start;
	fill_shelf();
	for (;;) {
		rounds++;
		one_round(rounds);
		call_monitor(CALL_ROUND, rounds);
	}
}
