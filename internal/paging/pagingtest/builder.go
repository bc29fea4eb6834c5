// Package pagingtest builds page tables for tests. It is written from the manuals
// alone and shares no constant with package paging, so that a mistake in one of
// them shows.
package pagingtest

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
)

// Memory is where tables are written.
type Memory interface {
	mem.PhysReader
	WritePhys(p []byte, a mem.Phys) (int, error)
}

// Leaf is one page that was mapped.
type Leaf struct {
	Addr uint64
	Phys mem.Phys
	Size uint64
	Perm paging.Perm
}

// Builder builds the tables of one address space. Misuse panics: it is a bug in
// the test.
type Builder struct {
	memory Memory
	frames *Frames
	shape  shape
	root   mem.Phys
	tables map[place]mem.Phys
	leaves map[place]Leaf
}

// place is a table or a leaf: its level and the first address below it.
type place struct {
	level int
	addr  uint64
}

// New returns a builder for the format of this name. Tables come from frames and
// are written to memory. The root is there at once; it maps nothing.
func New(format string, memory Memory, frames *Frames) *Builder {
	b := &Builder{memory: memory, frames: frames, shape: shapeOf(format),
		tables: map[place]mem.Phys{}, leaves: map[place]Leaf{}}
	b.root = b.newTable()
	return b
}

// Root is the address of the root table.
func (b *Builder) Root() mem.Phys { return b.root }

// PageSizes is the sizes of pages that the format has, smallest first.
func (b *Builder) PageSizes() []uint64 {
	var sizes []uint64
	for level := 1; level <= b.shape.largest; level++ {
		sizes = append(sizes, 1<<b.shape.shift(level))
	}
	return sizes
}

// Express returns the permissions that the format can express, nearest to perm.
func (b *Builder) Express(perm paging.Perm) paging.Perm {
	s := b.shape
	if s.ept {
		perm &^= paging.User
		if !s.mbec {
			perm &^= paging.UserExec
		}
		if perm&paging.Read == 0 {
			perm &^= paging.Write
		}
		if perm == 0 {
			perm = paging.Read
		}
		return perm
	}
	perm = perm&^paging.UserExec | paging.Read
	if s.nested {
		perm &^= paging.User
	}
	if !s.nx {
		perm |= paging.Exec
	}
	return perm
}

// Map maps the page of size bytes at addr to phys. It makes the tables that are
// missing; they allow everything.
func (b *Builder) Map(addr uint64, phys mem.Phys, size uint64, perm paging.Perm) {
	level := b.levelOf(size)
	if addr%size != 0 || uint64(phys)%size != 0 {
		panic(fmt.Sprintf("pagingtest: %#x -> %#x is not aligned to %#x", addr, phys, size))
	}
	if b.Express(perm) != perm {
		panic(fmt.Sprintf("pagingtest: %s cannot express %s", b.shape.name, perm))
	}
	table := b.root
	for l := b.shape.levels; l > level; l-- {
		table = b.child(table, l, addr)
	}
	b.write(table, level, addr, b.shape.leaf(level, phys, perm))
	b.leaves[place{level, addr}] = Leaf{Addr: addr, Phys: phys, Size: size, Perm: perm}
}

// child returns the table that the entry for addr in a table of level l points to.
func (b *Builder) child(table mem.Phys, l int, addr uint64) mem.Phys {
	key := place{l - 1, addr >> b.shape.shift(l) << b.shape.shift(l)}
	if t, ok := b.tables[key]; ok {
		return t
	}
	t := b.newTable()
	b.tables[key] = t
	b.write(table, l, addr, b.shape.table(l, t))
	return t
}

// newTable takes a frame and clears it.
func (b *Builder) newTable() mem.Phys {
	t := b.frames.Take()
	b.put(make([]byte, 4096), t)
	return t
}

func (b *Builder) levelOf(size uint64) int {
	for level, s := range b.PageSizes() {
		if s == size {
			return level + 1
		}
	}
	panic(fmt.Sprintf("pagingtest: %s has no pages of %#x bytes", b.shape.name, size))
}

// Table returns the table of a level on the way to addr. There must be one.
func (b *Builder) Table(addr uint64, level int) mem.Phys {
	if level == b.shape.levels {
		return b.root
	}
	up := b.shape.shift(level + 1)
	t, ok := b.tables[place{level, addr >> up << up}]
	if !ok {
		panic(fmt.Sprintf("pagingtest: no table of level %d for %#x", level, addr))
	}
	return t
}

// EntryAt returns the address of the entry for addr in the table of a level.
func (b *Builder) EntryAt(addr uint64, level int) mem.Phys {
	return b.Table(addr, level) + mem.Phys(b.shape.index(level, addr)*uint64(b.shape.entry))
}

// Entry returns the entry for addr in the table of a level.
func (b *Builder) Entry(addr uint64, level int) uint64 {
	var word [8]byte
	if _, err := b.memory.ReadPhys(word[:b.shape.entry], b.EntryAt(addr, level)); err != nil {
		panic(err)
	}
	return binary.LittleEndian.Uint64(word[:])
}

// Edit changes the entry for addr in the table of a level. The builder's own
// records, Lookup and Leaves, do not see it.
func (b *Builder) Edit(addr uint64, level int, change func(entry uint64) uint64) {
	b.write(b.Table(addr, level), level, addr, change(b.Entry(addr, level)))
}

// Lookup returns where the leaf that was mapped over addr puts it.
func (b *Builder) Lookup(addr uint64) (mem.Phys, Leaf, bool) {
	for level := 1; level <= b.shape.largest; level++ {
		size := uint64(1) << b.shape.shift(level)
		if l, ok := b.leaves[place{level, addr &^ (size - 1)}]; ok {
			return l.Phys + mem.Phys(addr-l.Addr), l, true
		}
	}
	return 0, Leaf{}, false
}

// Leaves returns every leaf that was mapped, in ascending order.
func (b *Builder) Leaves() []Leaf {
	out := make([]Leaf, 0, len(b.leaves))
	for _, l := range b.leaves {
		out = append(out, l)
	}
	slices.SortFunc(out, func(x, y Leaf) int { return cmp.Compare(x.Addr, y.Addr) })
	return out
}

func (b *Builder) write(table mem.Phys, level int, addr, entry uint64) {
	word := binary.LittleEndian.AppendUint64(nil, entry)
	b.put(word[:b.shape.entry], table+mem.Phys(b.shape.index(level, addr)*uint64(b.shape.entry)))
}

func (b *Builder) put(p []byte, a mem.Phys) {
	if _, err := b.memory.WritePhys(p, a); err != nil {
		panic(err)
	}
}
