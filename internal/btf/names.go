package btf

import (
	"hash/maphash"
	"math/bits"
)

// nameIndex is a hash table over the names of a section's own types. It is made
// when the first name is asked for, in a millisecond or two for a kernel.
type nameIndex struct {
	seed    maphash.Seed // random, so no guest can choose names that collide
	head    []uint32     // by hash: 1 + the index of a chain's first entry, 0 for none
	entries []indexEntry
}

type indexEntry struct {
	next  uint32 // like head
	hash  uint32
	index uint32 // of the type
}

// isNamed reports whether a name of this kind names a type. Functions, variables
// and sections are no types, and what is only declared says nothing.
func isNamed(k Kind) bool {
	switch k {
	case Int, Struct, Union, Enum, Typedef, Float, Enum64:
		return true
	}
	return false
}

// Named returns the section's own types with exactly this name, ascending.
func (s *Spec) Named(name string) (ids []ID) {
	if name == "" || len(name) >= maxName {
		return nil
	}
	x := &s.index
	x.once.Do(func() { x.nameIndex = s.indexNames() })
	hash := maphash.String(x.seed, name)
	for link := x.head[hash&uint64(len(x.head)-1)]; link != 0; {
		e := &x.entries[link-1]
		if e.hash == uint32(hash>>32) && string(s.Text(s.At(int(e.index)).Name)) == name {
			ids = append(ids, s.firstID+ID(e.index))
		}
		link = e.next
	}
	return ids
}

// indexNames makes the index, from last to first, so that chains ascend.
func (s *Spec) indexNames() nameIndex {
	count := 0
	for i := range s.offset {
		if isNamed(s.KindAt(i)) {
			count++
		}
	}
	x := nameIndex{seed: maphash.MakeSeed(), head: make([]uint32, 1<<bits.Len(uint(count))),
		entries: make([]indexEntry, 0, count)}
	for i := len(s.offset) - 1; i >= 0; i-- {
		if !isNamed(s.KindAt(i)) {
			continue
		}
		name := s.Text(s.At(i).Name)
		if len(name) == 0 {
			continue
		}
		hash := maphash.Bytes(x.seed, name)
		head := &x.head[hash&uint64(len(x.head)-1)]
		x.entries = append(x.entries, indexEntry{next: *head, hash: uint32(hash >> 32), index: uint32(i)})
		*head = uint32(len(x.entries))
	}
	return x
}

// KindAt is At(i).Kind, for loops over everything.
func (s *Spec) KindAt(i int) Kind { return kindOf(uint32(s.types[s.offset[i]+7]) << 24) }
