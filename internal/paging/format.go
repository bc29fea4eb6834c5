package paging

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"nestdbg/internal/mem"
)

// Format describes one kind of page table. Formats are shared and must not be
// changed; the With methods return changed copies.
type Format struct {
	Name string // as in ByName and in messages
	// IndexBits is the number of address bits that index each table, root first.
	IndexBits []uint
	// PageShift is the number of address bits below the last index.
	PageShift uint
	// EntrySize is the size of an entry in bytes, 4 or 8.
	EntrySize uint
	// Signed says that addresses are sign-extended from their highest translated
	// bit (canonical); otherwise the bits above must be zero.
	Signed bool

	rootMask uint64  // the table's address in CR3, nCR3 or an EPTP
	present  uint64  // an entry with any of these bits is present
	leafBit  uint64  // where both roles are legal, an entry with this bit is a leaf
	perms    Perm    // what is allowed before any entry took something away
	broken   string  // what the manual calls an entry with a reserved bit, "" if it has no word for it
	levels   []level // root first, one for each of IndexBits
	addrBits uint    // AddrBits
}

// level is what the entries of one level can be.
type level struct {
	shift uint       // address bits below this level's index
	span  uint       // address bits below the index of the level above: what one table covers
	mask  uint64     // of the index, shifted down
	table *entryRule // as a pointer to the next table; nil: always a leaf
	leaf  *entryRule // as a leaf; nil: never a leaf
}

// entryRule reads a present entry in one role.
type entryRule struct {
	addr     uint64     // the bits that are the physical address, in place
	high     movedBits  // further address bits that stand elsewhere
	reserved uint64     // bits that must be zero
	illegal  []illegal  // combinations that translate nothing
	perms    []permRule // what each entry on the way can take away
	flags    []flag     // names for people
}

// movedBits are address bits that an entry holds at another place: those of
// mask, moved left by shift.
type movedBits struct {
	mask  uint64
	shift uint
}

// illegal is a combination of bits, entry & mask == value, that makes the
// processor refuse the entry.
type illegal struct {
	mask, value uint64
	reason      string
}

// permRule takes perm away from a translation unless bit is set (or, if inverted,
// when it is set). Rules of all levels are applied: a permission that one level
// refuses is refused (Intel SDM Vol. 3A, "Access Rights"; Vol. 3C, "EPT
// Translation Mechanism"; AMD APM Vol. 2, "Page-Protection Checks").
type permRule struct {
	perm     Perm
	bit      uint64
	inverted bool
}

// finish computes the derived fields. It panics on a format that contradicts
// itself, which can only be our bug.
func (f Format) finish() *Format {
	if len(f.levels) != len(f.IndexBits) || len(f.levels) > maxLevels {
		panic("paging: " + f.Name + ": number of levels")
	}
	f.addrBits = f.PageShift
	for _, n := range f.IndexBits {
		f.addrBits += n
	}
	span := f.addrBits
	for i, n := range f.IndexBits {
		l := &f.levels[i]
		l.span, l.shift, l.mask = span, span-n, 1<<n-1
		if l.table == nil && l.leaf == nil || l.table != nil && i == len(f.levels)-1 {
			panic(fmt.Sprintf("paging: %s: roles of level %d", f.Name, f.level(i)))
		}
		span -= n
	}
	return &f
}

// Levels is the number of tables on the way to a page of the smallest size.
func (f *Format) Levels() int { return len(f.levels) }

// AddrBits is the number of address bits that are translated.
func (f *Format) AddrBits() uint { return f.addrBits }

// Root returns the address of the root table from the register that holds it,
// CR3, nCR3 or an EPT pointer, without PCID, cache and LAM flags.
func (f *Format) Root(reg uint64) mem.Phys { return mem.Phys(reg & f.rootMask) }

// WithPhysBits returns the format as a processor with n bits of physical address
// walks it: address bits from n on are reserved. It can only take bits away; n of 0 says
// that the width is not known, and changes nothing.
func (f *Format) WithPhysBits(n uint) *Format {
	if n == 0 || n >= 64 {
		return f
	}
	return f.mapRules(func(r *entryRule) {
		above := r.addr &^ (1<<n - 1)
		r.addr &^= above
		r.reserved |= above
	})
}

// WithEncryptionBit returns the format with one address bit ignored: the C-bit
// of SME and SEV, which says that memory is encrypted and is not part of the
// address (AMD APM Vol. 2, "Secure Memory Encryption").
func (f *Format) WithEncryptionBit(bit uint) *Format {
	g := f.mapRules(func(r *entryRule) {
		r.addr &^= 1 << bit
		r.reserved &^= 1 << bit
		var keep []illegal
		for _, x := range r.illegal {
			if x.mask>>bit&1 == 0 {
				keep = append(keep, x)
			}
		}
		r.illegal = keep
	})
	g.rootMask &^= 1 << bit
	return g
}

// mapRules returns a copy of the format with every rule changed by edit.
func (f *Format) mapRules(edit func(*entryRule)) *Format {
	g := *f
	g.levels = append([]level(nil), f.levels...)
	for i := range g.levels {
		l := &g.levels[i]
		for _, role := range []**entryRule{&l.table, &l.leaf} {
			if *role != nil {
				r := **role
				edit(&r)
				*role = &r
			}
		}
	}
	return &g
}

// level converts an index of levels to the number people use, 5 to 1.
func (f *Format) level(i int) int { return len(f.levels) - i }

// inside reports whether addr has the shape of an address that can be translated.
func (f *Format) inside(addr uint64) bool { return f.extend(f.translated(addr)) == addr }

// outside says in words why an address is not inside.
func (f *Format) outside() string {
	if f.Signed {
		return "non-canonical address"
	}
	return fmt.Sprintf("address beyond %d bits", f.addrBits)
}

// translated drops the address bits above those that are translated.
func (f *Format) translated(addr uint64) uint64 { return addr & (1<<f.addrBits - 1) }

// extend makes the address whose translated bits are a.
func (f *Format) extend(a uint64) uint64 {
	if up := 64 - f.addrBits; f.Signed {
		return uint64(int64(a<<up) >> up)
	}
	return a
}

// tableSize is the size in bytes of a table of level i.
func (f *Format) tableSize(i int) int { return int(f.EntrySize) << f.IndexBits[i] }

// entryIn returns entry index of a table.
func (f *Format) entryIn(table []byte, index uint64) uint64 {
	if f.EntrySize == 4 {
		return uint64(binary.LittleEndian.Uint32(table[index*4:]))
	}
	return binary.LittleEndian.Uint64(table[index*8:])
}

// readEntry reads one entry from memory.
func (f *Format) readEntry(r mem.PhysReader, at mem.Phys) (uint64, error) {
	if f.EntrySize == 4 {
		e, err := mem.Uint32(r, at)
		return uint64(e), err
	}
	return mem.Uint64(r, at)
}

// rule is how entry e of level i is to be read. Which role it has does not
// depend on whether it is present or legal.
func (f *Format) rule(i int, e uint64) (r *entryRule, leaf bool) {
	l := &f.levels[i]
	if l.leaf == nil || l.table != nil && e&f.leafBit == 0 {
		return l.table, false
	}
	return l.leaf, true
}

// follow reads entry e of level i. ok is false if the entry translates nothing:
// refusal says why. next is the next table, or the page of a leaf.
func (f *Format) follow(i int, e uint64) (next mem.Phys, leaf, ok bool) {
	r, leaf := f.rule(i, e)
	if e&f.present == 0 || e&r.reserved != 0 {
		return 0, leaf, false
	}
	for k := range r.illegal {
		if e&r.illegal[k].mask == r.illegal[k].value {
			return 0, leaf, false
		}
	}
	return mem.Phys(e&r.addr | e&r.high.mask<<r.high.shift), leaf, true
}

// refusal says in words why follow refused entry e of level i.
func (f *Format) refusal(i int, e uint64) (Cause, string) {
	r, _ := f.rule(i, e)
	if e&f.present == 0 {
		return NotPresent, "not present"
	}
	for _, x := range r.illegal {
		if e&x.mask == x.value {
			return Malformed, x.reason
		}
	}
	return Malformed, f.broken + fmt.Sprintf("reserved bit %d set", 63-bits.LeadingZeros64(e&r.reserved))
}

// allowed returns perm without what entry e, read by r, takes away.
func (r *entryRule) allowed(perm Perm, e uint64) Perm {
	for _, p := range r.perms {
		if (e&p.bit != 0) == p.inverted {
			perm &^= p.perm
		}
	}
	return perm
}
