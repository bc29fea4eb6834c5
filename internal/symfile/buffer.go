package symfile

import (
	"encoding/binary"
	"slices"
)

// buffer is a section under construction. ELF and DWARF numbers are
// little-endian here, the byte order of every architecture nestdbg knows.
type buffer struct {
	b []byte
	// moves is where in b addresses are that move with the image, 8 bytes each.
	moves []uint32
}

// grow makes room for n more bytes, which need not be exact. A section of megabytes
// that grows by itself is copied many times, and fresh memory costs more than what is
// written to it.
func (b *buffer) grow(n int) { b.b = slices.Grow(b.b, n) }

func (b *buffer) len() int     { return len(b.b) }
func (b *buffer) u8(v uint8)   { b.b = append(b.b, v) }
func (b *buffer) u16(v uint16) { b.b = binary.LittleEndian.AppendUint16(b.b, v) }
func (b *buffer) u32(v uint32) { b.b = binary.LittleEndian.AppendUint32(b.b, v) }
func (b *buffer) u64(v uint64) { b.b = binary.LittleEndian.AppendUint64(b.b, v) }

// addr appends an address, which moves with the image or does not.
func (b *buffer) addr(v uint64, moves bool) {
	if moves {
		b.moves = append(b.moves, uint32(len(b.b)))
	}
	b.u64(v)
}

func (b *buffer) bytes(p ...byte) { b.b = append(b.b, p...) }
func (b *buffer) cstring(s string) {
	b.b = append(b.b, s...)
	b.b = append(b.b, 0)
}

func (b *buffer) flag(v bool) {
	if v {
		b.u8(1)
	} else {
		b.u8(0)
	}
}

// uleb appends an unsigned LEB128 number (DWARF 4, 7.6 "Variable Length Data").
func (b *buffer) uleb(v uint64) {
	for v >= 0x80 {
		b.b = append(b.b, byte(v)|0x80)
		v >>= 7
	}
	b.b = append(b.b, byte(v))
}

// sleb appends a signed LEB128 number.
func (b *buffer) sleb(v int64) {
	for v < -0x40 || v > 0x3f {
		b.b = append(b.b, byte(v)|0x80)
		v >>= 7
	}
	b.b = append(b.b, byte(v)&0x7f)
}

// align pads with zeros to a multiple of n.
func (b *buffer) align(n int) {
	for len(b.b)%n != 0 {
		b.b = append(b.b, 0)
	}
}

// putU32 overwrites the four bytes at pos.
func (b *buffer) putU32(pos int, v uint32) { binary.LittleEndian.PutUint32(b.b[pos:], v) }

// block appends what fill writes, with its length in front as a ULEB128, the
// form of DWARF expressions.
func (b *buffer) block(fill func(*buffer)) {
	var inner buffer
	fill(&inner)
	b.uleb(uint64(inner.len()))
	b.b = append(b.b, inner.b...)
}

// printable replaces what a terminal would act on. Names come from the memory of
// a machine that may be broken or hostile, and gdb prints them as they are.
func printable(c byte) byte {
	if c < 0x20 || c > 0x7e {
		return '?'
	}
	return c
}

// cleanName makes every byte of a name printable.
func cleanName(s string) string {
	for i := range len(s) {
		if printable(s[i]) != s[i] {
			b := []byte(s)
			for j := range b {
				b[j] = printable(b[j])
			}
			return string(b)
		}
	}
	return s
}

// u32At reads back the four bytes at pos.
func (b *buffer) u32At(pos int) uint32 { return binary.LittleEndian.Uint32(b.b[pos:]) }

// putU64 overwrites the eight bytes at pos.
func (b *buffer) putU64(pos int, v uint64) { binary.LittleEndian.PutUint64(b.b[pos:], v) }
