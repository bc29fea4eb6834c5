package linux

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"nestdbg/internal/btf"
)

// Types are the C types of a kernel or of one of its modules, from BTF. They are
// safe for concurrent use.
type Types struct {
	of     string // whose types these are, for messages
	module string // the module's name, or ""
	spec   *btf.Spec
	base   *Types // of the kernel, for a module; else nil
	cut    error  // why the BTF could not be read to its end, or nil
}

// Field is a member of a structure, found by its path.
type Field struct {
	Offset uint32 // bytes from the start of the structure
	Size   uint32 // bytes; of a bit field, of the type it is declared with

	// BitSize is 0 for an ordinary member; else the field is that many bits, from
	// bit BitOffset of the bytes at Offset on (little-endian).
	BitOffset, BitSize uint32

	// Count and Stride describe an array: elements and bytes from one to the next.
	// Count is 0 for what is not an array, and for a flexible array.
	Count, Stride uint32

	// Type is the member's type as C writes it; for people.
	Type string
}

// Struct is a structure or union with its direct members; for people.
type Struct struct {
	Name    string
	Union   bool
	Size    uint32 // bytes
	Members []Member
}

// Member is one member of a Struct; its name is empty if it is anonymous.
type Member struct {
	Name string
	Field
}

// btfMax bounds the BTF that is read, bytes; that of a large kernel has 10 MB.
const btfMax = 64 << 20

// parseTypes reads raw BTF, which is not copied; base is the kernel's for a module's
// split BTF, else nil. BTF that ends early, as with a kind of type
// that is newer than this program, has the types up to there.
func parseTypes(of string, raw []byte, base *Types) (*Types, error) {
	t := &Types{of: of, base: base}
	var on *btf.Spec
	if base != nil {
		if base.cut != nil {
			return nil, fmt.Errorf("types of %s: those of %s, which they continue: %w", of, base.of, base.cut)
		}
		on = base.spec
	}
	if t.spec, t.cut = btf.Parse(raw, on); t.spec == nil {
		return nil, fmt.Errorf("types of %s: %w: %w", of, t.cut, ErrCorrupt)
	}
	return t, nil
}

// Offset returns where a member is and its size, both in bytes. The path is
// "member", "member.member" or "member[2].member"; members of anonymous
// structures and unions are reached as in C. ErrNotFound if there is no such
// structure or member, ErrUnsupported for a bit field (see Field).
func (t *Types) Offset(structName, path string) (offset, size uint32, err error) {
	f, err := t.Field(structName, path)
	if err == nil && f.BitSize != 0 {
		err = fmt.Errorf("%s.%s is a bit field: %w", structName, path, ErrUnsupported)
	}
	return f.Offset, f.Size, err
}

// Field finds a member like Offset, bit fields too. If several structures have
// the name, those that have the member must agree about it.
func (t *Types) Field(structName, path string) (Field, error) {
	named, err := t.named(structName)
	if err != nil {
		return Field{}, err
	}
	var f Field
	found := false
	firstErr := error(nil)
	left := searchMax
	for _, id := range named {
		got, err := t.walkPath(id, path, &left)
		switch {
		case err != nil && firstErr == nil:
			firstErr = err
		case err != nil:
		case found && got != f:
			return Field{}, fmt.Errorf("%s.%s differs between types of that name: %w", structName, path, ErrUnsupported)
		default:
			f, found = got, true
		}
	}
	if !found {
		return Field{}, fmt.Errorf("%s in types of %s: %w", structName, t.of, firstErr)
	}
	return f, nil
}

// SizeOf is the size in bytes of a structure, union or other named type.
func (t *Types) SizeOf(name string) (uint32, error) {
	named, err := t.named(name)
	if err != nil {
		return 0, err
	}
	n, err := t.spec.Size(named[0])
	if err != nil || n > uint64(^uint32(0)) {
		return 0, fmt.Errorf("size of %s: %w", name, ErrCorrupt)
	}
	return uint32(n), nil
}

// Struct describes a structure or union.
func (t *Types) Struct(name string) (Struct, error) {
	named, err := t.named(name)
	if err != nil {
		return Struct{}, err
	}
	for _, id := range named {
		_, typ, ok := t.composite(id)
		if !ok {
			continue
		}
		s := Struct{Name: name, Size: typ.Ref, Union: typ.Kind == btf.Union}
		for i := range typ.Count {
			m := t.spec.Member(&typ, i)
			f, err := t.fieldOf(m, 0)
			if err != nil {
				return Struct{}, fmt.Errorf("%s.%s: %w", name, t.spec.Text(m.Name), err)
			}
			s.Members = append(s.Members, Member{string(t.spec.Text(m.Name)), f})
		}
		return s, nil
	}
	return Struct{}, fmt.Errorf("%s is not a structure: %w", name, ErrNotFound)
}

// StructID is the number of a structure in the BTF that these types came from.
func (t *Types) StructID(name string) (btf.ID, error) {
	named, err := t.named(name)
	if err != nil {
		return 0, err
	}
	return named[0], nil
}

// sameNameMax bounds the types of one name; Linux 6.1 has at most a dozen.
const sameNameMax = 1000

// named returns the types with exactly this name; those that are only declared
// do not count. A module's BTF has what the kernel's has not.
func (t *Types) named(name string) ([]btf.ID, error) {
	switch ids := t.spec.Named(name); {
	case len(ids) > sameNameMax:
		return nil, fmt.Errorf("%d types %s in types of %s: %w", len(ids), name, t.of, ErrCorrupt)
	case len(ids) > 0:
		return ids, nil
	case t.base != nil:
		return t.base.named(name)
	case t.cut != nil:
		return nil, fmt.Errorf("type %s in types of %s, which could not all be read (%w): %w", name, t.of, t.cut, ErrNotFound)
	}
	return nil, fmt.Errorf("type %s in types of %s: %w", name, t.of, ErrNotFound)
}

// composite returns a structure or union behind typedefs and qualifiers.
func (t *Types) composite(id btf.ID) (btf.ID, btf.Type, bool) {
	id, typ, err := t.spec.Underlying(id)
	return id, typ, err == nil && typ.IsComposite()
}

// walkPath follows a path from a structure. left is how many members may still be
// looked at.
func (t *Types) walkPath(id btf.ID, path string, left *int) (Field, error) {
	var f Field
	base := uint32(0)
	for step := range strings.SplitSeq(path, ".") {
		name, index, indexed, err := cutIndex(step)
		if err != nil {
			return Field{}, err
		}
		search := memberSearch{types: t, name: name, seen: map[btf.ID]bool{}, left: left}
		m, off, ok := search.find(id, 0)
		if *left <= 0 {
			return Field{}, fmt.Errorf("member %s: more than %d members to look at: %w", step, searchMax, ErrCorrupt)
		}
		if !ok {
			return Field{}, fmt.Errorf("no member %s: %w", step, ErrNotFound)
		}
		if f, err = t.fieldOf(m, base+off); err != nil {
			return Field{}, fmt.Errorf("member %s: %w", step, err)
		}
		id = m.Type
		if indexed {
			if f, id, err = t.element(f, id, index); err != nil {
				return Field{}, fmt.Errorf("member %s: %w", step, err)
			}
		}
		base = f.Offset
	}
	return f, nil
}

// cutIndex splits "name[2]".
func cutIndex(step string) (name string, index uint32, indexed bool, err error) {
	name, rest, indexed := strings.Cut(step, "[")
	if !indexed {
		return name, 0, false, nil
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(rest, "]"), 10, 32)
	if err != nil {
		return "", 0, false, fmt.Errorf("index in %q: %w", step, ErrNotFound)
	}
	return name, uint32(n), true, nil
}

// element is one element of the array f. A flexible array has any.
func (t *Types) element(f Field, id btf.ID, index uint32) (Field, btf.ID, error) {
	_, array, err := t.spec.Underlying(id)
	if err != nil || array.Kind != btf.Array || f.Count != 0 && index >= f.Count {
		return Field{}, 0, fmt.Errorf("no element %d: %w", index, ErrNotFound)
	}
	at := uint64(f.Offset) + uint64(index)*uint64(f.Stride)
	if at > uint64(^uint32(0)) {
		return Field{}, 0, fmt.Errorf("element %d: %w", index, ErrCorrupt)
	}
	id = btf.ID(array.U32(0))
	out, err := t.describe(id)
	out.Offset = uint32(at)
	return out, id, err
}

// Bounds of a search for a member: how deep anonymous members are nested, of which
// Linux has four, and how many members are looked at in all. The largest structure of
// Linux 6.1 has 270.
const (
	anonymousMax = 64
	searchMax    = 1 << 20
)

// memberSearch finds a member by name, also in anonymous members.
type memberSearch struct {
	types *Types
	name  string
	seen  map[btf.ID]bool // not to be searched twice, as a structure that contains itself
	left  *int
}

// find returns the member and the distance in bytes of what directly holds it from the
// start of the type.
func (f *memberSearch) find(id btf.ID, depth int) (m btf.Member, off uint32, ok bool) {
	t := f.types
	id, typ, ok := t.composite(id)
	if !ok || f.seen[id] || f.name == "" || depth > anonymousMax {
		return btf.Member{}, 0, false
	}
	f.seen[id] = true
	if *f.left -= typ.Count; *f.left <= 0 {
		return btf.Member{}, 0, false
	}
	for i := range typ.Count {
		if string(t.spec.Text(typ.MemberName(i))) == f.name {
			return t.spec.Member(&typ, i), 0, true
		}
	}
	for i := range typ.Count {
		if len(t.spec.Text(typ.MemberName(i))) > 0 {
			continue
		}
		outer := t.spec.Member(&typ, i)
		if m, off, ok := f.find(outer.Type, depth+1); ok {
			return m, off + outer.BitOffset/8, true
		}
	}
	return btf.Member{}, 0, false
}

// fieldOf describes a member of something that starts at base.
func (t *Types) fieldOf(m btf.Member, base uint32) (Field, error) {
	f, err := t.describe(m.Type)
	f.Offset = base + m.BitOffset/8
	if m.BitSize != 0 {
		// The offset of a bit field is in bits and need not be a whole byte.
		f.BitOffset, f.BitSize = m.BitOffset%8, m.BitSize
	}
	return f, err
}

// describe is the size, array shape and name of a type.
func (t *Types) describe(id btf.ID) (Field, error) {
	f := Field{Type: t.typeName(id, 0)}
	_, typ, err := t.spec.Underlying(id)
	if err == nil && typ.Kind == btf.FuncProto {
		return f, nil
	}
	n, err := t.spec.Size(id)
	if err != nil {
		return f, fmt.Errorf("size of %s: %w: %w", f.Type, err, ErrCorrupt)
	}
	if n > uint64(^uint32(0)) {
		return f, fmt.Errorf("size of %s is %d: %w", f.Type, n, ErrCorrupt)
	}
	f.Size = uint32(n)
	if typ.Kind == btf.Array {
		f.Count = typ.U32(8)
		if stride, err := t.spec.Size(btf.ID(typ.U32(0))); err == nil && stride <= uint64(^uint32(0)) {
			f.Stride = uint32(stride)
		}
	}
	return f, nil
}

// typeNameDepth bounds the parts of a type's name, such as pointers to pointers.
const typeNameDepth = 16

// typeName renders a type as in a C declaration without the name.
func (t *Types) typeName(id btf.ID, depth int) string {
	typ, ok := t.spec.Type(id)
	if !ok || depth > typeNameDepth {
		return "..."
	}
	to, name := btf.ID(typ.Ref), string(t.spec.Text(typ.Name))
	switch typ.Kind {
	case btf.Void:
		return "void"
	case btf.Ptr:
		if target, ok := t.spec.Type(to); ok && target.Kind == btf.FuncProto {
			return "func *"
		}
		return t.typeName(to, depth+1) + " *"
	case btf.Array:
		return t.typeName(btf.ID(typ.U32(0)), depth+1) + fmt.Sprintf("[%d]", typ.U32(8))
	case btf.Const:
		return "const " + t.typeName(to, depth+1)
	case btf.Volatile:
		return "volatile " + t.typeName(to, depth+1)
	case btf.Restrict, btf.TypeTag:
		return t.typeName(to, depth+1)
	case btf.Struct:
		return strings.TrimSpace("struct " + name)
	case btf.Union:
		return strings.TrimSpace("union " + name)
	case btf.Enum, btf.Enum64:
		return strings.TrimSpace("enum " + name)
	case btf.Fwd:
		if typ.Flag {
			return "union " + name
		}
		return "struct " + name
	case btf.FuncProto:
		return "func"
	}
	return name
}

// btfHeader is how BTF of the kernel itself starts: magic, version 1, no flags,
// 24 bytes of header, types at 0 (Linux 6.1 include/uapi/linux/btf.h).
var btfHeader = []byte{0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0}

// btfHeaderSize is sizeof(struct btf_header).
const btfHeaderSize = 24

// btfSize is the size of the BTF that b starts with, 0 if it is none: header,
// types, and strings right behind them.
func btfSize(b []byte) uint64 {
	if len(b) < btfHeaderSize || !bytes.HasPrefix(b, btfHeader) {
		return 0
	}
	word := func(i int) uint64 { return uint64(binary.LittleEndian.Uint32(b[i:])) }
	typeLen, strOff, strLen := word(12), word(16), word(20)
	if typeLen == 0 || typeLen%4 != 0 || strOff != typeLen || strLen == 0 || typeLen+strLen > btfMax {
		return 0
	}
	return btfHeaderSize + typeLen + strLen
}
