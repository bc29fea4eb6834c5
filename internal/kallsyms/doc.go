// Package kallsyms reads the symbol table that a Linux kernel carries in its
// own read-only data for /proc/kallsyms and for oopses.
//
// Two ways lead to it. Find searches the bytes of a kernel image and needs to
// be told nothing. Read takes the addresses that the kernel publishes in
// VMCOREINFO (since v6.0). Both decide every detail of the format from the bytes,
// never from a version, and give the same Table where both work.
//
// What the tables are (Linux scripts/kallsyms.c and kernel/kallsyms.c):
//
//	num_syms       the number of symbols
//	names          per symbol a length and that many token numbers
//	markers        the offset in names of every 256th symbol
//	token_table    256 strings, what each token number stands for
//	token_index    256 u16, where each of these strings starts
//	addresses      u64 per symbol; or
//	offsets        u32 per symbol, in one of three encodings, and
//	relative_base  what most offsets are relative to
//	seqs_of_names  3 bytes per symbol, the order by name; not used here
//
// They stand in this order up to v6.3, with the addresses (or offsets and
// relative_base) before num_syms and seqs_of_names before token_table; from
// v6.4 on the addresses follow token_index, and seqs_of_names follows them.
// v7.0 has no relative_base. Tables are aligned to 8 bytes, since v7.0 to 4.
// Words of num_syms and markers had 8 bytes before v4.20, 4 since.
//
// All of it is little-endian 64-bit: what nestdbg's architectures are.
package kallsyms
