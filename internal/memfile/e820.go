package memfile

import "encoding/binary"

// struct boot_params of Linux (Documentation/x86/zero-page.rst): e820_entries at
// 0x1e8, the signature "HdrS" of its setup header at 0x202, and at 0x2d0 up to 128
// entries of u64 address, u64 size, u32 type, where type 1 is RAM.
const (
	zeroPage    = 4096
	e820Count   = 0x1e8
	e820Magic   = 0x202
	e820Table   = 0x2d0
	e820Entry   = 20
	e820Most    = 128
	e820RAM     = 1
	bootSectors = 0x1fe // 0xaa55
)

// e820Reach is how far into memory boot_params are looked for: the kernel's own copy
// is in its data, the loader's below 1 MiB.
const e820Reach = 4 << 30

// findE820 finds boot_params whose memory map adds up to this file.
func (f *File) findE820() (*Layout, uint64, bool) {
	for at := uint64(0); at+zeroPage <= min(f.size, e820Reach); at += 0x10 {
		if at%zeroPage > zeroPage-0x10 {
			continue
		}
		if l, ok := f.e820At(at); ok {
			return l, at, true
		}
		if at < 1<<20 {
			continue
		}
		break
	}
	return nil, 0, false
}

// e820At reads the map at an offset, if one is there.
func (f *File) e820At(at uint64) (*Layout, bool) {
	b := f.data[at : at+zeroPage]
	if string(b[e820Magic:e820Magic+4]) != "HdrS" || binary.LittleEndian.Uint16(b[bootSectors:]) != 0xaa55 {
		return nil, false
	}
	n := int(b[e820Count])
	if n == 0 || n > e820Most {
		return nil, false
	}
	var below, above, base uint64
	for i := range n {
		e := b[e820Table+e820Entry*i:]
		addr, size, kind := binary.LittleEndian.Uint64(e), binary.LittleEndian.Uint64(e[8:]), binary.LittleEndian.Uint32(e[16:])
		if kind != e820RAM {
			continue
		}
		if addr+size < addr || size > f.size {
			return nil, false
		}
		if addr < fourGiB {
			below = max(below, addr+size)
		} else {
			above, base = above+size, addr
		}
	}
	// The firmware keeps some of the end of low memory for its tables.
	const kept = 16 << 20
	low := f.size - min(above, f.size)
	if above == 0 || low < below || low-below > kept {
		return nil, false
	}
	return &Layout{Name: "as the firmware said", Below: low, Above: base}, true
}
