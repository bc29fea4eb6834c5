// Package dumptest builds dumps for tests, byte by byte from the descriptions of the
// formats. It shares no constant with package dump.
package dumptest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

var le = binary.LittleEndian

// Segment is a PT_LOAD. MemSize, if not 0, differs from the bytes that are there.
type Segment struct {
	Phys    uint64
	Data    []byte
	MemSize uint64
}

// Note is an ELF note.
type Note struct {
	Name string
	Type uint32
	Data []byte
}

// ELF is an ELF core, as dump-guest-memory writes it: headers, notes, memory.
func ELF(notes []byte, segments ...Segment) []byte {
	const head, entry = 64, 56
	at := uint64(head + entry*(1+len(segments)))
	b := make([]byte, at)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 4)  // ET_CORE
	le.PutUint16(b[18:], 62) // EM_X86_64
	le.PutUint64(b[32:], head)
	le.PutUint16(b[54:], entry)
	le.PutUint16(b[56:], uint16(1+len(segments)))
	put := func(i int, kind uint32, phys, size, memory uint64, data []byte) {
		p := b[head+entry*i:]
		le.PutUint32(p, kind)
		le.PutUint64(p[8:], uint64(len(b)))
		le.PutUint64(p[24:], phys)
		le.PutUint64(p[32:], size)
		le.PutUint64(p[40:], memory)
		b = append(b, data...)
	}
	put(0, 4, 0, uint64(len(notes)), 0, notes)
	for i, s := range segments {
		memory := s.MemSize
		if memory == 0 {
			memory = uint64(len(s.Data))
		}
		put(i+1, 1, s.Phys, uint64(len(s.Data)), memory, s.Data)
	}
	return b
}

// Notes packs notes.
func Notes(notes ...Note) []byte {
	var b []byte
	pad := func() {
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	for _, n := range notes {
		b = le.AppendUint32(b, uint32(len(n.Name)+1))
		b = le.AppendUint32(b, uint32(len(n.Data)))
		b = le.AppendUint32(b, n.Type)
		b = append(append(b, n.Name...), 0)
		pad()
		b = append(b, n.Data...)
		pad()
	}
	return b
}

// CPU are the two notes of a CPU, as QEMU writes them.
func CPU(regs map[string]uint64) []Note { return []Note{Status(regs), QEMU(regs)} }

// Status is NT_PRSTATUS.
func Status(regs map[string]uint64) Note {
	b := make([]byte, 336)
	for name, at := range map[string]int{"r15": 112, "rbp": 112 + 4*8, "rbx": 112 + 5*8, "rax": 112 + 10*8,
		"rip": 112 + 16*8, "cs": 112 + 17*8, "eflags": 112 + 18*8, "rsp": 112 + 19*8, "gs_base": 112 + 22*8} {
		le.PutUint64(b[at:], regs[name])
	}
	return Note{"CORE", 1, b}
}

// QEMU is QEMU's own note.
func QEMU(regs map[string]uint64) Note {
	b := make([]byte, 0x1b8)
	le.PutUint32(b, 1)
	le.PutUint32(b[4:], uint32(len(b)))
	for name, at := range map[string]int{"rax": 0x8, "rbx": 0x10, "rsp": 0x38, "rbp": 0x40, "r15": 0x80, "rip": 0x88,
		"eflags": 0x90, "cr0": 0x188, "cr2": 0x198, "cr3": 0x1a0, "cr4": 0x1a8, "k_gs_base": 0x1b0,
		"gs_base": 0x98 + 4*24 + 16, "idtr_base": 0x98 + 9*24 + 16, "gdtr_base": 0x98 + 8*24 + 16} {
		le.PutUint64(b[at:], regs[name])
	}
	le.PutUint32(b[0x98:], uint32(regs["cs"]))
	le.PutUint32(b[0x98+8:], uint32(regs["cs_flags"]))
	le.PutUint32(b[0x98+9*24+4:], uint32(regs["idtr_limit"]))
	return Note{"QEMU", 0, b}
}

// Method is how a page of a kdump is compressed.
type Method uint32

// The methods, with the flags of their descriptors.
const (
	Stored Method = 0
	Zlib   Method = 1
	LZO    Method = 2
	Snappy Method = 4
	Zstd   Method = 0x20
)

// Page is a page of a kdump.
type Page struct {
	Number uint64
	Data   []byte // 4096 bytes; nil: the machine has the page, the dump has not
	Method Method
}

const block = 4096

// Kdump is a kdump-compressed file of version 6 of a machine with so many page
// numbers.
func Kdump(numbers uint64, notes []byte, pages ...Page) []byte {
	return kdump(numbers, notes, func(uint64) bool { return true }, pages)
}

// KdumpPart is the part of such a file that has the pages from first on and before
// end, as makedumpfile --split writes it.
func KdumpPart(first, end, numbers uint64, notes []byte, pages ...Page) []byte {
	b := kdump(numbers, notes, func(n uint64) bool { return first <= n && n < end }, pages)
	le.PutUint32(b[block+12:], 1)
	for i, n := range []uint64{first, end} {
		le.PutUint64(b[block+16+8*i:], n)
		le.PutUint64(b[block+80+8*i:], n)
	}
	return b
}

// kdump is a file with the pages that are in it.
func kdump(numbers uint64, notes []byte, in func(number uint64) bool, pages []Page) []byte {
	pages = slices.Clone(pages)
	slices.SortFunc(pages, func(a, b Page) int { return int(a.Number) - int(b.Number) })
	half := (numbers/8 + block) / block * block
	b := make([]byte, 3*block, 3*block+2*half)
	copy(b, "KDUMP   ")
	le.PutUint32(b[8:], 6)
	copy(b[12:], "Linux")
	copy(b[12+4*65:], "x86_64")
	le.PutUint32(b[428:], block)
	le.PutUint32(b[432:], 2) // blocks of the sub header and the notes behind it
	le.PutUint32(b[436:], uint32(2*half/block))
	le.PutUint32(b[440:], uint32(numbers))
	le.PutUint64(b[block+96:], numbers)
	le.PutUint64(b[block+48:], 2*block)
	le.PutUint64(b[block+56:], uint64(len(notes)))
	if len(notes) > block {
		panic("notes of more than a block")
	}
	copy(b[2*block:], notes)
	machine, here := make([]byte, half), make([]byte, half)
	var table, data []byte
	count := 0
	for _, p := range pages {
		machine[p.Number/8] |= 1 << (p.Number % 8)
		if p.Data != nil {
			here[p.Number/8] |= 1 << (p.Number % 8)
			if in(p.Number) {
				count++
			}
		}
	}
	b = append(append(b, machine...), here...)
	at := uint64(len(b) + 24*count)
	for _, p := range pages {
		if p.Data == nil || !in(p.Number) {
			continue
		}
		packed := Compress(p.Data, p.Method)
		table = le.AppendUint64(table, at+uint64(len(data)))
		table = le.AppendUint32(table, uint32(len(packed)))
		table = le.AppendUint32(table, uint32(p.Method))
		table = le.AppendUint64(table, 0)
		data = append(data, packed...)
	}
	return append(append(b, table...), data...)
}

// Compress packs a page. Of LZO it knows what repeats within 238 bytes.
func Compress(page []byte, m Method) []byte {
	switch m {
	case Stored:
		return page
	case Zlib:
		var out bytes.Buffer
		w := zlib.NewWriter(&out)
		if _, err := w.Write(page); err != nil {
			panic(err)
		}
		if err := w.Close(); err != nil {
			panic(err)
		}
		return out.Bytes()
	case LZO:
		period := 4
		for !bytes.Equal(page[period:], page[:len(page)-period]) {
			period++
		}
		out := append([]byte{byte(17 + period)}, page[:period]...)
		out = append(out, 0x20) // a copy of 33 bytes and what follows, from so far back
		n := len(page) - period - 33
		for ; n > 255; n -= 255 {
			out = append(out, 0)
		}
		out = le.AppendUint16(append(out, byte(n)), uint16(period-1)<<2)
		return append(out, 0x11, 0, 0)
	case Snappy:
		return snappy.Encode(nil, page)
	case Zstd:
		w, err := zstd.NewWriter(nil)
		if err != nil {
			panic(err)
		}
		return w.EncodeAll(page, nil)
	}
	panic(fmt.Sprintf("no method %#x", m))
}

// Flatten writes a file as pieces of at most size bytes, the first two last, as
// makedumpfile does with headers that it completes at the end: what was there first
// was wrong.
func Flatten(b []byte, size int) []byte {
	out := make([]byte, 4096)
	copy(out, "makedumpfile")
	binary.BigEndian.PutUint64(out[16:], 1)
	binary.BigEndian.PutUint64(out[24:], 1)
	put := func(at int, p []byte) {
		out = binary.BigEndian.AppendUint64(out, uint64(at))
		out = binary.BigEndian.AppendUint64(out, uint64(len(p)))
		out = append(out, p...)
	}
	first := min(2*size, len(b))
	put(0, bytes.Repeat([]byte{0xee}, first))
	for at := first; at < len(b); at += size {
		put(at, b[at:min(at+size, len(b))])
	}
	for at := 0; at < first; at += size {
		put(at, b[at:min(at+size, first)])
	}
	end := int64(-1)
	out = binary.BigEndian.AppendUint64(out, uint64(end))
	return binary.BigEndian.AppendUint64(out, uint64(end))
}
