package cexpr

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
)

// keywords is the order in which a name without one is looked for.
var keywords = []string{"struct", "union", "enum", ""}

// FindType returns the types of a name, which are several when parts of a program
// use it differently, and the note about them. Without a keyword in front it may be a
// tag or a typedef.
func (e *Env) FindType(name string) (list []*Type, note string, err error) {
	if e.Types == nil {
		return nil, "", errorAt(-1, "no types are known here")
	}
	words := strings.Fields(name)
	try := keywords
	if len(words) == 2 && words[0] != "" && slices.Contains(keywords, words[0]) {
		try, words = words[:1], words[1:]
	}
	if len(words) != 1 {
		return nil, "", errorAt(-1, "%q is no name of a type", name)
	}
	for _, keyword := range try {
		list, err = e.Types.Named(keyword, words[0])
		if err == nil {
			return list, e.Types.Note(keyword, words[0]), nil
		}
		if !errors.Is(err, ErrNotFound) {
			return nil, "", err
		}
	}
	if len(try) == 1 {
		ev := evaluator{env: e}
		return nil, "", ev.unknownType(&TypeExpr{Pos: -1, Keyword: try[0], Name: words[0]}, err)
	}
	msg := fmt.Sprintf("there is no type %q", words[0])
	if near := Near(words[0], e.allNames()); len(near) > 0 {
		msg += "; near: " + strings.Join(near, ", ")
	}
	msg += told(err)
	return nil, "", &Error{Pos: -1, Msg: msg, Err: ErrNotFound}
}

// allNames are the names of types of every kind.
func (e *Env) allNames() iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, keyword := range keywords {
			for name := range e.Types.Names(keyword) {
				if !yield(name) {
					return
				}
			}
		}
	}
}

// Address evaluates an expression that says where something is: a pointer, a number,
// or an object, whose place it is.
func (e *Env) Address(text string) (addr uint64, notes []string, err error) {
	r, err := e.Evaluate(text)
	if err != nil {
		return 0, nil, err
	}
	v := r.Value
	if v.InMemory {
		switch {
		case v.PerCPU:
			return 0, nil, v.perCPUError()
		case v.Type == nil:
			return v.Addr, r.Notes, nil
		}
		d, err := v.Type.Under()
		if err != nil {
			return 0, nil, err
		}
		switch d.Kind {
		case KindStruct, KindUnion, KindArray, KindFunc, KindForward:
			return v.Addr, r.Notes, nil
		}
	}
	addr, err = v.Bits()
	return addr, r.Notes, err
}

// Walk follows a path of members and elements, such as "se.load.weight" or
// "cpus[1].count", from an object.
func (e *Env) Walk(from Value, path string) (v Value, notes []string, err error) {
	p, err := newParser(path, e.isTypedef)
	if err != nil {
		return Value{}, nil, err
	}
	defer p.recovered(&err)
	n := p.path()
	p.end()
	ev := evaluator{env: e}
	from.env = e
	v, err = ev.walk(from, n)
	return v, ev.notes, err
}
