package cexpr

import (
	"errors"
	"fmt"
	"strings"
)

// Find finds a member by name, also in anonymous members, as C does. The offsets
// of what it returns are from the start of t. ErrNotFound if there is none.
func (t *Type) Find(name string) (Member, error) {
	s := memberSearch{name: name, left: maxMembers}
	m, ok, err := s.in(t, 0, 0)
	if err == nil && !ok {
		err = fmt.Errorf("%s has no member %q: %w", TypeName(t), name, ErrNotFound)
	}
	return m, err
}

// maxMembers bounds the members that a search looks at. The largest structure of
// Linux has some 300 with those of its anonymous ones.
const maxMembers = 1 << 17

// memberSearch looks for one name.
type memberSearch struct {
	name string
	left int
}

func (s *memberSearch) in(t *Type, from uint64, depth int) (Member, bool, error) {
	d, err := t.Under()
	if err != nil || d.Kind != KindStruct && d.Kind != KindUnion {
		return Member{}, false, err
	}
	if s.left -= len(d.Members); s.left < 0 || depth > maxChain {
		return Member{}, false, fmt.Errorf("%s: anonymous members without an end: %w", TypeName(t), ErrCorrupt)
	}
	for i := range d.Members {
		if d.Members[i].Name == s.name {
			m := d.Members[i]
			m.BitOffset += from
			return m, true, nil
		}
	}
	for i := range d.Members {
		if m := &d.Members[i]; m.Name == "" {
			if out, ok, err := s.in(m.Type, from+m.BitOffset, depth+1); ok || err != nil {
				return out, ok, err
			}
		}
	}
	return Member{}, false, nil
}

// memberNames are the names of all members, also in anonymous ones.
func memberNames(t *Type, yield func(string) bool) {
	left := maxMembers
	var in func(t *Type, depth int) bool
	in = func(t *Type, depth int) bool {
		d, err := t.Under()
		if err != nil || depth > maxChain {
			return true
		}
		for i := range d.Members {
			m := &d.Members[i]
			left--
			switch {
			case left < 0:
				return false
			case m.Name == "":
				if !in(m.Type, depth+1) {
					return false
				}
			case !yield(m.Name):
				return false
			}
		}
		return true
	}
	in(t, 0)
}

// noMember is the error for a member that does not exist.
func noMember(pos int, t *Type, name string) error {
	d, err := t.Under()
	if err != nil {
		return err
	}
	switch d.Kind {
	case KindStruct, KindUnion:
	case KindForward:
		return &Error{Pos: pos, Msg: d.Name + " is only declared; its members are not in these types", Err: ErrNotFound}
	default:
		return &Error{Pos: pos, Msg: fmt.Sprintf("member %q of %s, which is no structure and no union", name, article(t)), Err: ErrNotFound}
	}
	msg := fmt.Sprintf("%s has no member %q", TypeName(t), name)
	if near := Near(name, func(yield func(string) bool) { memberNames(t, yield) }); len(near) > 0 {
		msg += "; near: " + strings.Join(near, ", ")
	}
	return &Error{Pos: pos, Msg: msg, Err: ErrNotFound}
}

// selected is a member of an object, through a pointer with "->". Like gdb it takes
// "." for a pointer too: there is only one thing it can mean.
func (ev *evaluator) selected(n *Select) (Value, error) {
	x, err := ev.eval(n.X)
	if err != nil {
		return x, err
	}
	if err := typed(x); err != nil {
		return x, err
	}
	d, err := x.Type.Under()
	if err != nil {
		return x, err
	}
	switch {
	case d.Kind == KindPointer:
		if x, err = ev.rvalue(x); err != nil {
			return x, place(err, n.X)
		}
		if x, err = x.Deref(); err != nil {
			return x, err
		}
	case n.Arrow && d.Kind == KindArray:
		if x, err = x.Element(0); err != nil {
			return x, classed(err)
		}
	case n.Arrow:
		return x, errorAt(n.At(), "-> needs a pointer, not %s; its members follow a dot", article(x.Type))
	}
	return ev.member(x, n.Name, n.At())
}

func (ev *evaluator) member(x Value, name string, pos int) (Value, error) {
	m, err := x.Type.Find(name)
	if errors.Is(err, ErrNotFound) {
		return Value{}, noMember(pos, x.Type, name)
	}
	if err != nil {
		return Value{}, err
	}
	out := x.member(&m)
	if out.Symbol != "" {
		out.Symbol += "." + name
	}
	return out, nil
}

// offsetOf is where the member of a path stands in a type, in bytes.
func (ev *evaluator) offsetOf(typ *TypeExpr, path Node) (uint64, error) {
	t, err := ev.typ(typ)
	if err != nil {
		return 0, err
	}
	v, err := ev.walk(ev.env.Object(t, 0), path)
	if err == nil && v.BitSize != 0 {
		err = errorAt(path.At(), "a bit field has no offset in bytes; it is at bit %d", 8*v.Addr+v.BitOffset)
	}
	return v.Addr, err
}

// walk follows a path of offsetof from an object.
func (ev *evaluator) walk(from Value, path Node) (Value, error) {
	switch n := path.(type) {
	case *Name:
		return ev.member(from, n.Text, n.At())
	case *Select:
		x, err := ev.walk(from, n.X)
		if err != nil {
			return x, err
		}
		return ev.member(x, n.Name, n.At())
	case *Index:
		x, err := ev.walk(from, n.X)
		if err != nil {
			return x, err
		}
		i, err := ev.operand(n.I)
		if err != nil {
			return i, err
		}
		v, err := x.Element(i.bits)
		return v, place(classed(err), n)
	}
	return Value{}, errorAt(path.At(), "%s is no path of members", Text(path))
}

func (ev *evaluator) containerOf(n *ContainerOf) (Value, error) {
	x, err := ev.operand(n.X)
	if err != nil {
		return x, err
	}
	off, err := ev.offsetOf(n.Type, n.Path)
	if err != nil {
		return x, err
	}
	t, err := ev.typ(n.Type)
	if err != nil {
		return x, err
	}
	return ev.env.Computed(PointerTo(t), x.bits-off), nil
}
