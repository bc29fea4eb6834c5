package symfile

import (
	"nestdbg/internal/btf"
	"nestdbg/internal/mem"
)

// pointerSize is the size of a pointer in bytes; every architecture here has 64 bits.
const pointerSize = 8

// describer writes the DWARF of one unit: its header, its types, and what has
// these types.
type describer struct {
	types
	notes  *notes
	places *places
	info   *buffer
	str    *buffer // its first byte is 0, so that offset 0 can mean "no name"
	loc    *buffer
	index  *gdbIndex
	code   mem.VirtReader // may be nil

	entries []codeEntry // of the functions that were described, if somebody wants to know

	// fixups are the places in info that hold a type id for now. References are
	// section offsets, since they may lead from a module to the kernel's types.
	fixups []int
}

// begin writes the header of a compilation unit and returns its offset.
func (d *describer) begin(name string) int {
	start := d.info.len()
	d.index.begin(start)
	d.info.u32(0) // length, set by end
	d.info.u16(dwarfVersion)
	d.info.u32(0) // all units share one abbreviation table
	d.info.u8(pointerSize)
	if name == "" {
		name = "BTF" // gdb wants one
	}
	d.entry(shapeUnit, 0, d.intern(name))
	d.info.u8(languageC99)
	d.info.u64(0) // addresses in location lists are absolute
	return start
}

// end completes the unit that starts at an offset.
func (d *describer) end(start int) {
	d.info.u8(0)
	d.info.putU32(start, uint32(d.info.len()-start-4))
	d.index.end(d.info.len())
	for _, pos := range d.fixups {
		s, i := d.at(d.info.u32At(pos))
		d.info.putU32(pos, s.die[i])
	}
	d.fixups = d.fixups[:0]
}

// open starts an entry whose name is a string of BTF.
func (d *describer) open(s shape, typ, name uint32) {
	str, _ := d.name(name)
	d.entry(s, typ, str)
}

// entry starts an entry; str is its name in .debug_str or 0. A typ that has no
// description makes it an entry without a type, which is C's void.
func (d *describer) entry(s shape, typ, str uint32) {
	to, i := d.target(typ)
	hasType := i >= 0 && to.isDescribed(i)
	d.info.u8(s.code(hasType, str != 0))
	if hasType {
		d.fixups = append(d.fixups, d.info.len())
		d.info.u32(to.firstID + uint32(i))
	}
	if str != 0 {
		d.info.u32(str)
	}
	d.index.add(s, str)
}

// strings returns the section in which a string offset lies, and where.
func (t *types) strings(offset uint32) (*table, uint32) {
	if t.base != nil && offset < t.own.firstName {
		return t.base, offset - t.base.firstName
	}
	return t.own, offset - t.own.firstName
}

// name turns a string offset of BTF into one of .debug_str; ok is false for no name.
func (d *describer) name(offset uint32) (str uint32, ok bool) {
	t, at := d.strings(offset)
	if uint64(at) >= uint64(len(t.strings)) || t.strings[at] == 0 {
		return 0, false
	}
	if t.interned == nil {
		return t.nameOffset + at, true
	}
	str, ok = t.interned[at]
	if !ok {
		str = d.intern(string(d.own.Text(offset)))
		t.interned[at] = str
	}
	return str, true
}

// intern appends a name to .debug_str and returns where it is; 0 for "".
func (d *describer) intern(name string) uint32 {
	if name == "" {
		return 0
	}
	at := d.str.len()
	d.str.cstring(cleanName(name))
	return uint32(at)
}

// copyStrings appends the strings of BTF to .debug_str, made printable.
func (d *describer) copyStrings(b []byte) {
	at := d.str.len()
	d.str.bytes(b...)
	for i, c := range d.str.b[at:] {
		if c != 0 {
			d.str.b[at+i] = printable(c)
		}
	}
	d.str.u8(0)
}

// describeTypes describes all types of a table, except those that nothing needs.
func (d *describer) describeTypes(s *table) {
	for i := range s.Len() {
		if s.isDescribed(i) {
			s.die[i] = uint32(d.info.len())
			d.describe(s, i)
		}
	}
}

// isDescribed reports whether the type at an index gets an entry of its own.
func (s *table) isDescribed(i int) bool {
	st := s.state[i]
	if st&unusable != 0 || s.isPartial && st&(named|needed) == 0 {
		return false
	}
	switch s.KindAt(i) {
	case btf.Func, btf.Var, btf.Datasec, btf.DeclTag, btf.TypeTag:
		return false
	case btf.FuncProto:
		return st&referenced != 0 // a function's own is part of the function
	}
	return true
}

// modifier is the shape of a type that consists of a reference and perhaps a name.
var modifier = [btf.KindCount]shape{
	btf.Ptr:      shapePointer,
	btf.Typedef:  shapeTypedef,
	btf.Volatile: shapeVolatile,
	btf.Const:    shapeConst,
	btf.Restrict: shapeRestrict,
}

// describe writes the entry of one type.
func (d *describer) describe(s *table, i int) {
	r, isCut := s.record(i), s.state[i]&cut != 0
	switch r.Kind {
	case btf.Int, btf.Float:
		d.open(shapeBase, 0, r.Name)
		d.info.bytes(uint8(r.Ref), r.encoding())
	case btf.Ptr, btf.Typedef, btf.Volatile, btf.Const, btf.Restrict:
		if isCut {
			r.Ref = 0
		}
		d.open(modifier[r.Kind], r.Ref, r.Name)
	case btf.Array:
		d.array(&r, isCut)
	case btf.Fwd:
		if r.Flag {
			d.open(shapeUnionDeclaration, 0, r.Name)
		} else {
			d.open(shapeStructDeclaration, 0, r.Name)
		}
	case btf.Struct, btf.Union:
		d.composite(s, i, &r)
	case btf.Enum, btf.Enum64:
		d.enum(s, &r)
	case btf.FuncProto:
		r.prune(s.state[i])
		d.open(shapePrototype, r.Ref, 0)
		d.parameters(&r, nil, nil)
	}
}

// encoding is the DW_ATE of a number. BTF as pahole writes it calls a char an
// integer of one byte, but to gdb and to C it is a character.
func (r *record) encoding() uint8 {
	if r.Kind == btf.Float {
		return encFloat
	}
	const signed, boolean = 1, 4 // BTF_INT_SIGNED, BTF_INT_BOOL
	bits := r.U32(0) >> 24 & 0xf
	switch {
	case bits&boolean != 0:
		return encBoolean
	case r.Ref == 1 && bits&signed != 0:
		return encSignedChar
	case r.Ref == 1:
		return encUnsignedChar
	case bits&signed != 0:
		return encSigned
	}
	return encUnsigned
}

// array describes struct btf_array: type, index_type, nelems. No elements mean a
// flexible array: BTF cannot tell it from one of length zero, and that is rarer (in
// Linux 6.1 one structure of 200 has one).
func (d *describer) array(r *record, isCut bool) {
	typ, count := r.U32(0), r.U32(8)
	if isCut {
		typ = 0
	}
	d.arrayOf(typ, count)
}

// arrayOf describes an array of so many elements, 0 if that is not known.
func (d *describer) arrayOf(typ, count uint32) {
	d.entry(shapeArray, typ, 0)
	if count == 0 {
		d.open(shapeFlexible, 0, 0)
	} else {
		d.open(shapeCount, 0, 0)
		d.info.uleb(uint64(count))
	}
	d.info.u8(0)
}

// composite describes a structure or union, or only declares it.
func (d *describer) composite(s *table, i int, r *record) {
	whole, declaration := shapeStruct, shapeStructDeclaration
	if r.Kind == btf.Union {
		whole, declaration = shapeUnion, shapeUnionDeclaration
	}
	if s.isPartial && s.state[i]&needed == 0 {
		d.open(declaration, 0, r.Name)
		return
	}
	d.open(whole, 0, r.Name)
	d.info.uleb(uint64(r.Ref))
	if s.state[i]&cut == 0 {
		for k := range r.Count {
			d.member(r, k)
		}
	}
	d.info.u8(0)
}

// member describes one member, if it lies within the composite.
func (d *describer) member(r *record, k int) {
	m := d.own.Member(&r.Type, k)
	typ := uint32(m.Type)
	width := uint64(m.BitSize)
	if width == 0 {
		width = 8 * d.sizeByID(typ)
	}
	inType := m.BitSize == 0 || width <= 8*d.sizeByID(typ)
	if !inType || uint64(m.BitOffset)+width > 8*uint64(r.Ref) {
		d.notes.add("member %q of a structure of %d bytes has %d bits at bit %d: left out",
			cleanName(string(d.own.Text(m.Name))), r.Ref, width, m.BitOffset)
		return
	}
	if m.BitSize == 0 && m.BitOffset%8 == 0 {
		d.open(shapeMember, typ, m.Name)
		d.info.uleb(uint64(m.BitOffset / 8))
		return
	}
	d.open(shapeBitField, typ, m.Name)
	d.info.uleb(width)
	d.info.uleb(uint64(m.BitOffset))
}

// enum describes an enumeration. Before pahole 1.24 BTF did not say whether it
// is signed; such BTF has signed values, without a flag on any of them.
func (d *describer) enum(s *table, r *record) {
	d.open(shapeEnum, 0, r.Name)
	d.info.u8(uint8(r.Ref))
	isSigned := s.IsSigned(&r.Type)
	for k := range r.Count {
		var name uint32
		var value int64
		if r.Kind == btf.Enum64 { // struct btf_enum64: name, low half, high half
			name, value = r.U32(12*k), int64(uint64(r.U32(12*k+8))<<32|uint64(r.U32(12*k+4)))
		} else { // struct btf_enum: name, value
			name, value = r.U32(8*k), int64(r.U32(8*k+4))
			if isSigned {
				value = int64(int32(value))
			}
		}
		if isSigned && value < 0 {
			d.open(shapeNegative, 0, name)
			d.info.sleb(value)
		} else {
			d.open(shapeEnumerator, 0, name)
			d.info.uleb(uint64(value))
		}
	}
	d.info.u8(0)
}

// prune makes a prototype that is cut one without parameters and result.
func (r *record) prune(s state) {
	if s&cut != 0 {
		r.Ref, r.Count = 0, 0
	}
}

// parameters describes those of a prototype and ends its list of children. Of the
// first ones list writes a location list, one for each register.
func (d *describer) parameters(r *record, registers []uint8, list func(reg uint8) uint32) {
	for k := range r.Count {
		name, typ := r.U32(8*k), r.U32(8*k+4)
		switch {
		case k == r.Count-1 && name == 0 && typ == 0: // "..."
			d.open(shapeVarargs, 0, 0)
		case k < len(registers):
			d.open(shapeArgument, typ, name)
			d.info.u32(list(registers[k]))
		default:
			d.open(shapeParameter, typ, name)
		}
	}
	d.info.u8(0)
}
