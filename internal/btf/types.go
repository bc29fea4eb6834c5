package btf

import (
	"fmt"
	"math/bits"
)

// maxDepth bounds how many types are looked through to the one that has a size or
// members; ours. Linux itself allows 32 (Linux 6.1 kernel/bpf/btf.c:MAX_RESOLVE_DEPTH).
const maxDepth = 100

// pointerSize is the size of a pointer in bytes; every architecture here has 64 bits.
const pointerSize = 8

// Underlying returns the type behind names and qualifiers.
func (s *Spec) Underlying(id ID) (ID, Type, error) {
	for range maxDepth {
		t, ok := s.Type(id)
		if !ok {
			return 0, Type{}, fmt.Errorf("%w: no type %d", ErrCorrupt, id)
		}
		if !t.IsModifier() {
			return id, t, nil
		}
		id = ID(t.Ref)
	}
	return 0, Type{}, fmt.Errorf("%w: more than %d names for one type", ErrCorrupt, maxDepth)
}

// Size is the size of a value of a type, in bytes. Void has 0; a function and what
// is only declared have none, which is ErrUnsupported.
func (s *Spec) Size(id ID) (uint64, error) {
	count := uint64(1)
	for range maxDepth {
		_, t, err := s.Underlying(id)
		if err != nil {
			return 0, err
		}
		n := uint64(t.Ref)
		switch t.Kind {
		case Array:
			var hi uint64
			if hi, count = bits.Mul64(count, uint64(t.U32(8))); hi != 0 {
				return 0, fmt.Errorf("%w: an array larger than memory", ErrCorrupt)
			}
			id = ID(t.U32(0))
			continue
		case Void:
			n = 0
		case Ptr:
			n = pointerSize
		case Int, Enum, Enum64, Float, Struct, Union:
		default:
			return 0, fmt.Errorf("%w: kind %d has no size", ErrUnsupported, t.Kind)
		}
		hi, size := bits.Mul64(count, n)
		if hi != 0 {
			return 0, fmt.Errorf("%w: an array larger than memory", ErrCorrupt)
		}
		return size, nil
	}
	return 0, fmt.Errorf("%w: an array of more than %d dimensions", ErrCorrupt, maxDepth)
}

// Member is one member of a structure or union; offset and size in bits. A BitSize
// of 0 is an ordinary member.
type Member struct {
	Name               uint32 // see Spec.Text
	Type               ID
	BitOffset, BitSize uint32
}

// MemberName is the name of member i of a structure or union, see Spec.Text.
func (t *Type) MemberName(i int) uint32 { return t.U32(12 * i) }

// Member returns member i of a structure or union. With kind_flag its width is in
// the upper 8 bits of the offset; without, a bit field has an integer type with a
// width of its own (BTF of Linux before 5.0 and of old compilers).
func (s *Spec) Member(t *Type, i int) Member {
	m := Member{Name: t.U32(12 * i), Type: ID(t.U32(12*i + 4)), BitOffset: t.U32(12*i + 8)}
	if t.Flag {
		m.BitSize = m.BitOffset >> 24
		m.BitOffset &= 1<<24 - 1
		return m
	}
	_, of, err := s.Underlying(m.Type)
	if err == nil && of.Kind == Int {
		if offset, width := of.U32(0)>>16&0xff, of.U32(0)&0xff; offset != 0 || width != 8*of.Ref {
			m.BitOffset, m.BitSize = m.BitOffset+offset, width
		}
	}
	return m
}

// IsSigned reports whether the values of an enumeration of this section are
// signed. Before pahole 1.24 BTF did not say; such BTF has signed values, without
// a flag on any enumeration.
func (s *Spec) IsSigned(enum *Type) bool { return enum.Flag || !s.hasSigns }
