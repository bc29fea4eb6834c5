package cexpr

import (
	"fmt"
	"slices"
)

func isPointer(t *Type) bool {
	d, err := t.Under()
	return err == nil && d.Kind == KindPointer
}

// promoted is the type in which a number is computed with: at least an int (C17
// 6.3.1.1). An enumeration is computed with as an integer of its size.
func promoted(t *Type) (*Type, error) {
	size, signed, err := scalar(t)
	if err != nil {
		return nil, err
	}
	switch {
	case size < 4:
		return Int, nil
	case size == 4 && signed:
		return Int, nil
	case size == 4:
		return UnsignedInt, nil
	case signed:
		return Long, nil
	}
	return UnsignedLong, nil
}

// common is the type in which two numbers are computed with (C17 6.3.1.8).
func common(a, b *Type) (*Type, error) {
	a, err := promoted(a)
	if err != nil {
		return nil, err
	}
	if b, err = promoted(b); err != nil {
		return nil, err
	}
	for _, t := range []*Type{UnsignedLong, Long, UnsignedInt} {
		if a == t || b == t {
			return t, nil
		}
	}
	return Int, nil
}

func (ev *evaluator) binary(n *Binary) (Value, error) {
	switch n.Op {
	case "&&", "||":
		x, err := ev.truth(n.X)
		if err != nil {
			return Value{}, err
		}
		if x == (n.Op == "||") {
			return ev.env.Computed(Int, bit(x)), nil
		}
		y, err := ev.truth(n.Y)
		return ev.env.Computed(Int, bit(y)), err
	case "@":
		return ev.repeat(n)
	}
	x, err := ev.operand(n.X)
	if err != nil {
		return x, err
	}
	y, err := ev.operand(n.Y)
	if err != nil {
		return y, err
	}
	switch px, py := isPointer(x.Type), isPointer(y.Type); {
	case slices.Contains([]string{"==", "!=", "<", "<=", ">", ">="}, n.Op):
		return ev.compare(n, x, y, px || py)
	case !px && !py:
		return ev.arithmetic(n, x, y)
	case px && py && n.Op == "-":
		return ev.pointerDifference(x, y)
	case px && !py && n.Op == "+":
		return ev.pointerSum(x, y.bits)
	case px && !py && n.Op == "-":
		return ev.pointerSum(x, -y.bits)
	case !px && py && n.Op == "+":
		return ev.pointerSum(y, x.bits)
	}
	return x, errorAt(n.At(), "%s of pointers; cast them to unsigned long to compute with their bits", n.Op)
}

// repeat is gdb's "@": the array that begins with an object.
func (ev *evaluator) repeat(n *Binary) (Value, error) {
	x, err := ev.eval(n.X)
	if err != nil {
		return x, err
	}
	count, err := ev.operand(n.Y)
	if err != nil {
		return count, err
	}
	if err := typed(x); err != nil {
		return x, err
	}
	if !x.InMemory || x.BitSize != 0 {
		return x, errorAt(n.At(), "only something in memory can be continued with @")
	}
	size, err := x.Type.Size()
	if err != nil {
		return x, classed(err)
	}
	if isPointer(count.Type) || count.bits == 0 || count.bits > maxSize || size*count.bits > maxSize {
		return x, errorAt(n.Y.At(), "the number of elements behind @ has to be from 1 on, and the array smaller than %d GB", maxSize>>30)
	}
	x.Type = ArrayOf(x.Type, count.bits)
	return x, nil
}

func (ev *evaluator) compare(n *Binary, x, y Value, pointers bool) (Value, error) {
	a, b, signed := x.bits, y.bits, false
	if !pointers {
		t, err := common(x.Type, y.Type)
		if err != nil {
			return x, err
		}
		if a, b, signed, err = converted(t, a, b); err != nil {
			return x, err
		}
	}
	less := a < b
	if signed {
		less = int64(a) < int64(b)
	}
	result := map[string]bool{"==": a == b, "!=": a != b, "<": less, "<=": less || a == b,
		">": !less && a != b, ">=": !less}[n.Op]
	return ev.env.Computed(Int, bit(result)), nil
}

// converted cuts two numbers to the type they are computed with.
func converted(t *Type, a, b uint64) (x, y uint64, signed bool, err error) {
	size, signed, err := scalar(t)
	return extend(a, 8*size, signed), extend(b, 8*size, signed), signed, err
}

func (ev *evaluator) arithmetic(n *Binary, x, y Value) (Value, error) {
	if n.Op == "<<" || n.Op == ">>" {
		return ev.shift(n, x, y)
	}
	t, err := common(x.Type, y.Type)
	if err != nil {
		return x, err
	}
	a, b, signed, err := converted(t, x.bits, y.bits)
	if err != nil {
		return x, err
	}
	var out uint64
	switch n.Op {
	case "+":
		out = a + b
	case "-":
		out = a - b
	case "*":
		out = a * b
	case "&":
		out = a & b
	case "|":
		out = a | b
	case "^":
		out = a ^ b
	default:
		switch {
		case b == 0:
			return x, errorAt(n.At(), "division by zero")
		case n.Op == "/" && signed:
			out = uint64(int64(a) / int64(b))
		case n.Op == "/":
			out = a / b
		case signed:
			out = uint64(int64(a) % int64(b))
		default:
			out = a % b
		}
	}
	return ev.number(t, out)
}

func (ev *evaluator) shift(n *Binary, x, y Value) (Value, error) {
	t, err := promoted(x.Type)
	if err != nil {
		return x, err
	}
	size, signed, err := scalar(t)
	if err != nil {
		return x, err
	}
	if y.bits >= 8*size {
		return x, errorAt(n.At(), "a shift of %s by %d, which C leaves undefined", TypeName(t), int64(y.bits))
	}
	a := extend(x.bits, 8*size, signed)
	switch {
	case n.Op == "<<":
		a <<= y.bits
	case signed:
		a = uint64(int64(a) >> y.bits)
	default:
		a >>= y.bits
	}
	return ev.number(t, a)
}

// pointerSum moves a pointer by elements.
func (ev *evaluator) pointerSum(p Value, count uint64) (Value, error) {
	p, err := ev.rvalue(p)
	if err != nil {
		return p, err
	}
	d, err := p.Type.Under()
	if err != nil {
		return p, err
	}
	size, err := d.Elem.Size()
	if err != nil {
		if f, e := d.Elem.Under(); e != nil || f.Kind != KindFunc {
			return p, classed(err)
		}
		size = 1 // GNU C counts functions in bytes
	}
	return ev.env.Computed(p.Type, p.bits+count*size), nil
}

func (ev *evaluator) pointerDifference(x, y Value) (Value, error) {
	a, err := x.Type.Under()
	if err != nil {
		return x, err
	}
	b, err := y.Type.Under()
	if err != nil {
		return x, err
	}
	size, err := a.Elem.Size()
	if err != nil {
		return x, classed(err)
	}
	other, err := b.Elem.Size()
	if err != nil {
		return x, classed(err)
	}
	if size != other || size == 0 {
		return x, errorAt(-1, "the difference of pointers to %s and to %s", TypeName(a.Elem), TypeName(b.Elem))
	}
	diff := int64(x.bits - y.bits)
	if diff%int64(size) != 0 {
		ev.note(fmt.Sprintf("the pointers are %d bytes apart, which is no multiple of %d", diff, size))
	}
	return ev.env.Computed(Long, uint64(diff/int64(size))), nil
}
