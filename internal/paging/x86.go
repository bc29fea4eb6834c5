package paging

// The formats that an x86 processor walks from CR3.
var (
	X86FourLevel   = longMode("x86-4level", 4, true, false)
	X86FiveLevel   = longMode("x86-5level", 5, true, false)
	X86PAE         = pae("x86-pae", true, false)
	X86TwoLevel    = twoLevel("x86-2level", false, false)
	X86TwoLevelPSE = twoLevel("x86-2level-pse", true, false)
)

// The same with EFER.NXE clear, where bit 63 is reserved.
var (
	X86FourLevelNoNX = longMode("x86-4level-nonx", 4, false, false)
	X86FiveLevelNoNX = longMode("x86-5level-nonx", 5, false, false)
	X86PAENoNX       = pae("x86-pae-nonx", false, false)
)

// The formats of AMD's nested page tables: those of x86, with every access
// counted as one of user mode (AMD APM Vol. 2, "Nested Table Walk").
//
// An entry whose bit 51 is set maps nothing here: KVM marks MMIO so, on
// processors with fewer than 52 bits of physical address (Linux 6.1
// arch/x86/kvm/mmu/spte.c:kvm_mmu_reset_all_pte_masks), and there is no RAM at
// 2 PiB to confuse it with.
var (
	NPTFourLevel   = longMode("npt4", 4, true, true)
	NPTFiveLevel   = longMode("npt5", 5, true, true)
	NPTPAE         = pae("npt-pae", true, true)
	NPTTwoLevel    = twoLevel("npt-2level", false, true)
	NPTTwoLevelPSE = twoLevel("npt-2level-pse", true, true)

	NPTFourLevelNoNX = longMode("npt4-nonx", 4, false, true)
	NPTFiveLevelNoNX = longMode("npt5-nonx", 5, false, true)
	NPTPAENoNX       = pae("npt-pae-nonx", false, true)
)

// Identity is paging switched off: a linear address of 32 bits is the physical
// one, and the root is ignored.
var Identity = Format{Name: "identity", PageShift: 32, EntrySize: 8,
	perms: Read | Write | Exec | User}.finish()

// Bits of an x86 page-table entry. Intel SDM Vol. 3A, "4-Level Paging and
// 5-Level Paging", "PAE Paging", "32-Bit Paging".
const (
	x86P     = 1 << 0  // present
	x86RW    = 1 << 1  // writable
	x86US    = 1 << 2  // user
	x86PS    = 1 << 7  // page size: a leaf, above level 1
	x86NX    = 1 << 63 // no execute
	x86Addr  = 0x000f_ffff_ffff_f000
	x86Bit51 = 1 << 51

	x86PAEHigh = 0x7ff0_0000_0000_0000 // bits 62:52, reserved in PAE entries
)

// x86Entry is what an entry of 8 bytes has at every level in either role.
func x86Entry(nx, nested bool) entryRule {
	r := entryRule{addr: x86Addr, perms: []permRule{{perm: Write, bit: x86RW}}}
	if nx {
		r.perms = append(r.perms, permRule{perm: Exec, bit: x86NX, inverted: true})
	} else {
		r.reserved |= x86NX
	}
	r.userAccess(nested)
	return r
}

// userAccess adds what the U/S bit means: a permission in a processor's own
// tables, in nested ones a condition.
func (r *entryRule) userAccess(nested bool) {
	if !nested {
		r.perms = append(r.perms, permRule{perm: User, bit: x86US})
		return
	}
	if r.addr&x86Bit51 != 0 {
		r.addr &^= x86Bit51
		r.illegal = append(r.illegal, illegal{mask: x86Bit51, value: x86Bit51,
			reason: "reserved bit 51 set (KVM's mark for MMIO)"})
	}
	r.illegal = append(r.illegal, illegal{mask: x86US, value: 0,
		reason: "supervisor entry in a nested page table"})
}

// with returns a copy of the rule in which more bits are reserved, and no longer
// part of the address.
func (r entryRule) with(reserved uint64, flags []flag) *entryRule {
	r.reserved |= reserved
	r.addr &^= reserved
	r.flags = flags
	return &r
}

// x86Perms is what the root allows.
func x86Perms(nested bool) Perm {
	if nested {
		return Read | Write | Exec
	}
	return Read | Write | Exec | User
}

// below is the bits that an address of a page of 1<<shift bytes leaves zero, from
// bit first on.
func below(shift, first uint) uint64 { return 1<<shift - 1<<first }

// longMode is the tables of long mode, with 4 or 5 levels. Pages of 1 GiB and
// 2 MiB have their PAT flag in bit 12; the address bits above it that the size
// makes superfluous are reserved.
func longMode(name string, levels int, nx, nested bool) *Format {
	f := Format{Name: name, PageShift: 12, EntrySize: 8, Signed: !nested, rootMask: x86Addr,
		present: x86P, leafBit: x86PS, perms: x86Perms(nested)}
	e := x86Entry(nx, nested)
	for range levels {
		f.IndexBits = append(f.IndexBits, 9)
	}
	for range levels - 3 {
		f.levels = append(f.levels, level{table: e.with(x86PS, x86TableFlags)})
	}
	large := e
	large.addr &^= 1 << 12
	f.levels = append(f.levels,
		level{table: e.with(0, x86TableFlags), leaf: large.with(below(30, 13), x86LargeFlags)},
		level{table: e.with(0, x86TableFlags), leaf: large.with(below(21, 13), x86LargeFlags)},
		level{leaf: e.with(0, x86PageFlags)})
	return f.finish()
}

// pae is the tables of PAE paging: four page-directory-pointer entries without
// permissions, then two levels as in long mode but with bits 62:52 reserved.
func pae(name string, nx, nested bool) *Format {
	f := Format{Name: name, PageShift: 12, EntrySize: 8, IndexBits: []uint{2, 9, 9},
		rootMask: 0xffff_ffe0, present: x86P, leafBit: x86PS, perms: x86Perms(nested)}
	e := x86Entry(nx, nested)
	e.reserved |= x86PAEHigh
	// Bits 2:1 and 8:5 of a page-directory-pointer entry are reserved, U/S among them.
	pdpte := entryRule{addr: e.addr, reserved: x86NX | x86PAEHigh | x86Addr&^e.addr | 0x1e6,
		flags: x86PDPTEFlags}
	large := e
	large.addr &^= 1 << 12
	f.levels = []level{
		{table: &pdpte},
		{table: e.with(0, x86PAETableFlags), leaf: large.with(below(21, 13), x86PAELargeFlags)},
		{leaf: e.with(0, x86PAEPageFlags)},
	}
	return f.finish()
}

// twoLevel is 32-bit paging. With CR4.PSE, level 2 has pages of 4 MiB whose
// address bits 39:32 stand in bits 20:13 (PSE-36) and whose bit 21 is reserved;
// without it the PS flag is ignored.
func twoLevel(name string, pse, nested bool) *Format {
	f := Format{Name: name, PageShift: 12, EntrySize: 4, IndexBits: []uint{10, 10},
		rootMask: 0xffff_f000, present: x86P, leafBit: x86PS, perms: x86Perms(nested)}
	e := entryRule{addr: 0xffff_f000, perms: []permRule{{perm: Write, bit: x86RW}}}
	e.userAccess(nested)
	f.levels = []level{{table: e.with(0, x86TwoLevelTableFlags)}, {leaf: e.with(0, x86TwoLevelPageFlags)}}
	if pse {
		large := e.with(1<<21, x86TwoLevelLargeFlags)
		large.addr = 0xffc0_0000
		large.high = movedBits{mask: 0x001f_e000, shift: 32 - 13}
		f.levels[0].leaf = large
	}
	return f.finish()
}
