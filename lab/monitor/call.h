/* What the monitor and the program in its VMs have agreed upon. */
#ifndef CALL_H
#define CALL_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

/*
 * A VM call (VMMCALL, VMCALL) has its number in RAX and an argument in RDI; RAX is the answer.
 * Every one of them is also where the monitor lets another VM of the same CPU run.
 */
enum call {
	CALL_ROUND = 1, /* a round is done, the argument says which; answers how many calls there were */
	CALL_DOUBLE,    /* answers twice the argument */
};

/* What shall go wrong. */
enum crash {
	CRASH_NONE,
	CRASH_STORE,    /* a store through a pointer that leads nowhere */
	CRASH_CALL,     /* a call of a null pointer */
	CRASH_HOLE,     /* a store where the program's page tables lead and the second stage does not */
	CRASH_READONLY, /* a store where the second stage forbids it */
};

/* Where the program finds this is in RDI at its start. */
struct start {
	u64 number;     /* of the VM */
	u64 vmcall;     /* whether it is VMCALL, not VMMCALL */
	u64 crash;      /* enum crash */
	u64 crash_round;
	u64 heap;       /* 2 MiB, writable; this structure is at its beginning */
	u64 almanac;    /* 64 KiB that nobody may write, of u64: entry n is almanac_entry(n) */
	u64 lake;       /* much, writable */
	u64 quilt;      /* 2 MiB, of which QUILT pages are there */
};

static inline u64 almanac_entry(u64 n) { return n * 0x9e3779b97f4a7c15 + 1; }

/* The pages of the quilt that are there. */
#define QUILT 0, 1, 2, 7, 100, 511

#endif
