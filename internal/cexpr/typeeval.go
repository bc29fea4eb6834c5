package cexpr

import (
	"errors"
	"fmt"
	"strings"
)

// typ is the type that was written.
func (ev *evaluator) typ(n *TypeExpr) (*Type, error) {
	t, err := ev.baseType(n)
	if err != nil {
		return nil, err
	}
	// Derivations are listed from the inside out, and types are made from the outside in.
	for i := len(n.Derived) - 1; i >= 0; i-- {
		switch d := n.Derived[i]; d.Kind {
		case KindPointer:
			t = PointerTo(t)
		case KindArray:
			count := uint64(0)
			if d.Count != nil {
				v, err := ev.operand(d.Count)
				if err != nil {
					return nil, err
				}
				if count = v.bits; count > maxSize {
					return nil, errorAt(d.Count.At(), "an array of %d elements", int64(count))
				}
			}
			t = ArrayOf(t, count)
		case KindFunc:
			def := Def{Kind: KindFunc, Elem: t}
			for _, p := range d.Params {
				param, err := ev.typ(p)
				if err != nil {
					return nil, err
				}
				if param != Void {
					def.Params = append(def.Params, Param{Type: param})
				}
			}
			t = NewType(def)
		}
	}
	return t, nil
}

// baseType is what a type begins with.
func (ev *evaluator) baseType(n *TypeExpr) (*Type, error) {
	if n.TypeOf != nil {
		v, err := ev.eval(n.TypeOf)
		if err == nil {
			err = typed(v)
		}
		return v.Type, place(err, n.TypeOf)
	}
	if n.Keyword == "" {
		if d, ok := Basic(n.Name); ok {
			if d.Kind == KindVoid {
				return Void, nil
			}
			return NewType(d), nil
		}
	}
	if ev.env.Types == nil {
		return nil, errorAt(n.Pos, "no types are known here")
	}
	list, err := ev.env.Types.Named(n.Keyword, n.Name)
	if errors.Is(err, ErrNotFound) {
		return nil, ev.unknownType(n, err)
	}
	if err != nil {
		return nil, err
	}
	if len(list) > 1 {
		ev.note(fmt.Sprintf("there are %d different types %s; this is the first", len(list), strings.TrimSpace(n.Keyword+" "+n.Name)))
	}
	if !ev.quiet {
		ev.note(ev.env.Types.Note(n.Keyword, n.Name))
	}
	return list[0], nil
}

// unknownType says which types of near names there are, or of the same name.
func (ev *evaluator) unknownType(n *TypeExpr, why error) error {
	name := strings.TrimSpace(n.Keyword + " " + n.Name)
	for _, keyword := range []string{"struct", "union", "enum", ""} {
		if keyword == n.Keyword {
			continue
		}
		if _, err := ev.env.Types.Named(keyword, n.Name); err == nil {
			return &Error{Pos: n.Pos, Err: ErrNotFound,
				Msg: fmt.Sprintf("there is no type %q; there is %q", name, strings.TrimSpace(keyword+" "+n.Name))}
		}
	}
	msg := fmt.Sprintf("there is no type %q", name)
	if near := Near(n.Name, ev.env.Types.Names(n.Keyword)); len(near) > 0 {
		for i := range near {
			near[i] = strings.TrimSpace(n.Keyword + " " + near[i])
		}
		msg += "; near: " + strings.Join(near, ", ")
	}
	msg += told(why)
	return &Error{Pos: n.Pos, Msg: msg, Err: ErrNotFound}
}
