// Package btf reads BTF, the C types that a Linux kernel carries of itself,
// record by record and in place: nothing is decoded until somebody asks for it.
//
// It is used instead of github.com/cilium/ebpf/btf for what that library is not
// made for. It decodes a type together with everything it refers to, by recursion:
// a chain of 400000 pointers, 5 MB of hostile BTF, ends the process with a stack
// overflow, which no recover catches. It takes 13 MB and 33 ms for a kernel of which
// two dozen structures are wanted; this package takes an array of offsets and 2 ms.
// And who writes the types in another format wants the records in their order, with
// their numbers. The tests compare the two readers.
//
// Layout: Linux 6.1 include/uapi/linux/btf.h; Documentation/bpf/btf.rst.
package btf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
)

// The classes of error.
var (
	ErrCorrupt     = errors.New("corrupt BTF")
	ErrUnsupported = errors.New("BTF not supported")
)

const (
	magic      = 0xeb9f
	version    = 1
	headerSize = 24 // struct btf_header of Linux 4.18; later ones may be longer
	typeSize   = 12 // struct btf_type

	// MaxSize bounds BTF, bytes; ours, sixty times what Linux 6.1 has.
	MaxSize = 1 << 28

	// maxName bounds a name, bytes; ours. A symbol of Linux 6.1 has at most 512.
	// What is longer counts as no name: else millions of records that share one
	// endless name would take hours.
	maxName = 1024
)

// ID is the number of a type. 0 is void; those of a module continue the kernel's.
type ID uint32

// Kind is a BTF_KIND.
type Kind uint8

// The kinds up to Linux 6.12. A record of another kind has an unknown length.
const (
	Void Kind = iota // ID 0, has no record
	Int
	Ptr
	Array
	Struct
	Union
	Enum
	Fwd
	Typedef
	Volatile
	Const
	Restrict
	Func
	FuncProto
	Var
	Datasec
	Float
	DeclTag
	TypeTag
	Enum64
	KindCount
)

// extra is what follows a struct btf_type: fixed bytes, and bytes per element.
var extra = [KindCount]struct{ fixed, each int }{
	Int:       {4, 0},
	Array:     {12, 0}, // struct btf_array
	Struct:    {0, 12}, // struct btf_member
	Union:     {0, 12},
	Enum:      {0, 8}, // struct btf_enum
	FuncProto: {0, 8}, // struct btf_param
	Var:       {4, 0},
	Datasec:   {0, 12}, // struct btf_var_secinfo
	DeclTag:   {4, 0},
	Enum64:    {0, 12}, // struct btf_enum64
}

// Type is one record. Ref is the type it refers to, or its size in bytes: one
// field of struct btf_type, as the kind wants it.
type Type struct {
	Kind  Kind
	Flag  bool   // kind_flag
	Count int    // vlen: elements in Data
	Name  uint32 // see Spec.Text
	Ref   uint32
	Data  []byte // what follows struct btf_type
}

// U32 is the word at offset i of Data.
func (t *Type) U32(i int) uint32 { return binary.LittleEndian.Uint32(t.Data[i:]) }

// IsComposite reports whether the type has members.
func (t *Type) IsComposite() bool { return t.Kind == Struct || t.Kind == Union }

// IsModifier reports whether the type is another one with a name or a qualifier.
func (t *Type) IsModifier() bool {
	switch t.Kind {
	case Typedef, Volatile, Const, Restrict, TypeTag:
		return true
	}
	return false
}

// Spec is the types of one BTF section: the kernel's, or those with which a
// module's continues them. It is safe for concurrent use.
type Spec struct {
	base      *Spec
	firstID   ID
	firstName uint32 // the string offset at which this section's strings begin
	types     []byte
	strings   []byte
	offset    []uint32 // of the records in types
	hasSigns  bool     // some enumeration is marked as signed, here or in base

	index struct {
		once sync.Once
		nameIndex
	}
}

// Parse finds the records of raw BTF, which is not copied: if it changes later, as
// the memory of a guest may, types are wrong, and nothing worse happens. base is what
// it continues, or nil. An unknown kind has an unknown length, so it ends the
// types early: then both what was read and an error are returned.
func Parse(raw []byte, base *Spec) (*Spec, error) {
	s := &Spec{base: base, firstID: 1}
	if base != nil {
		s.firstID = base.firstID + ID(len(base.offset))
		s.firstName = base.firstName + uint32(len(base.strings))
		s.hasSigns = base.hasSigns
	}
	if err := s.header(raw); err != nil {
		return nil, err
	}
	return s, s.scan()
}

// header finds types and strings by struct btf_header: u16 magic, u8 version, u8
// flags, u32 hdr_len, type_off, type_len, str_off, str_len; offsets count from
// the end of the header.
func (s *Spec) header(raw []byte) error {
	le := binary.LittleEndian
	if len(raw) < headerSize || len(raw) > MaxSize {
		return fmt.Errorf("%w: %d bytes", ErrCorrupt, len(raw))
	}
	if m, v := le.Uint16(raw), raw[2]; m != magic || v != version {
		return fmt.Errorf("%w: magic %#x version %d", ErrUnsupported, m, v)
	}
	size := uint64(le.Uint32(raw[4:]))
	part := func(what string, at int) ([]byte, error) {
		first, count := size+uint64(le.Uint32(raw[at:])), uint64(le.Uint32(raw[at+4:]))
		if size < headerSize || first+count > uint64(len(raw)) {
			return nil, fmt.Errorf("%w: %s at %#x of %#x bytes pass the end at %#x", ErrCorrupt, what, first, count, len(raw))
		}
		return raw[first : first+count], nil
	}
	var err error
	if s.types, err = part("types", 8); err != nil {
		return err
	}
	s.strings, err = part("strings", 16)
	return err
}

// scan fills offset.
func (s *Spec) scan() error {
	s.offset = make([]uint32, 0, len(s.types)/28) // 6.1 has 29 bytes per type
	for at := 0; at < len(s.types); {
		n, err := size(s.types[at:])
		if err != nil {
			return fmt.Errorf("type %d at %#x: %w", s.firstID+ID(len(s.offset)), at, err)
		}
		s.offset = append(s.offset, uint32(at))
		info := binary.LittleEndian.Uint32(s.types[at+4:])
		k := Kind(info >> 24 & 0x1f)
		s.hasSigns = s.hasSigns || k == Enum && info>>31 != 0 || k == Enum64
		at += n
	}
	return nil
}

// size is the size of the record at the start of b.
func size(b []byte) (int, error) {
	if len(b) < typeSize {
		return 0, fmt.Errorf("%w: %d bytes of a record", ErrCorrupt, len(b))
	}
	info := binary.LittleEndian.Uint32(b[4:])
	kind := Kind(info >> 24 & 0x1f)
	if kind == Void || kind >= KindCount {
		return 0, fmt.Errorf("%w: kind %d", ErrUnsupported, kind)
	}
	n := typeSize + extra[kind].fixed + int(info&0xffff)*extra[kind].each
	if n > len(b) {
		return 0, fmt.Errorf("%w: record of %d bytes, %d are left", ErrCorrupt, n, len(b))
	}
	return n, nil
}

// First is the number of the first of the section's own types.
func (s *Spec) First() ID { return s.firstID }

// Len is the number of the section's own types.
func (s *Spec) Len() int { return len(s.offset) }

// Base is what this section continues, or nil.
func (s *Spec) Base() *Spec { return s.base }

// At returns the own type at an index below Len, whose number is First() + index. A
// record that is no longer what Parse saw can be void.
func (s *Spec) At(index int) Type {
	start, end := s.offset[index], uint32(len(s.types))
	if index+1 < len(s.offset) {
		end = s.offset[index+1]
	}
	le := binary.LittleEndian
	b := s.types[start:end:end]
	info := le.Uint32(b[4:]) // read once
	t := Type{Kind: kindOf(info), Flag: info>>31 != 0, Count: int(info & 0xffff),
		Name: le.Uint32(b), Ref: le.Uint32(b[8:])}
	n := typeSize + extra[t.Kind].fixed + t.Count*extra[t.Kind].each
	if n > len(b) {
		return Type{}
	}
	t.Data = b[typeSize:n]
	return t
}

// kindOf is the kind in the word "info" of a record; Void for one that is not known.
func kindOf(info uint32) Kind {
	if k := Kind(info >> 24 & 0x1f); k < KindCount {
		return k
	}
	return Void
}

// Type returns a type by its number; ok is false if there is none. Void has no
// record, but is a type.
func (s *Spec) Type(id ID) (t Type, ok bool) {
	for s.base != nil && id < s.firstID {
		s = s.base
	}
	switch {
	case id == 0:
		return Type{}, true
	case id < s.firstID || id-s.firstID >= ID(len(s.offset)):
		return Type{}, false
	}
	return s.At(int(id - s.firstID)), true
}

// Strings are the section's own names, each with a NUL behind it, and the offset
// of the first one: those of a module continue the kernel's.
func (s *Spec) Strings() (b []byte, first uint32) { return s.strings, s.firstName }

// Text returns a name by its offset, unchanged; nil if there is none.
func (s *Spec) Text(offset uint32) []byte {
	for s.base != nil && offset < s.firstName {
		s = s.base
	}
	at := offset - s.firstName
	if uint64(at) >= uint64(len(s.strings)) {
		return nil
	}
	b := s.strings[at:]
	end := bytes.IndexByte(b[:min(len(b), maxName)], 0)
	if end < 0 {
		return nil
	}
	return b[:end:end]
}
