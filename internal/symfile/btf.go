package symfile

import (
	"encoding/binary"
	"fmt"
)

// BTF is read here record by record instead of through cilium/ebpf/btf, for three
// reasons. That library decodes a type together with everything it refers to, by
// recursion: a chain of 400000 pointers, 5 MB of hostile BTF, ends the process
// with a stack overflow. DWARF wants the same records in the same order with the
// same references, so decoding into objects only to look up their numbers again
// costs several times the time. And the string section of BTF can serve as
// .debug_str as it is.
//
// Layout: Linux 6.1 include/uapi/linux/btf.h; Documentation/bpf/btf.rst.
const (
	btfMagic      = 0xeb9f
	btfVersion    = 1
	btfHeaderSize = 24 // struct btf_header of Linux 4.18; later ones may be longer
	btfTypeSize   = 12 // struct btf_type

	maxBTF = 1 << 28 // bytes; ours, sixty times what Linux 6.1 has
)

// kind is a BTF_KIND.
type kind uint8

const (
	kindVoid kind = iota // id 0, has no record
	kindInt
	kindPtr
	kindArray
	kindStruct
	kindUnion
	kindEnum
	kindFwd
	kindTypedef
	kindVolatile
	kindConst
	kindRestrict
	kindFunc
	kindFuncProto
	kindVar
	kindDatasec
	kindFloat
	kindDeclTag
	kindTypeTag
	kindEnum64
	kindCount
)

// extra is what follows a struct btf_type: fixed bytes, and bytes per element.
var extra = [kindCount]struct{ fixed, each int }{
	kindInt:       {4, 0},
	kindArray:     {12, 0}, // struct btf_array
	kindStruct:    {0, 12}, // struct btf_member
	kindUnion:     {0, 12},
	kindEnum:      {0, 8}, // struct btf_enum
	kindFuncProto: {0, 8}, // struct btf_param
	kindVar:       {4, 0},
	kindDatasec:   {0, 12}, // struct btf_var_secinfo
	kindDeclTag:   {4, 0},
	kindEnum64:    {0, 12}, // struct btf_enum64
}

// record is one type. ref is the type it refers to, or its size in bytes: one
// field of struct btf_type, as the kind wants it.
type record struct {
	kind  kind
	flag  bool // kind_flag
	count int  // vlen: elements in data
	name  uint32
	ref   uint32
	data  []byte // what follows struct btf_type
}

func (r *record) u32(i int) uint32 { return binary.LittleEndian.Uint32(r.data[i:]) }

// isComposite reports whether the type has members.
func (r *record) isComposite() bool { return r.kind == kindStruct || r.kind == kindUnion }

// member is one member of a structure or union; offsets and sizes in bits. A
// bitSize of 0 is an ordinary member.
type member struct {
	name, typ         uint32
	bitOffset, bitLen uint32
}

// member returns member i. With kind_flag its width is in the upper 8 bits of
// the offset; without, a bit field has an integer type with a width of its own,
// which the caller must look at (BTF of Linux before 5.0 and of old compilers).
func (r *record) member(i int) member {
	m := member{name: r.u32(12 * i), typ: r.u32(12*i + 4), bitOffset: r.u32(12*i + 8)}
	if r.flag {
		m.bitLen = m.bitOffset >> 24
		m.bitOffset &= 1<<24 - 1
	}
	return m
}

// table is the types of one BTF section: the kernel's, or those with which a
// module's continues them. Its slices by type are indexed by id - firstID.
type table struct {
	firstID   uint32
	firstName uint32 // the string offset at which this section's strings begin
	types     []byte
	strings   []byte
	offset    []uint32 // of the record in types
	state     []state
	size      []uint64   // in bytes, of the type by value; set by check
	depth     [2][]uint8 // how deep types are nested in it, by graph; set by check
	die       []uint32   // where in .debug_info the type is described; 0 = nowhere
	hasSigns  bool       // some enumeration is marked as signed
	isPartial bool       // only types marked named or needed are described

	// The strings are in .debug_str from nameOffset on, or, if interned is not
	// nil, one by one, by their offset in strings.
	nameOffset uint32
	interned   map[uint32]uint32
}

// state is what was found out about a type, as bits.
type state uint8

const (
	visiting   state = 1 << iota // on the path of the search in check
	visited                      //
	cut                          // its reference or members are dropped: they are a cycle
	unusable                     // must not be described at all
	named                        // in a partial table: something refers to it
	needed                       // in a partial table: something contains it
	referenced                   // a prototype that is the type of more than functions
)

// parseBTF finds the records of raw BTF. base is what it continues, or nil. The
// table shares the bytes of data. An unknown kind has an unknown length, so it
// ends the table early: then both the table and an error are returned.
func parseBTF(data []byte, base *table) (*table, error) {
	s := &table{firstID: 1}
	if base != nil {
		s.firstID = base.firstID + uint32(len(base.offset))
		s.firstName = base.firstName + uint32(len(base.strings))
	}
	if err := s.header(data); err != nil {
		return nil, err
	}
	err := s.scan()
	s.hasSigns = s.hasSigns || base != nil && base.hasSigns
	s.state = make([]state, len(s.offset))
	s.size = make([]uint64, len(s.offset))
	s.die = make([]uint32, len(s.offset))
	for g := range s.depth {
		s.depth[g] = make([]uint8, len(s.offset))
	}
	return s, err
}

// header finds types and strings by struct btf_header: u16 magic, u8 version, u8
// flags, u32 hdr_len, type_off, type_len, str_off, str_len; offsets count from
// the end of the header.
func (s *table) header(data []byte) error {
	le := binary.LittleEndian
	if len(data) < btfHeaderSize || len(data) > maxBTF {
		return fmt.Errorf("BTF of %d bytes: %w", len(data), ErrCorrupt)
	}
	if magic, version := le.Uint16(data), data[2]; magic != btfMagic || version != btfVersion {
		return fmt.Errorf("BTF with magic %#x version %d: %w", magic, version, ErrUnsupported)
	}
	size := uint64(le.Uint32(data[4:]))
	part := func(what string, at int) ([]byte, error) {
		first, count := size+uint64(le.Uint32(data[at:])), uint64(le.Uint32(data[at+4:]))
		if size < btfHeaderSize || first+count > uint64(len(data)) {
			return nil, fmt.Errorf("%s of BTF at %#x of %#x bytes pass its end at %#x: %w",
				what, first, count, len(data), ErrCorrupt)
		}
		return data[first : first+count], nil
	}
	var err error
	if s.types, err = part("types", 8); err != nil {
		return err
	}
	s.strings, err = part("strings", 16)
	return err
}

// scan fills offset.
func (s *table) scan() error {
	s.offset = make([]uint32, 0, len(s.types)/32) // 6.1 has 29 bytes per type
	for at := 0; at < len(s.types); {
		r, n, err := decode(s.types[at:])
		if err != nil {
			return fmt.Errorf("type %d at %#x: %w", s.firstID+uint32(len(s.offset)), at, err)
		}
		s.offset = append(s.offset, uint32(at))
		s.hasSigns = s.hasSigns || r.flag && r.kind == kindEnum || r.kind == kindEnum64
		at += n
	}
	return nil
}

// decode reads the record at the start of b and says how long it is.
func decode(b []byte) (record, int, error) {
	le := binary.LittleEndian
	if len(b) < btfTypeSize {
		return record{}, 0, fmt.Errorf("%d bytes of a record: %w", len(b), ErrCorrupt)
	}
	info := le.Uint32(b[4:])
	r := record{kind: kind(info >> 24 & 0x1f), flag: info>>31 != 0, count: int(info & 0xffff),
		name: le.Uint32(b), ref: le.Uint32(b[8:])}
	if r.kind == kindVoid || r.kind >= kindCount {
		return record{}, 0, fmt.Errorf("BTF kind %d: %w", r.kind, ErrUnsupported)
	}
	n := btfTypeSize + extra[r.kind].fixed + r.count*extra[r.kind].each
	if n > len(b) {
		return record{}, 0, fmt.Errorf("record of %d bytes, %d are left: %w", n, len(b), ErrCorrupt)
	}
	r.data = b[btfTypeSize:n]
	return r, n, nil
}

// record returns the record at an index that scan has accepted.
func (s *table) record(index int) record {
	r, _, err := decode(s.types[s.offset[index]:])
	if err != nil {
		panic(err) // scan has read it
	}
	return r
}
