// Package orc reads the unwind tables that Linux carries on x86-64
// (CONFIG_UNWINDER_ORC, since v4.14) and takes single steps with them.
//
// A table is two arrays of equal length, .orc_unwind_ip and .orc_unwind. The
// first says from which address on an entry of the second applies. An entry says
// where the canonical frame address is (CFA: the stack pointer as it was before
// the call that entered the function), and where the caller's rbp is.
//
// There have been four versions of the entry; Detect tells them apart, and
// Entry is the same for all. Sources: Linux
// arch/x86/include/asm/orc_types.h and arch/x86/kernel/unwind_orc.c, v5.10,
// v6.1 and v6.12.
package orc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"nestdbg/internal/mem"
)

// The classes of error. Reads that fail are also mem.ErrFault.
var (
	// ErrCorrupt: the table is not one, or not of this version.
	ErrCorrupt = errors.New("orc table corrupt")
	// ErrEndOfStack: there is no caller, and that is as it should be.
	ErrEndOfStack = errors.New("end of stack")
	// ErrUndefined: there may be a caller, but nothing says where.
	ErrUndefined = errors.New("no way to unwind")
)

// Type says what the CFA of an entry points at.
type Type uint8

// The types.
const (
	Undefined   Type = iota // the kernel has no unwind data for this code
	End                     // the outermost frame: kernel entry, start of a thread
	Call                    // the CFA is right above a return address
	Regs                    // the CFA is the address of a struct pt_regs
	RegsPartial             // the CFA is the address of an interrupt frame
)

// Base is what the CFA is computed from.
type Base uint8

// The bases; Entry.CFA says how they are used.
const (
	BaseUndefined Base = iota
	BaseSP
	BaseBP
	BaseAX
	BaseDX
	BaseDI
	BaseR10
	BaseR13
	BaseSPIndirect
	BaseBPIndirect
)

// BPRule says where the caller's rbp is.
type BPRule uint8

// The rules.
const (
	BPSame  BPRule = iota // still in rbp
	BPAtCFA               // in memory at CFA + BPOffset
	BPAtBP                // in memory at rbp + BPOffset
)

// Entry is one unwind entry.
type Entry struct {
	Type Type
	// Signal: the frame was not entered by a call but by an exception, so the
	// caller's pc is the instruction it will go on with, not a return address.
	Signal bool

	Base     Base
	SPOffset int16
	BP       BPRule
	BPOffset int16
}

// NullCall is the entry for pc 0, a call through a null pointer: all that
// happened since is the push of the return address. (Ours in name; the rule is
// that of Linux 6.1 unwind_orc.c:null_orc_entry.)
func NullCall() Entry { return Entry{Type: Call, Base: BaseSP, SPOffset: 8} }

// FramePointer is the entry to assume where no table has one, in code that was
// generated at runtime: a frame with rbp. (Linux 6.1 unwind_orc.c:orc_fp_entry.)
func FramePointer() Entry {
	return Entry{Type: Call, Base: BaseBP, SPOffset: 16, BP: BPAtCFA, BPOffset: -16}
}

// Table is the unwind table of a kernel or of one module. It is safe for
// concurrent use.
type Table struct {
	ip      []byte // s32 per entry, relative to its own place
	address uint64 // runtime address of ip
	unwind  []byte // 6 bytes per entry
	version Version

	damaged int          // entries that cannot be decoded, or whose address is lost
	starts  []uint64     // in order, instead of ip if some addresses are lost
	lost    map[int]bool // addresses that are damaged, and that of a neighbour in starts; nil if none is
}

const (
	ipSize    = 4
	entrySize = 6
	// maxEntries is ten times what the largest distribution kernels have.
	maxEntries = 1 << 22
	// maxDamage is the share of a table, one in so many, that may be damaged. More is
	// no table with damage: it is something else.
	maxDamage = 4
)

// New checks and joins the bytes of .orc_unwind_ip, whose runtime address is
// ipAddress, and of .orc_unwind. The table keeps both slices, and they must not
// change. Every entry is decoded once, so that neither the wrong version passes nor
// something that is no table. Memory that was overwritten costs the entries that it
// held, not the table; see Damage.
func New(ip, unwind []byte, ipAddress uint64, v Version) (*Table, error) {
	count := len(ip) / ipSize
	if len(ip)%ipSize != 0 || len(unwind) != count*entrySize || count == 0 || count > maxEntries {
		return nil, fmt.Errorf("%w: %d bytes of addresses, %d of entries",
			ErrCorrupt, len(ip), len(unwind))
	}
	t := &Table{ip: ip, address: ipAddress, unwind: unwind, version: v}
	last, ordered := uint64(0), true
	for i := range count {
		start := t.start(i)
		ordered = ordered && start >= last
		last = start
		if _, ok := t.entry(i); ok {
			continue
		}
		if t.damaged++; t.damaged > count/maxDamage {
			return nil, fmt.Errorf("%w: %d of %d entries are not of version %d, such as flags %#x for %#x",
				ErrCorrupt, t.damaged, i+1, v, t.flags(i), start)
		}
	}
	if !ordered {
		t.mend()
	}
	if t.damaged > count/maxDamage {
		return nil, fmt.Errorf("%w: %d of %d entries are damaged or out of order", ErrCorrupt, t.damaged, count)
	}
	return t, nil
}

// mend finds the addresses that are out of order. Where such an entry begins is not
// known, and so not where the one before it ends: the entry gets the address of the
// one before, and both are Undefined from there to the next.
func (t *Table) mend() {
	starts := make([]uint64, t.Len())
	for i := range starts {
		starts[i] = t.start(i)
	}
	t.lost = map[int]bool{}
	for _, i := range mem.MendOrder(starts) {
		t.lost[i] = true
		if _, ok := t.entry(i); ok { // else it was counted
			t.damaged++
		}
	}
	t.starts = starts
}

// Damage says in words how much of the table was overwritten; empty if nothing is
// known to be.
func (t *Table) Damage() string {
	if t.damaged == 0 {
		return ""
	}
	return fmt.Sprintf("%d of %d entries are damaged", t.damaged, t.Len())
}

// Len is the number of entries.
func (t *Table) Len() int { return len(t.ip) / ipSize }

// Version is the version of the entries.
func (t *Table) Version() Version { return t.version }

// start is the address from which on entry i applies.
func (t *Table) start(i int) uint64 {
	if t.starts != nil {
		return t.starts[i]
	}
	offset := int32(binary.LittleEndian.Uint32(t.ip[ipSize*i:]))
	return t.address + uint64(ipSize*i) + uint64(int64(offset))
}

// entry decodes entry i; not ok if there is no such entry in this version.
func (t *Table) entry(i int) (e Entry, ok bool) {
	b := t.unwind[entrySize*i:]
	return t.version.decode(
		int16(binary.LittleEndian.Uint16(b)),
		int16(binary.LittleEndian.Uint16(b[2:])),
		binary.LittleEndian.Uint16(b[4:]))
}

func (t *Table) flags(i int) uint16 { return binary.LittleEndian.Uint16(t.unwind[entrySize*i+4:]) }

// known is what entry i says: Undefined, if it is damaged.
func (t *Table) known(i int) Entry {
	e, ok := t.entry(i)
	if !ok || t.lost[i] {
		return Entry{}
	}
	return e
}

// Find returns the entry that applies at pc. For a pc that is a return address,
// ask for pc-1: the call may be the last instruction of its function.
//
// The table covers the addresses from its first entry up to, not including, its
// last, which is there to end the one before. Of several entries for one
// address the last counts: the build puts those that end a section first. What is
// damaged is Undefined.
func (t *Table) Find(pc uint64) (Entry, bool) {
	low, high := 0, t.Len()
	for low < high {
		if mid := int(uint(low+high) >> 1); t.start(mid) > pc {
			high = mid
		} else {
			low = mid + 1
		}
	}
	if low == 0 || low == t.Len() {
		return Entry{}, false
	}
	return t.known(low - 1), true
}

// All yields the entries with the addresses they apply to, ascending and
// without gaps, over what Find covers. Entries that apply nowhere are left out.
func (t *Table) All() iter.Seq2[mem.Range, Entry] {
	return func(yield func(mem.Range, Entry) bool) {
		for i := range t.Len() - 1 {
			first, next := t.start(i), t.start(i+1)
			if first == next {
				continue
			}
			if !yield(mem.Range{First: first, Last: next - 1}, t.known(i)) {
				return
			}
		}
	}
}
