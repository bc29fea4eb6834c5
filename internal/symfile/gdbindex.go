package symfile

import (
	"bytes"
	"cmp"
	"slices"
)

// gdbIndex becomes the section .gdb_index (GDB manual, "Index Section Format",
// version 8), which lists the names that the units describe. gdb could do without:
// it reads the units when it opens the file. But a gdb that keeps indexes of files
// in a cache, by build id, would take that of the vendor's file for ours, since both
// have the kernel's build id, and would store ours for the vendor's. It leaves the
// cache alone when the file has an index.
type gdbIndex struct {
	units  []indexUnit
	names  []indexName
	ranges []indexRange
}

// indexUnit is a compilation unit: where it is in .debug_info, in bytes.
type indexUnit struct{ offset, size uint64 }

// indexName is a name that a unit describes: where it is in .debug_str, and what
// the index says of it, which is unit, kind and whether it is static.
type indexName struct{ str, says uint32 }

// indexRange is code of a unit; end is the first address behind it.
type indexRange struct {
	first, end uint64
	unit       uint32
}

// What the index says of a name: the unit's number in bits 0 to 23, the kind in 28
// to 30, static in 31.
const (
	indexType     = 1 << 28
	indexVariable = 2 << 28
	indexFunction = 3 << 28
	indexStatic   = 1 << 31

	indexVersion    = 8
	indexHeaderSize = 24
)

// indexKinds are the entries whose names gdb looks up. Enumerators are to it what
// variables are. A declaration says nothing worth reading the unit for.
var indexKinds = [shapeEnd]uint32{
	shapeBase: indexType, shapeTypedef: indexType, shapeStruct: indexType, shapeUnion: indexType, shapeEnum: indexType,
	shapeEnumerator: indexVariable, shapeNegative: indexVariable, shapeVariable: indexVariable,
	shapeFunction: indexFunction,
}

// begin starts a unit.
func (x *gdbIndex) begin(offset int) { x.units = append(x.units, indexUnit{offset: uint64(offset)}) }

// end ends it.
func (x *gdbIndex) end(offset int) {
	u := &x.units[len(x.units)-1]
	u.size = uint64(offset) - u.offset
}

// add notes an entry of the current unit.
func (x *gdbIndex) add(s shape, str uint32) {
	if kind := indexKinds[s]; kind != 0 && str != 0 {
		x.names = append(x.names, indexName{str, kind | indexStatic | uint32(len(x.units)-1)})
	}
}

// setExternal says whether the name that was added last is one of the whole program.
func (x *gdbIndex) setExternal(yes bool) {
	if yes {
		x.names[len(x.names)-1].says &^= indexStatic
	}
}

// indexGap is how far apart functions may be that share a range, in bytes: what is
// between them is padding.
const indexGap = 64

// code notes code of the current unit.
func (x *gdbIndex) code(first, size uint64) {
	if end := first + size; end > first {
		x.ranges = append(x.ranges, indexRange{first, end, uint32(len(x.units) - 1)})
	}
}

// section makes the section; str is .debug_str. moves tells of an address whether it
// moves with the image.
func (x *gdbIndex) section(str []byte, moves func(uint64) bool) buffer {
	slots, pool := x.table(str)
	ranges := x.merged()
	var b buffer
	unitsAt := indexHeaderSize
	rangesAt := unitsAt + 16*len(x.units)
	tableAt := rangesAt + 20*len(ranges)
	b.grow(tableAt + 8*len(slots) + len(pool))
	for _, v := range []int{indexVersion, unitsAt, rangesAt /* no type units */, rangesAt, tableAt, tableAt + 8*len(slots)} {
		b.u32(uint32(v))
	}
	for _, u := range x.units {
		b.u64(u.offset)
		b.u64(u.size)
	}
	for _, r := range ranges {
		b.addr(r.first, moves(r.first))
		b.addr(r.end, moves(r.first))
		b.u32(r.unit)
	}
	for _, s := range slots {
		b.u32(s.name)
		b.u32(s.says)
	}
	b.bytes(pool...)
	return b
}

// merged are the ranges in order, those together that belong together.
func (x *gdbIndex) merged() []indexRange {
	slices.SortFunc(x.ranges, func(a, b indexRange) int {
		return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(a.end, b.end))
	})
	var out []indexRange
	for _, r := range x.ranges {
		if n := len(out); n > 0 {
			last := &out[n-1]
			if last.unit == r.unit && r.first <= last.end+indexGap {
				last.end = max(last.end, r.end)
				continue
			}
		}
		out = append(out, r)
	}
	return out
}

// indexSlot is a slot of the hash table: offsets in the constant pool, of the name
// and of what is said of it. Both 0 is an empty slot.
type indexSlot struct{ name, says uint32 }

// Bounds on hostile names: what is longer, or finds its place taken as often, is
// not in the index. Ours; Linux 6.1 has names of 60 bytes, and finds a place for
// each within 50 steps.
const (
	indexNameMax  = 1024
	indexStepsMax = 1000
)

// table makes the hash table and the constant pool, which begins with the lists of
// what is said of names and goes on with the names.
func (x *gdbIndex) table(str []byte) ([]indexSlot, []byte) {
	size := 1
	for size*3 < 4*(len(x.names)+1) {
		size *= 2
	}
	// What is said of a name is a list: first has its head, next the rest, as indices
	// in x.names plus one.
	first, next := make([]uint32, size), make([]uint32, len(x.names))
	for i, n := range x.names {
		name := indexText(str, n.str)
		if len(name) == 0 {
			continue
		}
		at, step := indexPlace(name, size)
		for range indexStepsMax {
			head := first[at]
			if head == 0 || x.names[head-1].str == n.str || bytes.Equal(indexText(str, x.names[head-1].str), name) {
				next[i], first[at] = head, uint32(i+1)
				break
			}
			at = (at + step) & (size - 1)
		}
	}
	slots := make([]indexSlot, size)
	var pool buffer
	lists := make(map[uint32]uint32) // where the list is that has only this
	for at, head := range first {
		if head != 0 {
			slots[at].says = x.list(&pool, lists, head, next)
		}
	}
	for at, head := range first {
		if head != 0 {
			slots[at].name = uint32(pool.len())
			pool.bytes(indexText(str, x.names[head-1].str)...)
			pool.u8(0)
		}
	}
	return slots, pool.b
}

// list appends what is said of a name to the constant pool, each thing once, and
// returns where it is.
func (x *gdbIndex) list(pool *buffer, single map[uint32]uint32, head uint32, next []uint32) uint32 {
	var says []uint32
	for ; head != 0; head = next[head-1] {
		says = append(says, x.names[head-1].says)
	}
	slices.Sort(says)
	says = slices.Compact(says)
	if len(says) == 1 {
		if at, ok := single[says[0]]; ok {
			return at
		}
		single[says[0]] = uint32(pool.len())
	}
	at := uint32(pool.len())
	pool.u32(uint32(len(says)))
	for _, s := range says {
		pool.u32(s)
	}
	return at
}

// indexPlace is where a name's search begins in a table of a size, and its step.
func indexPlace(name []byte, size int) (at, step int) {
	var h uint32
	for _, c := range name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		h = h*67 + uint32(c) - 113
	}
	return int(h) & (size - 1), int(h*17)&(size-1) | 1
}

// indexText is the name at an offset of .debug_str; nil if it is too long.
func indexText(str []byte, at uint32) []byte {
	b := str[at:]
	n := bytes.IndexByte(b[:min(len(b), indexNameMax+1)], 0)
	return b[:max(n, 0)]
}
