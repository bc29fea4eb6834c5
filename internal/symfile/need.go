package symfile

import "nestdbg/internal/btf"

// need marks what a unit requires of a base that is described in another file.
// What a value contains is needed; what is behind a pointer is only named, so a
// structure there becomes a declaration. Without this every module's file would
// carry the kernel's types along.
type need struct {
	*types
	work []uint32 // ids whose references are to be followed
}

// markNeeds marks the types of t.base that the unit's own types, functions and
// variables lead to.
func (t *types) markNeeds(variables []Variable) {
	n := need{types: t}
	for i := range t.own.Len() {
		r := t.own.record(i)
		n.references(&r, needed)
	}
	for _, v := range variables {
		n.mark(uint32(v.Type), needed)
	}
	for len(n.work) > 0 {
		id := n.work[len(n.work)-1]
		n.work = n.work[:len(n.work)-1]
		s, i := t.at(id)
		r := s.record(i)
		n.references(&r, s.state[i]&(needed|named))
	}
}

// references marks what a type refers to, given how itself is marked.
func (n *need) references(r *record, mark state) {
	if r.IsComposite() {
		if mark&needed == 0 && r.Name != 0 {
			return // declared, without members
		}
		mark = needed
	}
	if r.Kind == btf.Ptr {
		mark = named
	}
	if r.Kind == btf.Var || r.Kind == btf.Func {
		n.mark(r.Ref, needed)
	}
	for _, g := range []graph{byChain, byValue} {
		for k := 0; ; k++ {
			id, ok := r.edge(g, k)
			if !ok {
				break
			}
			n.mark(id, mark)
		}
	}
}

// mark marks a type of the base, and puts it to work if that is new.
func (n *need) mark(id uint32, mark state) {
	if mark&needed != 0 {
		mark = needed
	}
	s, i := n.at(id)
	if i < 0 || s != n.base || s.state[i]&(mark|needed) != 0 {
		return
	}
	s.state[i] |= mark
	n.work = append(n.work, id)
}
