package memfile

import (
	"bytes"
	"encoding/binary"

	"nestdbg/internal/mem"
)

// The firmware's map of a PC's memory, as SeaBIOS has it and Linux keeps it (ACPI
// "INT 15H, E820H"): entries of u64 address, u64 size, u32 type, where type 1 is RAM.
const (
	e820Entry = 20
	e820Most  = 128
	e820RAM   = 1
	e820Types = 20 // the largest type that anybody uses, and then some
)

// e820Begin is how the map of every PC of QEMU's begins, from the size of the first
// entry on: RAM up to the BIOS data at 639 KiB, then that. (SeaBIOS src/fw/paravirt.c,
// e820_add; the heuristic is ours.) Its first byte is not here: a search for a zero
// stops everywhere.
var e820Begin = []byte{
	0xfc, 0x09, 0, 0, 0, 0, 0, e820RAM, 0, 0, 0,
	0x00, 0xfc, 0x09, 0, 0, 0, 0, 0,
}

// e820Before is what of an entry is before e820Begin.
const e820Before = 9

// firmware is where memory ends in which the firmware keeps its own map.
const firmware = 1 << 20

// findE820 finds a map that adds up to this file and begins before end. Linux has
// copies behind the firmware's own. Holes of the file are not touched.
func (f *File) findE820(end uint64) (*Layout, uint64, bool) {
	for _, r := range f.populated(mem.Segment{Data: f.data[:min(end, f.size)]}, 0) {
		if l, at, ok := searchE820(f.data, r, f.size); ok {
			return l, at, true
		}
	}
	return nil, 0, false
}

// searchE820 finds a map that begins in a range of data and adds up to this size.
func searchE820(data []byte, r mem.Range, size uint64) (*Layout, uint64, bool) {
	for at := r.First; ; {
		i := bytes.Index(data[at:r.Last+1], e820Begin)
		if i < 0 {
			return nil, 0, false
		}
		if start := int(at) + i - e820Before; start >= 0 {
			if l, ok := e820At(data[start:min(start+e820Entry*e820Most, len(data))], size); ok {
				return l, uint64(start), true
			}
		}
		at += uint64(i) + 1
	}
}

// e820At reads the map that begins b. It ends where an entry is none, or not behind
// the one before.
func e820At(b []byte, file uint64) (*Layout, bool) {
	var below, above, end uint64
	base := uint64(fourGiB) // of what is above
	for ; len(b) >= e820Entry; b = b[e820Entry:] {
		addr, size, kind := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint32(b[16:])
		if addr < end || size == 0 || addr+size < addr || kind == 0 || kind > e820Types {
			break
		}
		end = addr + size
		switch {
		case kind != e820RAM:
		case addr < fourGiB:
			below = end
		case above == 0:
			base, above = addr, size
		default:
			above = end - base
		}
	}
	// The firmware keeps some of the end of low memory for its tables.
	const kept = 16 << 20
	low := file - min(above, file)
	if low < below || low-below > kept || low > fourGiB {
		return nil, false
	}
	return &Layout{Name: "of the firmware's map", Below: low, Above: base}, true
}
