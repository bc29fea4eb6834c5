package cexpr

import (
	"errors"
	"fmt"
	"strings"
)

// Result is the value of an expression with what has to be said about it.
type Result struct {
	Value Value
	Notes []string // what the answer rests on, besides the program's own word
}

// Evaluate parses an expression and finds its value. Memory is read as far as the
// expression goes through pointers or computes; the bytes of an object that is the
// value itself are not.
func (e *Env) Evaluate(text string) (Result, error) {
	ev := evaluator{env: e}
	n, err := Parse(text, e.isTypedef)
	if wrong, ok := err.(*Error); ok && wrong.notType != "" && e.Types != nil {
		_, why := e.Types.Named("", wrong.notType)
		err = ev.unknownType(&TypeExpr{Pos: wrong.Pos, Name: wrong.notType}, why)
	}
	if err != nil {
		return Result{}, err
	}
	v, err := ev.eval(n)
	return Result{v, ev.notes}, err
}

// Resolve parses the name of a type and finds it: "struct list_head", "u32 *". Of
// several it is the first.
func (e *Env) Resolve(text string) (*Type, error) {
	n, err := ParseType(text, e.isTypedef)
	if err != nil {
		return nil, err
	}
	ev := evaluator{env: e, quiet: true}
	return ev.typ(n)
}

// isTypedef reports whether a name is a type's and no variable's.
func (e *Env) isTypedef(name string) bool {
	if e.Types == nil {
		return false
	}
	_, err := e.Types.Named("", name)
	return err == nil
}

// evaluator evaluates one expression.
type evaluator struct {
	env   *Env
	quiet bool // nobody wants notes about types
	notes []string
}

func (ev *evaluator) note(text string) {
	for _, n := range ev.notes {
		if n == text {
			return
		}
	}
	if text != "" {
		ev.notes = append(ev.notes, text)
	}
}

// eval finds the value of a part; its errors say where.
func (ev *evaluator) eval(n Node) (Value, error) {
	v, err := ev.part(n)
	if err == nil {
		return v, nil
	}
	var placed *Error
	if errors.As(err, &placed) {
		if placed.Pos < 0 {
			placed = &Error{Pos: n.At(), Msg: placed.Msg, Err: placed.Err}
			return Value{}, placed
		}
	}
	return Value{}, err
}

func (ev *evaluator) part(n Node) (Value, error) {
	switch n := n.(type) {
	case *Name:
		return ev.name(n)
	case *Number:
		return ev.env.Computed(n.Type, n.Value), nil
	case *String:
		return Value{}, errorAt(n.At(), "a string is only for helpers that take a name; compare characters one by one")
	case *Unary:
		return ev.unary(n)
	case *Binary:
		return ev.binary(n)
	case *Conditional:
		return ev.conditional(n)
	case *Select:
		return ev.selected(n)
	case *Index:
		return ev.index(n)
	case *Cast:
		return ev.cast(n)
	case *SizeOf:
		t, err := ev.typ(n.Type)
		if err != nil {
			return Value{}, err
		}
		return ev.sizeOf(t)
	case *OffsetOf:
		off, err := ev.offsetOf(n.Type, n.Path)
		return ev.env.Computed(UnsignedLong, off), err
	case *ContainerOf:
		return ev.containerOf(n)
	case *Call:
		return ev.call(n)
	}
	return Value{}, errorAt(n.At(), "not understood: %s", Text(n))
}

// name is a register, variable, function or enumerator.
func (ev *evaluator) name(n *Name) (Value, error) {
	if register, ok := strings.CutPrefix(n.Text, "$"); ok {
		if ev.env.Registers == nil {
			return Value{}, errorAt(n.At(), "%s: no registers are known here", n.Text)
		}
		v, err := ev.env.Registers(register)
		if err != nil {
			return Value{}, &Error{Pos: n.At(), Msg: err.Error(), Err: err}
		}
		return ev.env.Computed(UnsignedLong, v), nil
	}
	err := error(nil)
	if ev.env.Symbols != nil {
		var found Variable
		if found, err = ev.env.Symbols.Variable(n.Text); err == nil {
			ev.note(found.Note)
			return Value{Type: found.Type, InMemory: true, Addr: found.Addr, PerCPU: found.PerCPU,
				Symbol: n.Text, env: ev.env}, nil
		}
		if !errors.Is(err, ErrNotFound) {
			return Value{}, err
		}
	}
	if ev.env.Types != nil {
		t, v, err := ev.env.Types.Enumerator(n.Text)
		if err == nil {
			return ev.env.Computed(t, v), nil
		}
		if !errors.Is(err, ErrNotFound) {
			return Value{}, err
		}
	}
	return Value{}, ev.unknownName(n, err)
}

// told is what somebody who did not find something says about why, as the end of a
// message; "" if it is not more than that.
func told(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return "; " + e.Msg
	}
	return ""
}

// unknownName says what else the name is.
func (ev *evaluator) unknownName(n *Name, why error) error {
	msg := fmt.Sprintf("there is no symbol and no enumerator %q", n.Text) + told(why)
	if ev.env.Types != nil {
		for _, keyword := range []string{"struct", "union", "enum"} {
			if _, err := ev.env.Types.Named(keyword, n.Text); err == nil {
				msg += fmt.Sprintf("; the type is %s %s", keyword, n.Text)
			}
		}
	}
	if strings.ToUpper(n.Text) == n.Text {
		msg += "; if it is a macro, nothing in the program tells its value"
	}
	if h, ok := ev.env.Helpers[n.Text]; ok {
		msg += "; the helper is called like this: " + h.Usage
	}
	return &Error{Pos: n.At(), Msg: msg, Err: ErrNotFound}
}

// typed refuses a symbol of which only the address is known, and says what to
// write instead.
func typed(v Value) error {
	if v.Type != nil {
		return nil
	}
	why := ", as BTF has those of functions and per-CPU variables only"
	if strings.HasPrefix(v.Symbol, "per_cpu(") {
		why = ": BTF does not have it"
	}
	return errorAt(-1, "the type of %s is not known%s; write (TYPE)%[1]s, or *(TYPE *)&%[1]s", v.Symbol, why)
}

// rvalue makes a number or pointer of a value: an array becomes the address of its
// first element, a function its address.
func (ev *evaluator) rvalue(v Value) (Value, error) {
	if err := typed(v); err != nil {
		return v, err
	}
	d, err := v.Type.Under()
	if err != nil {
		return v, err
	}
	switch d.Kind {
	case KindArray:
		if v.PerCPU {
			return v, v.perCPUError()
		}
		return ev.env.Computed(PointerTo(d.Elem), v.Addr), nil
	case KindFunc:
		return ev.env.Computed(PointerTo(v.Type), v.Addr), nil
	}
	bits, err := v.Bits()
	if err != nil {
		return v, err
	}
	return ev.env.Computed(v.Type, bits), nil
}

// operand is the rvalue of a part.
func (ev *evaluator) operand(n Node) (Value, error) {
	v, err := ev.eval(n)
	if err != nil {
		return v, err
	}
	if v, err = ev.rvalue(v); err != nil {
		return v, place(err, n)
	}
	return v, nil
}

// place says where an error is that does not say so itself.
func place(err error, n Node) error {
	if e, ok := err.(*Error); ok && e.Pos < 0 {
		return &Error{Pos: n.At(), Msg: e.Msg, Err: e.Err}
	}
	return err
}

// truth is a part as a condition.
func (ev *evaluator) truth(n Node) (bool, error) {
	v, err := ev.operand(n)
	return v.bits != 0, err
}

func (ev *evaluator) conditional(n *Conditional) (Value, error) {
	yes, err := ev.truth(n.C)
	if err != nil {
		return Value{}, err
	}
	if yes {
		return ev.eval(n.A)
	}
	return ev.eval(n.B)
}

func (ev *evaluator) unary(n *Unary) (Value, error) {
	switch n.Op {
	case "&":
		return ev.address(n)
	case "sizeof":
		v, err := ev.eval(n.X)
		if err != nil {
			return v, err
		}
		if err := typed(v); err != nil {
			return v, err
		}
		if v.BitSize != 0 {
			return v, errorAt(n.At(), "a bit field has no size in bytes; it has %d bits", v.BitSize)
		}
		return ev.sizeOf(v.Type)
	}
	v, err := ev.operand(n.X)
	if err != nil {
		return v, err
	}
	if n.Op == "*" {
		return ev.deref(v)
	}
	if n.Op == "!" {
		return ev.env.Computed(Int, bit(v.bits == 0)), nil
	}
	if isPointer(v.Type) {
		return v, errorAt(n.At(), "%s of a pointer", n.Op)
	}
	t, err := promoted(v.Type)
	if err != nil {
		return v, err
	}
	switch n.Op {
	case "-":
		return ev.number(t, -v.bits)
	case "~":
		return ev.number(t, ^v.bits)
	}
	return ev.number(t, v.bits)
}

// deref is what a pointer points to.
func (ev *evaluator) deref(v Value) (Value, error) {
	if !isPointer(v.Type) {
		return v, errorAt(-1, "* needs a pointer, not %s", article(v.Type))
	}
	out, err := v.Deref()
	if err != nil {
		return out, err
	}
	if d, err := out.Type.Under(); err == nil && d.Kind == KindVoid {
		return out, errorAt(-1, "a void * points to no type; cast it, as in *(TYPE *)x")
	}
	return out, nil
}

func (ev *evaluator) address(n *Unary) (Value, error) {
	v, err := ev.eval(n.X)
	switch {
	case err != nil:
		return v, err
	case !v.InMemory:
		return v, errorAt(n.At(), "a computed value has no address")
	case v.BitSize != 0:
		return v, errorAt(n.At(), "a bit field has no address")
	case v.PerCPU:
		return v, v.perCPUError()
	case v.Type == nil:
		return ev.env.Computed(PointerTo(Void), v.Addr), nil
	}
	return ev.env.Computed(PointerTo(v.Type), v.Addr), nil
}

func (ev *evaluator) sizeOf(t *Type) (Value, error) {
	size, err := t.Size()
	if err != nil {
		return Value{}, classed(err)
	}
	return ev.env.Computed(UnsignedLong, size), nil
}

// classed makes an error about types one about the expression, if that is what is
// wrong: a type that is only declared has no size.
func classed(err error) error {
	if errors.Is(err, ErrNotFound) {
		return &Error{Pos: -1, Msg: strings.TrimSuffix(err.Error(), ": "+ErrNotFound.Error()), Err: ErrNotFound}
	}
	return err
}

func (ev *evaluator) index(n *Index) (Value, error) {
	x, err := ev.eval(n.X)
	if err != nil {
		return x, err
	}
	i, err := ev.operand(n.I)
	if err != nil {
		return i, err
	}
	if isPointer(i.Type) {
		return i, errorAt(n.I.At(), "an index has to be a number")
	}
	if err := typed(x); err != nil {
		return x, err
	}
	d, err := x.Type.Under()
	if err != nil {
		return x, err
	}
	switch d.Kind {
	case KindArray: // not through a pointer: an element of per-CPU data is per-CPU
		out, err := x.Element(i.bits)
		if err == nil && d.Count != 0 && i.bits >= d.Count {
			ev.note(fmt.Sprintf("index %d is outside of the array, which has %d elements", int64(i.bits), d.Count))
		}
		return out, classed(err)
	case KindPointer:
		sum, err := ev.pointerSum(x, i.bits)
		if err != nil {
			return sum, err
		}
		return ev.deref(sum)
	}
	return x, errorAt(n.At(), "[] needs an array or a pointer, not %s", article(x.Type))
}

func (ev *evaluator) cast(n *Cast) (Value, error) {
	t, err := ev.typ(n.Type)
	if err != nil {
		return Value{}, err
	}
	v, err := ev.eval(n.X)
	if err != nil {
		return v, err
	}
	d, err := t.Under()
	if err != nil {
		return v, err
	}
	if v.Type == nil { // as in gdb: the cast says what the symbol is
		if d.Kind == KindVoid || d.Kind == KindFunc {
			return v, errorAt(n.At(), "a variable cannot be %s", TypeName(t))
		}
		v.Type = t
		return v, nil
	}
	switch d.Kind {
	case KindStruct, KindUnion, KindArray, KindForward, KindFunc, KindVoid, KindFloat:
		if from, err := v.Type.Under(); err == nil && from.Kind == d.Kind && TypeName(v.Type) == TypeName(t) {
			return v, nil
		}
		return v, errorAt(n.At(), "%s cannot be made of %s; write *(%s *)&..., if that is meant", TypeName(t), article(v.Type), TypeName(t))
	}
	if v, err = ev.rvalue(v); err != nil {
		return v, place(err, n.X)
	}
	return ev.number(t, v.bits)
}

// number is a computed value, cut to the width of its type.
func (ev *evaluator) number(t *Type, bits uint64) (Value, error) {
	size, signed, err := scalar(t)
	if err != nil {
		return Value{}, err
	}
	if d, err := t.Under(); err == nil && d.Kind == KindBool {
		return ev.env.Computed(t, bit(bits != 0)), nil
	}
	return ev.env.Computed(t, extend(bits, 8*size, signed)), nil
}

func bit(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}
