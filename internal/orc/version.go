package orc

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Version is the version of the entry format. The numbers are ours (and drgn's):
// the kernel has only a hash of the header that defines it.
type Version int

// The versions.
const (
	V1 Version = 1 // v4.14 to v6.2
	V2 Version = 2 // v6.3: a signal bit
	V3 Version = 3 // v6.4 to v7.0: undefined and end are types
	V4 Version = 4 // since v7.1: other register numbers
)

// The hashes of orc_types.h in .orc_header (since v6.3.10 and v6.4.y).
var headers = [...]struct {
	hash    []byte
	version Version
}{
	{[]byte{0xdb, 0x84, 0xae, 0xd4, 0x10, 0x3b, 0x31, 0xdd}, V2},
	{[]byte{0xfe, 0x5d, 0x32, 0xbf, 0x58, 0x1b, 0xd6, 0x3b}, V3},
	{[]byte{0x13, 0x7c, 0x36, 0xad, 0x76, 0x27, 0xc4, 0xdd}, V4},
}

// Detect tells the version of a table: by .orc_header, which may be empty, or,
// where there is none or an unknown one, by the entries in unwind.
func Detect(header, unwind []byte) (Version, error) {
	for _, h := range headers {
		if bytes.HasPrefix(header, h.hash) {
			return h.version, nil
		}
	}
	return detectByEntries(unwind)
}

// detectByEntries uses that nearly all entries describe ordinary functions, whose
// CFA is computed from rsp: V4 gives rsp another number than the others, and in
// V3 calls have a type other than 0. V2 differs from V1 in that bit 10, which in V1 is
// the end of a stack and goes with no register, is set for exceptions, and bit 11 is
// the end; both have dozens of each, so that a damaged one does not decide.
func detectByEntries(unwind []byte) (Version, error) {
	var sp3, sp5, typed, signals, ends int
	for b := unwind; len(b) >= entrySize; b = b[entrySize:] {
		flags := binary.LittleEndian.Uint16(b[4:])
		register := flags & 0xf
		switch register {
		case 3:
			sp3++
		case 5:
			sp5++
		}
		if register != 0 && flags>>8&7 == typeCall {
			typed++
		}
		switch {
		case register != 0 && flags&0x400 != 0 || flags&0x800 != 0:
			signals++
		case flags&0x400 != 0:
			ends++
		}
	}
	half := (sp3 + sp5) / 2
	switch {
	case sp3+sp5 == 0:
		return 0, fmt.Errorf("%w: no entry is about rsp", ErrCorrupt)
	case sp3 > half && typed > half:
		return V4, nil
	case sp5 > half && typed > half:
		return V3, nil
	case sp5 > half && signals > ends:
		return V2, nil
	case sp5 > half:
		return V1, nil
	}
	return 0, fmt.Errorf("%w: entries of no known version", ErrCorrupt)
}

// Values of the type field since V3.
const (
	typeUndefined = iota
	typeEnd
	typeCall
	typeRegs
	typeRegsPartial
)

// Register numbers of V1 to V3. Number 1, the caller's rsp, is for rbp only.
var bases1 = [16]Base{
	2: BaseDX, 3: BaseDI, 4: BaseBP, 5: BaseSP, 6: BaseR10, 7: BaseR13,
	8: BaseBPIndirect, 9: BaseSPIndirect, 10: BaseAX,
}

// Register numbers of V4. Number 8, the caller's rsp, is for rbp only.
var bases4 = [16]Base{
	1: BaseAX, 2: BaseDX, 3: BaseSP, 4: BaseBP, 5: BaseDI, 6: BaseR10, 7: BaseR13,
	9: BaseSPIndirect, 10: BaseBPIndirect,
}

// decode decodes the fields of struct orc_entry; not ok if the version has no such
// entry.
func (v Version) decode(spOffset, bpOffset int16, flags uint16) (e Entry, ok bool) {
	e = Entry{SPOffset: spOffset, BPOffset: bpOffset}
	bases, previousSP, bp := bases1, uint16(1), uint16(4)
	if v == V4 {
		bases, previousSP = bases4, 8
	}
	e.Base = bases[flags&0xf]
	switch flags >> 4 & 0xf {
	case 0:
	case previousSP:
		e.BP = BPAtCFA
	case bp:
		e.BP = BPAtBP
	default:
		return Entry{}, false
	}
	if !v.decodeType(&e, flags) {
		return Entry{}, false
	}
	if e.Type == Undefined || e.Type == End {
		return Entry{Type: e.Type, Signal: e.Signal}, true
	}
	if e.Base == BaseUndefined {
		return Entry{}, false
	}
	return e, true
}

// decodeType decodes the type, signal and end bits, and reports whether the
// version has such.
func (v Version) decodeType(e *Entry, flags uint16) bool {
	if v >= V3 {
		kind := flags >> 8 & 7
		if v > V4 || kind > typeRegsPartial || flags>>12 != 0 {
			return false
		}
		// The build leaves these without registers, and V1 has its calls here.
		if kind == typeUndefined && flags&0xf != 0 {
			return false
		}
		e.Type = [...]Type{typeUndefined: Undefined, typeEnd: End, typeCall: Call,
			typeRegs: Regs, typeRegsPartial: RegsPartial}[kind]
		e.Signal = flags&0x800 != 0
		return true
	}
	kind, end := flags>>8&3, flags&0x400 != 0
	if v < V1 || kind == 3 || flags>>12 != 0 {
		return false
	}
	e.Type = [...]Type{Call, Regs, RegsPartial}[kind]
	e.Signal = e.Type != Call
	if v == V2 {
		e.Signal, end = end, flags&0x800 != 0
	} else if flags>>11 != 0 {
		return false
	}
	switch {
	case flags&0xf == 0 && end:
		e.Type = End
	case flags&0xf == 0:
		e.Type = Undefined
	}
	return true
}
