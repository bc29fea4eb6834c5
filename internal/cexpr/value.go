package cexpr

import (
	"encoding/binary"
	"fmt"

	"nestdbg/internal/mem"
)

// Value is the value of an expression: an object in memory, whose bytes are read
// when they are needed, or a result that was computed.
type Value struct {
	// Type is nil for a symbol whose type is not known: it has an address and nothing
	// else.
	Type *Type

	// InMemory says that the value is the object at Addr, of a bit field the object
	// that it is counted from.
	InMemory bool
	Addr     uint64

	// BitSize is not 0 for a bit field: so many bits, from bit BitOffset of the bytes
	// at Addr on, little-endian.
	BitOffset, BitSize uint64

	// PerCPU says that Addr is not an address yet: each CPU has a copy, and per_cpu
	// chooses one.
	PerCPU bool

	// Symbol is the name of the variable that the value is, for messages.
	Symbol string

	bits uint64 // of a computed value: integers and pointers only
	env  *Env
}

// Computed is a value that is in no memory: an integer, enumerator or pointer.
func (e *Env) Computed(t *Type, bits uint64) Value { return Value{Type: t, bits: bits, env: e} }

// Object is the value that stands in memory.
func (e *Env) Object(t *Type, addr uint64) Value {
	return Value{Type: t, InMemory: true, Addr: addr, env: e}
}

// maxBytes bounds what one call of Bytes reads.
const maxBytes = 16 << 20

// Bytes are the first n bytes of an object in memory, or of the computed value.
// What was read before a fault comes with the error.
func (v Value) Bytes(n uint64) ([]byte, error) {
	if n > maxBytes {
		return nil, fmt.Errorf("%d bytes at once, at most %d: %w", n, maxBytes, ErrCorrupt)
	}
	b := make([]byte, n)
	if !v.InMemory {
		var w [8]byte
		binary.LittleEndian.PutUint64(w[:], v.bits)
		copy(b, w[:])
		return b, nil
	}
	switch {
	case v.PerCPU:
		return nil, v.perCPUError()
	case v.env == nil || v.env.Memory == nil:
		return nil, &Error{Pos: -1, Msg: "no memory is known here"}
	}
	got, err := v.env.Memory.ReadVirt(b, mem.Virt(v.Addr))
	return b[:got], err
}

func (v Value) perCPUError() *Error {
	name := v.Symbol
	if name == "" {
		name = "this"
	}
	return errorAt(-1, "%s is per-CPU data, of which each CPU has a copy; write per_cpu(%s, CPU)", name, name)
}

// scalar is the kind, size and sign of what a value is as a number.
func scalar(t *Type) (size uint64, signed bool, err error) {
	if t == nil {
		return 0, false, &Error{Pos: -1, Msg: "its type is not known"}
	}
	d, err := t.Under()
	if err != nil {
		return 0, false, err
	}
	switch d.Kind {
	case KindInt, KindEnum:
		signed = d.Signed
	case KindBool, KindPointer:
	case KindFloat:
		return 0, false, errorAt(-1, "%s: floating-point numbers are not computed with here", TypeName(t))
	default:
		return 0, false, errorAt(-1, "%s is not a number", article(t))
	}
	if d.Size > 8 {
		return 0, false, errorAt(-1, "%s has %d bytes, more than what is computed with here", TypeName(t), d.Size)
	}
	if d.Size == 0 {
		return 0, false, fmt.Errorf("%s has no size: %w", TypeName(t), ErrCorrupt)
	}
	return d.Size, signed, nil
}

// article is a type in a sentence.
func article(t *Type) string {
	name := TypeName(t)
	if name == "" {
		return "this type"
	}
	return "a value of type " + name
}

// Bits is an integer, enumeration, pointer or boolean as 64 bits, extended by its
// sign.
func (v Value) Bits() (uint64, error) {
	size, signed, err := scalar(v.Type)
	if err != nil {
		return 0, err
	}
	width := 8 * size
	raw := v.bits
	if v.InMemory {
		need := size
		if v.BitSize != 0 {
			if v.BitOffset > 63 || v.BitSize > width || v.BitOffset+v.BitSize > 128 {
				return 0, fmt.Errorf("bit field of %d bits from bit %d on: %w", v.BitSize, v.BitOffset, ErrCorrupt)
			}
			width = v.BitSize
			need = (v.BitOffset + v.BitSize + 7) / 8
		}
		b, err := v.Bytes(need)
		if err != nil {
			return 0, err
		}
		raw = field(b, v.BitOffset)
	}
	return extend(raw, width, signed), nil
}

// field is the bits from one on, at most 64 of them.
func field(b []byte, from uint64) uint64 {
	var w [24]byte
	copy(w[:16], b)
	low := binary.LittleEndian.Uint64(w[from/8:])
	shift := from % 8
	if shift == 0 {
		return low
	}
	return low>>shift | uint64(w[from/8+8])<<(64-shift)
}

// extend cuts to a width in bits and extends by sign or zeros.
func extend(v, width uint64, signed bool) uint64 {
	if width >= 64 {
		return v
	}
	shift := 64 - width
	if signed {
		return uint64(int64(v<<shift) >> shift)
	}
	return v << shift >> shift
}

// Member is member i of a structure or union.
func (v Value) Member(i int) (Value, error) {
	d, err := v.Type.Under()
	if err != nil {
		return Value{}, err
	}
	if i < 0 || i >= len(d.Members) {
		return Value{}, fmt.Errorf("member %d of %d: %w", i, len(d.Members), ErrNotFound)
	}
	return v.member(&d.Members[i]), nil
}

func (v Value) member(m *Member) Value {
	out := v
	out.Type, out.BitSize = m.Type, m.BitSize
	out.Addr += m.BitOffset / 8
	out.BitOffset = m.BitOffset % 8
	if m.BitSize == 0 {
		out.BitOffset = 0
	}
	return out
}

// Element is element i of an array; i is not checked, as in C.
func (v Value) Element(i uint64) (Value, error) {
	d, err := v.Type.Under()
	if err != nil {
		return Value{}, err
	}
	if d.Kind != KindArray {
		return Value{}, errorAt(-1, "%s is not an array", article(v.Type))
	}
	size, err := d.Elem.Size()
	if err != nil {
		return Value{}, err
	}
	out := v
	out.Type = d.Elem
	out.Addr += i * size
	return out, nil
}

// Deref is what a pointer points to.
func (v Value) Deref() (Value, error) {
	d, err := v.Type.Under()
	if err != nil {
		return Value{}, err
	}
	if d.Kind != KindPointer {
		return Value{}, errorAt(-1, "%s is not a pointer", article(v.Type))
	}
	a, err := v.Bits()
	if err != nil {
		return Value{}, err
	}
	return Value{Type: d.Elem, InMemory: true, Addr: a, env: v.env}, nil
}

// Known refuses a symbol of which only the address is known, and says what to write
// instead; and per-CPU data without a CPU.
func (v Value) Known() error {
	if v.InMemory && v.PerCPU {
		return v.perCPUError()
	}
	return typed(v)
}
