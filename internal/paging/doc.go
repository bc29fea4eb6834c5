// Package paging translates addresses by page tables. There is one walker;
// what differs between 4- and 5-level paging, PAE, 32-bit paging, EPT and
// nested page tables is data in a Format.
//
// A Space puts a Format, a root and the memory that holds the tables together
// and is itself such a memory. So the second stage of a nested machine is a
// Space over its parent's memory, a guest's virtual memory is a Space over that,
// and a guest of a guest needs no code of its own:
//
//	npt := paging.NewSpace("npt of vm0", nptFormat, l1Memory, ncr3)
//	va := paging.NewSpace("va of vm0", format, npt, format.Root(cr3))
//
// The package reads tables as a debugger does: it reports permissions and never
// enforces them, it does not set or care for accessed and dirty bits, and
// protection keys, SMEP, SMAP and CR0.WP play no part.
//
// Levels count down to the leaf: 5 is a PML5, 4 a PML4, 3 a page-directory-
// pointer table, 2 a page directory, 1 a page table.
//
// Sources: Intel SDM Vol. 3A, "Paging", and Vol. 3C, "The Extended Page Table
// Mechanism (EPT)"; AMD APM Vol. 2, "Page Translation and Protection" and
// "Nested Paging".
package paging
