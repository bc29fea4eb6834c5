package symfile

import (
	"bytes"

	"nestdbg/internal/btf"
	"nestdbg/internal/mem"
)

// argumentRegisters are the DWARF numbers of the registers that hold the first
// arguments at the entry of a function (System V ABI for AMD64, 3.2.3 "Parameter
// Passing", class INTEGER).
var argumentRegisters = [...]uint8{dwarfRDI, dwarfRSI, dwarfRDX, dwarfRCX, dwarfR8, dwarfR8 + 1}

// arguments is how many parameters of a prototype have a register of their own.
// Counting ends at the first parameter that is not an integer, enumeration or
// pointer: structures by value can take two registers, or none. A result in
// memory takes the first one for itself, so then there are no arguments at all.
func (d *describer) arguments(r *record) int {
	const maxInRegisters = 16 // bytes of a result
	if d.sizeByID(r.Ref) > maxInRegisters {
		return 0
	}
	for k := range min(r.Count, len(argumentRegisters)) {
		if !d.isScalar(r.U32(8*k + 4)) {
			return k
		}
	}
	return min(r.Count, len(argumentRegisters))
}

// isScalar reports whether a type fits into one general register.
func (d *describer) isScalar(id uint32) bool {
	for range maxDepth {
		s, i := d.target(id)
		if i < 0 {
			return false
		}
		r := s.record(i)
		switch r.Kind {
		case btf.Int, btf.Enum, btf.Enum64:
			return r.Ref <= pointerSize
		case btf.Ptr:
			return true
		case btf.Typedef, btf.Volatile, btf.Const, btf.Restrict:
			id = r.Ref
		default:
			return false
		}
	}
	return false
}

// entrySize is the number of bytes at the start of a function that leave its
// arguments in their registers: endbr64, the place for ftrace, the frame pointer.
// gdb puts a breakpoint on a function behind some of these. It is 0 if the code
// cannot be read or begins in another way; at the first instruction itself the
// arguments are always in place.
func entrySize(code *codeWindow, addr uint64) uint64 {
	const longest = 13
	all := code.at(addr, longest)
	rest := all
	for _, step := range entrySteps {
		for _, prefix := range step {
			if after, ok := bytes.CutPrefix(rest, prefix); ok {
				rest = after
				break
			}
		}
	}
	return uint64(len(all) - len(rest))
}

// codeWindow reads code ahead, for who asks by ascending address: to walk page tables
// for each function takes longer than all the rest of it.
type codeWindow struct {
	code  mem.VirtReader // may be nil
	first uint64         // the address of b
	b     []byte
}

const codeAhead = 64 << 10

// at is up to n bytes of code from an address on, valid until the next call; fewer where
// it cannot be read.
func (w *codeWindow) at(addr uint64, n int) []byte {
	if w.code == nil {
		return nil
	}
	if addr < w.first || addr-w.first+uint64(n) > uint64(len(w.b)) {
		if w.b == nil {
			w.b = make([]byte, codeAhead)
		}
		w.first, w.b = addr, w.b[:cap(w.b)]
		got, _ := w.code.ReadVirt(w.b, mem.Virt(addr))
		w.b = w.b[:got]
	}
	b := w.b[addr-w.first:]
	return b[:min(n, len(b))]
}

// entrySteps are the instructions that a function may begin with, in this order,
// each in all its forms. A call to __fentry__ is not among them: it cannot be told
// from any other call.
var entrySteps = [...][][]byte{
	{
		{0xf3, 0x0f, 0x1e, 0xfa}, // endbr64
		{0x66, 0x0f, 0x1f, 0x00}, // sealed (Linux 6.12 asm/ibt.h:gen_endbr_poison)
		{0x0f, 0x1f, 0x40, 0x00}, // and as a plain NOP4
	},
	{{0x0f, 0x1f, 0x44, 0x00, 0x00}}, // ftrace is off (Linux 6.1 asm/nops.h:BYTES_NOP5)
	{{0x55}},                         // push %rbp
	{{0x48, 0x89, 0xe5}},             // mov %rsp,%rbp
}

// location appends a location list to .debug_loc and returns where it is: a
// register, from a function's first byte to the one at its address + size.
func (b *buffer) location(addr, size uint64, reg uint8, moves bool) uint32 {
	at := b.len()
	b.addr(addr, moves) // relative to the unit's DW_AT_low_pc, which is 0
	b.addr(addr+size+1, moves)
	b.u16(1)
	b.u8(opReg0 + reg)
	b.u64(0)
	b.u64(0)
	return uint32(at)
}
