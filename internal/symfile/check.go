package symfile

import (
	"math/bits"

	"nestdbg/internal/btf"
)

// types is the id space of one unit: its own types, and those they continue.
type types struct {
	base *table // nil if own is the kernel
	own  *table
}

// at finds a type by id. index is -1 for void, id 0, and for ids without a type.
func (t *types) at(id uint32) (s *table, index int) {
	if t.base != nil && id < t.own.firstID {
		s = t.base
	} else {
		s = t.own
	}
	if id < s.firstID || id-s.firstID >= uint32(s.Len()) {
		return nil, -1
	}
	return s, int(id - s.firstID)
}

// graph is a set of references between types that a sound program cannot be
// circular in. Every circle of C's types passes through a member of a structure
// and through a pointer or a prototype, so it lies in neither of these.
type graph int

const (
	byChain graph = iota // what a declarator is made of: all references but members
	byValue              // what a value contains: all but pointers and prototypes
)

// maxDepth bounds how deep types are nested in either graph; gdb follows them by
// recursion. It is ours; Linux 6.1 needs 19.
const maxDepth = 100

// edge returns the i-th reference that a type has in a graph.
func (r *record) edge(g graph, i int) (id uint32, ok bool) {
	switch r.Kind {
	case btf.Typedef, btf.Volatile, btf.Const, btf.Restrict, btf.TypeTag:
		return r.Ref, i == 0
	case btf.Ptr:
		return r.Ref, i == 0 && g == byChain
	case btf.Array:
		return r.U32(0), i == 0
	case btf.FuncProto:
		switch {
		case g == byValue || i > r.Count:
			return 0, false
		case i == r.Count:
			return r.Ref, true
		}
		return r.U32(8*i + 4), true
	case btf.Struct, btf.Union:
		if g == byChain || i >= r.Count {
			return 0, false
		}
		return r.U32(12*i + 4), true
	}
	return 0, false
}

// check marks what gdb could not digest in the unit's own types: circles and
// towers are cut, and types that make no sense are unusable. It computes the
// size of every type. The types of base must have been checked.
func (t *types) check(n *notes) {
	for i := range t.own.Len() {
		if r := t.own.record(i); !isSound(&r) {
			n.add("BTF kind %d with %d bytes: not described", r.Kind, r.Ref)
			t.own.state[i] |= unusable
		}
	}
	for _, g := range []graph{byChain, byValue} {
		for i := range t.own.state {
			t.own.state[i] &^= visited
		}
		s := search{types: t, graph: g, notes: n}
		for i := range t.own.Len() {
			s.from(i)
		}
	}
}

// search walks a graph of a unit's own types depth first, without recursion.
type search struct {
	*types
	graph graph
	notes *notes
	path  []step
}

// step is a type on the path of a search, and the next of its references.
type step struct {
	index, edge int
	record      record // of the type, which a structure needs for each of its members
}

// from visits the type at an index and all that it leads to.
func (s *search) from(index int) {
	s.enter(index)
	for len(s.path) > 0 {
		top := &s.path[len(s.path)-1]
		id, ok := top.record.edge(s.graph, top.edge)
		if !ok || s.own.state[top.index]&cut != 0 {
			s.leave(top.index, &top.record)
			continue
		}
		top.edge++
		to, i := s.at(id)
		if i < 0 {
			continue
		}
		if to.KindAt(i) == btf.FuncProto {
			to.state[i] |= referenced
		}
		switch {
		case to == s.own && to.state[i]&visiting != 0:
			s.cut(top.index, "contains itself")
		case to == s.own && to.state[i]&visited == 0:
			s.enter(i)
		default:
			s.nest(top.index, to.depth[s.graph][i])
		}
	}
}

// enter puts a type on the path unless it was visited.
func (s *search) enter(index int) {
	if s.own.state[index]&visited == 0 {
		s.own.state[index] |= visiting
		s.path = append(s.path, step{index: index, record: s.own.record(index)})
	}
}

// leave takes the last type off the path: all that it refers to was visited.
func (s *search) leave(index int, r *record) {
	s.own.state[index] = s.own.state[index]&^visiting | visited
	if s.graph == byValue {
		s.own.size[index] = s.sizeOf(r, s.own.state[index]&cut != 0)
	}
	s.path = s.path[:len(s.path)-1]
	if len(s.path) > 0 {
		s.nest(s.path[len(s.path)-1].index, s.own.depth[s.graph][index])
	}
}

// nest records that the type at an index refers to one with a certain depth.
func (s *search) nest(index int, depth uint8) {
	d := &s.own.depth[s.graph][index]
	switch {
	case depth >= maxDepth:
		s.cut(index, "is nested too deep")
		*d = 0
	case *d <= depth:
		*d = depth + 1
	}
}

func (s *search) cut(index int, why string) {
	id := s.own.firstID + uint32(index)
	s.notes.add("a type "+why+" (id %d): its target or members are left out", id)
	s.own.state[index] |= cut
}

// isSound tells whether a type can be described by itself.
func isSound(r *record) bool {
	ok := true
	switch r.Kind {
	case btf.Int:
		ok = r.Ref <= 16 && bits.OnesCount32(r.Ref) == 1
	case btf.Enum, btf.Enum64:
		ok = r.Ref <= 8 && bits.OnesCount32(r.Ref) == 1
	case btf.Float:
		ok = r.Ref == 2 || r.Ref == 4 || r.Ref == 8 || r.Ref == 10 || r.Ref == 12 || r.Ref == 16
	}
	return ok
}

// maxSize stands for every size that no object in memory can have.
const maxSize = 1 << 60

// sizeOf computes the size of a type in bytes from those of its parts, which
// must have been visited.
func (t *types) sizeOf(r *record, isCut bool) uint64 {
	switch r.Kind {
	case btf.Int, btf.Enum, btf.Enum64, btf.Float, btf.Struct, btf.Union:
		return uint64(r.Ref)
	case btf.Ptr:
		return pointerSize
	}
	if isCut {
		return 0
	}
	switch r.Kind {
	case btf.Typedef, btf.Volatile, btf.Const, btf.Restrict, btf.TypeTag:
		return t.sizeByID(r.Ref)
	case btf.Array:
		hi, size := bits.Mul64(t.sizeByID(r.U32(0)), uint64(r.U32(8)))
		if hi != 0 || size > maxSize {
			return maxSize
		}
		return size
	}
	return 0
}

func (t *types) sizeByID(id uint32) uint64 {
	s, i := t.at(id)
	if i < 0 {
		return 0
	}
	return s.size[i]
}

// target is the type that a reference is described by: tags are looked through,
// and what has no description, or is no type at all, is void.
func (t *types) target(id uint32) (s *table, index int) {
	for range maxDepth {
		s, index = t.at(id)
		if index < 0 || s.state[index]&unusable != 0 {
			break
		}
		switch s.KindAt(index) {
		case btf.TypeTag:
			if s.state[index]&cut != 0 {
				return nil, -1
			}
			id = s.At(index).Ref
			continue
		case btf.Func, btf.Var, btf.Datasec, btf.DeclTag:
			return nil, -1
		}
		return s, index
	}
	return nil, -1
}
