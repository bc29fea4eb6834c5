package symfile

import (
	"nestdbg/internal/mem"
	"nestdbg/internal/orc"
)

// Numbers of DWARF registers (System V ABI for AMD64, "DWARF Register Number
// Mapping").
const (
	dwarfRAX    = 0
	dwarfRDX    = 1
	dwarfRCX    = 2
	dwarfRBX    = 3
	dwarfRSI    = 4
	dwarfRDI    = 5
	dwarfRBP    = 6
	dwarfRSP    = 7
	dwarfR8     = 8 // and on, up to r15
	dwarfRA     = 16
	dwarfEflags = 49
	dwarfCS     = 51
	dwarfSS     = 52
)

// Call frame instructions (DWARF 4, 7.23 "Call Frame Information"); those with a
// register in their low bits come first.
const (
	cfaAdvanceLoc       = 0x40
	cfaOffset           = 0x80
	cfaRestore          = 0xc0
	cfaAdvanceLoc1      = 0x02
	cfaAdvanceLoc2      = 0x03
	cfaAdvanceLoc4      = 0x04
	cfaUndefined        = 0x07
	cfaSameValue        = 0x08
	cfaDefCFA           = 0x0c
	cfaDefCFARegister   = 0x0d
	cfaDefCFAOffset     = 0x0e
	cfaDefCFAExpression = 0x0f
	cfaExpression       = 0x10
	cfaOffsetExtendedSF = 0x11

	opDeref      = 0x06
	opConsts     = 0x11
	opPlus       = 0x22
	opPlusUconst = 0x23
	opBreg0      = 0x70

	cieVersion = 4
	cieID      = 0xffffffff
	dataAlign  = -8 // offsets in CFA rules count in units of this
)

// layout is what the frames of one CIE have in common.
type layout struct {
	kind     orc.Type // Call, Regs or RegsPartial
	isSignal bool
}

// row is what can change within one FDE.
type row struct {
	base     orc.Base // the CFA, by the rules of orc.Entry
	offset   int16
	bp       orc.BPRule
	bpOffset int16
	isLast   bool // there is no caller, or none that can be found
}

// frameBytes is how much .debug_frame an ORC entry takes: 7 bytes in Linux 6.1.
const frameBytes = 8

// frames is .debug_frame, made from the ORC tables of all units; empty without any.
func (p *places) frames(units []Unit, ends []mem.Range) buffer {
	b := frameWriter{places: p}
	for _, u := range units {
		if u.Unwind == nil {
			continue
		}
		b.out.grow(u.Unwind.Len() * frameBytes)
		for at, e := range u.Unwind.All() {
			b.add(at, e)
		}
		b.endFDE()
	}
	for _, at := range ends {
		b.add(at, orc.Entry{Type: orc.End})
		b.endFDE()
	}
	return b.out
}

// frameWriter writes .debug_frame. A CIE describes one layout and an FDE a run of
// adjacent entries of that layout. An FDE ends where a function begins: gdb
// executes it from its start to the pc, so it must not be long.
type frameWriter struct {
	out    buffer
	places *places
	cies   map[layout]uint32 // where they are in out

	// The FDE that is being written, if isOpen.
	isOpen   bool
	start    int    // in out
	first    uint64 // its first address
	at       uint64 // the address its last row begins at
	next     uint64 // the address after its last entry
	boundary uint64 // the next function; 0 if there is none
	layout   layout
	row      row
	rowCount int
}

// maxRows bounds the rows of an FDE. It is ours; where symbols are known, the
// longest of Linux 6.1 has 232.
const maxRows = 1000

// add appends an entry.
func (w *frameWriter) add(at mem.Range, e orc.Entry) {
	l, r := shapeOf(e)
	isNew := !w.isOpen || at.First != w.next || l != w.layout || w.rowCount >= maxRows ||
		at.First-w.at > maxAdvance || w.boundary != 0 && at.First >= w.boundary
	if isNew {
		w.endFDE()
		w.beginFDE(at.First, l)
	}
	w.setRow(at.First, r)
	w.next = at.Last + 1
}

// shapeOf splits an entry into what its CIE says and what its row says. Where the
// kernel has no unwind data gdb must stop as it does at the outermost frame: left
// alone it would guess from the instructions.
func shapeOf(e orc.Entry) (layout, row) {
	switch {
	case e.Type == orc.Regs: // rbp is one of the registers
		return layout{e.Type, e.Signal}, row{base: e.Base, offset: e.SPOffset}
	case (e.Type == orc.Call || e.Type == orc.RegsPartial) && e.Base != orc.BaseUndefined:
		r := row{base: e.Base, offset: e.SPOffset, bp: e.BP, bpOffset: e.BPOffset}
		if e.BP == orc.BPSame {
			r.bpOffset = 0
		}
		return layout{e.Type, e.Signal}, r
	}
	r := initialRow(orc.Call)
	r.isLast = true
	return layout{kind: orc.Call}, r
}

// initialRow is the row that the CIE of a layout begins with: that of the first
// instruction of a function, or of registers at the top of the stack.
func initialRow(k orc.Type) row {
	if k == orc.Call {
		return row{base: orc.BaseSP, offset: 8}
	}
	return row{base: orc.BaseSP}
}

func (w *frameWriter) beginFDE(first uint64, l layout) {
	cie, ok := w.cies[l]
	if !ok {
		cie = w.writeCIE(l)
	}
	w.start, w.isOpen = w.out.len(), true
	w.out.u32(0) // length, set by endFDE
	w.out.u32(cie)
	w.out.addr(first, w.places.moves(first))
	w.out.u64(0) // range in bytes, set by endFDE
	w.first, w.at, w.layout = first, first, l
	w.boundary = w.places.nextCode(first)
	w.row, w.rowCount = initialRow(l.kind), 0
}

// endFDE completes the open FDE, if there is one.
func (w *frameWriter) endFDE() {
	if !w.isOpen {
		return
	}
	w.out.align(8) // with DW_CFA_nop, which is 0
	w.out.putU32(w.start, uint32(w.out.len()-w.start-4))
	w.out.putU64(w.start+16, w.next-w.first)
	w.isOpen = false
}

// writeCIE appends the CIE of a layout.
func (w *frameWriter) writeCIE(l layout) uint32 {
	b, start := &w.out, w.out.len()
	b.u32(0)
	b.u32(cieID)
	b.u8(cieVersion)
	if l.isSignal {
		b.u8('S') // look the pc up as it is, not pc-1 as behind a call
	}
	b.bytes(0, pointerSize, 0) // end of augmentation, sizes of address and segment
	b.uleb(1)                  // code_alignment_factor
	b.sleb(dataAlign)
	b.uleb(dwarfRA)
	b.bytes(cfaDefCFA, dwarfRSP)
	b.uleb(uint64(initialRow(l.kind).offset))
	switch l.kind {
	case orc.Call:
		b.register(dwarfRA, -8)
		b.clobbered()
	case orc.Regs:
		b.ptRegs()
	case orc.RegsPartial:
		b.iretFrame(0)
		b.clobbered()
	}
	b.align(8)
	b.putU32(start, uint32(b.len()-start-4))
	if w.cies == nil {
		w.cies = make(map[layout]uint32)
	}
	w.cies[l] = uint32(start)
	return uint32(start)
}

// clobbered says which registers of the caller are unknown: all that ORC does not
// follow. It follows rbp only. Where rbx and r12 to r15 were saved it cannot tell,
// and gdb's default, "they still have the caller's values", would often be wrong:
// gdb shows them as <not saved> now. A frame whose CFA counts from r10, r13, rdi
// or rdx is not harmed: such a register is set in the frame itself, and like
// Linux's own unwinder (orc_unwind.c:unwind_next_frame) gdb can use it only in the
// innermost frame or beside a pt_regs.
func (b *buffer) clobbered() {
	for reg := byte(0); reg < dwarfRA; reg++ {
		if reg != dwarfRBP && reg != dwarfRSP {
			b.bytes(cfaUndefined, reg)
		}
	}
	b.bytes(cfaUndefined, dwarfEflags, cfaSameValue, dwarfRBP)
}

// ptRegs says where struct pt_regs at the CFA has each register (Linux 6.1
// arch/x86/include/asm/ptrace.h): r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si
// di orig_ax, then the iret frame.
func (b *buffer) ptRegs() {
	for i, reg := range []uint8{dwarfR8 + 7, dwarfR8 + 6, dwarfR8 + 5, dwarfR8 + 4,
		dwarfRBP, dwarfRBX, dwarfR8 + 3, dwarfR8 + 2, dwarfR8 + 1, dwarfR8,
		dwarfRAX, dwarfRCX, dwarfRDX, dwarfRSI, dwarfRDI} {
		b.register(reg, 8*int64(i))
	}
	b.iretFrame(128)
}

// iretFrame says where the words rip cs eflags rsp ss are, from an offset to the
// CFA on.
func (b *buffer) iretFrame(offset int64) {
	for i, reg := range []uint8{dwarfRA, dwarfCS, dwarfEflags, dwarfRSP, dwarfSS} {
		b.register(reg, offset+8*int64(i))
	}
}

// register says that a register of the caller is in memory at CFA + offset.
func (b *buffer) register(reg uint8, offset int64) {
	switch factored := offset / dataAlign; {
	case offset%dataAlign != 0:
		b.bytes(cfaExpression, reg)
		b.block(func(e *buffer) { e.plus(offset) }) // DWARF has pushed the CFA
	case factored >= 0 && reg < 64:
		b.u8(cfaOffset | reg)
		b.uleb(uint64(factored))
	default:
		b.bytes(cfaOffsetExtendedSF, reg)
		b.sleb(factored)
	}
}

// plus adds a constant to the top of the stack of an expression.
func (b *buffer) plus(offset int64) {
	switch {
	case offset > 0:
		b.u8(opPlusUconst)
		b.uleb(uint64(offset))
	case offset < 0:
		b.u8(opConsts)
		b.sleb(offset)
		b.u8(opPlus)
	}
}

// setRow makes a row the current one from an address on.
func (w *frameWriter) setRow(first uint64, r row) {
	w.rowCount++
	if r == w.row {
		return
	}
	w.out.advance(first - w.at)
	w.at = first
	if r.base != w.row.base || r.offset != w.row.offset {
		w.out.defCFA(w.row, r)
	}
	if r.bp != w.row.bp || r.bpOffset != w.row.bpOffset {
		w.out.defBP(r)
	}
	switch {
	case r.isLast && !w.row.isLast:
		w.out.bytes(cfaUndefined, dwarfRA)
	case !r.isLast && w.row.isLast:
		w.out.u8(cfaRestore | dwarfRA)
	}
	w.row = r
}

// maxAdvance is the most bytes that one instruction can advance.
const maxAdvance = 1<<32 - 1

// advance moves to the address where the next row begins, at most maxAdvance on.
func (b *buffer) advance(delta uint64) {
	switch {
	case delta == 0:
	case delta < 64:
		b.u8(cfaAdvanceLoc | uint8(delta))
	case delta < 1<<8:
		b.bytes(cfaAdvanceLoc1, uint8(delta))
	case delta < 1<<16:
		b.u8(cfaAdvanceLoc2)
		b.u16(uint16(delta))
	default:
		b.u8(cfaAdvanceLoc4)
		b.u32(uint32(delta))
	}
}

// register is the register that a base counts from, if it is one. The indirect
// bases are a word in memory.
func register(b orc.Base) (reg uint8, ok bool) {
	switch b {
	case orc.BaseSP:
		return dwarfRSP, true
	case orc.BaseBP:
		return dwarfRBP, true
	case orc.BaseAX:
		return dwarfRAX, true
	case orc.BaseDX:
		return dwarfRDX, true
	case orc.BaseDI:
		return dwarfRDI, true
	case orc.BaseR10:
		return dwarfR8 + 2, true
	case orc.BaseR13:
		return dwarfR8 + 5, true
	}
	return 0, false
}

// plain returns the register of a CFA that can be said without an expression:
// a register and an offset that is not negative.
func (r row) plain() (reg uint8, ok bool) {
	reg, ok = register(r.base)
	return reg, ok && r.offset >= 0
}

// defCFA changes the CFA.
func (b *buffer) defCFA(old, r row) {
	was, wasPlain := old.plain()
	reg, ok := r.plain()
	switch {
	case !ok:
		b.u8(cfaDefCFAExpression)
		b.block(func(e *buffer) { e.cfa(r) })
	case wasPlain && was == reg:
		b.u8(cfaDefCFAOffset)
		b.uleb(uint64(r.offset))
	case wasPlain && old.offset == r.offset:
		b.bytes(cfaDefCFARegister, reg)
	default:
		b.bytes(cfaDefCFA, reg)
		b.uleb(uint64(r.offset))
	}
}

// cfa computes a CFA that is not plain.
func (b *buffer) cfa(r row) {
	switch r.base {
	case orc.BaseSPIndirect: // the word at rsp, plus the offset
		b.bytes(opBreg0+dwarfRSP, 0, opDeref)
		b.plus(int64(r.offset))
	case orc.BaseBPIndirect: // the word at rbp plus the offset
		b.u8(opBreg0 + dwarfRBP)
		b.sleb(int64(r.offset))
		b.u8(opDeref)
	default:
		reg, _ := register(r.base)
		b.u8(opBreg0 + reg)
		b.sleb(int64(r.offset))
	}
}

// defBP changes where the caller's rbp is.
func (b *buffer) defBP(r row) {
	switch r.bp {
	case orc.BPSame:
		b.u8(cfaRestore | dwarfRBP)
	case orc.BPAtCFA:
		b.register(dwarfRBP, int64(r.bpOffset))
	case orc.BPAtBP:
		b.bytes(cfaExpression, dwarfRBP)
		b.block(func(e *buffer) {
			e.u8(opBreg0 + dwarfRBP)
			e.sleb(int64(r.bpOffset))
		})
	}
}
