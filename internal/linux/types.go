package linux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// Types are the C types of a kernel or of one of its modules, from BTF. They are
// safe for concurrent use.
type Types struct {
	of   string // whose types these are, for messages
	spec *btf.Spec
	base *Types // of the kernel, for a module; else nil
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

// parseTypes parses raw BTF; base is the kernel's for a module's split BTF, else nil.
// The parser is a library that is fuzzed, but these bytes are hostile: a panic in
// it is an error here.
func parseTypes(of string, raw []byte, base *Types) (t *Types, err error) {
	defer guard(of, &err)
	t = &Types{of: of, base: base}
	if base == nil {
		t.spec, err = btf.LoadSpecFromReader(bytes.NewReader(raw))
	} else {
		t.spec, err = btf.LoadSplitSpecFromReader(bytes.NewReader(raw), base.spec)
	}
	if err != nil {
		return nil, fmt.Errorf("types of %s: %w: %w", of, err, ErrCorrupt)
	}
	return t, nil
}

// guard turns a panic of the BTF library into an error.
func guard(of string, err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("types of %s: %v: %w", of, r, ErrCorrupt)
	}
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
func (t *Types) Field(structName, path string) (f Field, err error) {
	defer guard(t.of, &err)
	named, err := t.named(structName)
	if err != nil {
		return Field{}, err
	}
	found := false
	firstErr := error(nil)
	for _, typ := range named {
		got, err := walkPath(typ, path)
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
func (t *Types) SizeOf(name string) (size uint32, err error) {
	defer guard(t.of, &err)
	named, err := t.named(name)
	if err != nil {
		return 0, err
	}
	n, err := btf.Sizeof(named[0])
	if err != nil || n < 0 || int64(n) > int64(^uint32(0)) {
		return 0, fmt.Errorf("size of %s: %w", name, ErrCorrupt)
	}
	return uint32(n), nil
}

// Struct describes a structure or union.
func (t *Types) Struct(name string) (s Struct, err error) {
	defer guard(t.of, &err)
	named, err := t.named(name)
	if err != nil {
		return Struct{}, err
	}
	for _, typ := range named {
		size, members, ok := composite(typ)
		if !ok {
			continue
		}
		_, s.Union = btf.As[*btf.Union](typ)
		s.Name, s.Size = name, size
		for i := range members {
			f, err := fieldOf(&members[i], 0)
			if err != nil {
				return Struct{}, fmt.Errorf("%s.%s: %w", name, members[i].Name, err)
			}
			s.Members = append(s.Members, Member{members[i].Name, f})
		}
		return s, nil
	}
	return Struct{}, fmt.Errorf("%s is not a structure: %w", name, ErrNotFound)
}

// named returns the types with exactly this name; those that are only declared
// do not count. A module's BTF has what the kernel's has not.
func (t *Types) named(name string) ([]btf.Type, error) {
	all, err := t.spec.AnyTypesByName(name)
	if err != nil && !errors.Is(err, btf.ErrNotFound) {
		return nil, fmt.Errorf("type %s of %s: %w: %w", name, t.of, err, ErrCorrupt)
	}
	var out []btf.Type
	for _, typ := range all {
		switch typ.(type) {
		case *btf.Fwd, *btf.Func, *btf.Var, *btf.Datasec:
			continue
		}
		if typ.TypeName() == name {
			out = append(out, typ)
		}
	}
	if len(out) == 0 && t.base != nil {
		return t.base.named(name)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("type %s in types of %s: %w", name, t.of, ErrNotFound)
	}
	return out, nil
}

// composite returns size and members of a structure or union, behind typedefs
// and qualifiers.
func composite(typ btf.Type) (size uint32, members []btf.Member, ok bool) {
	switch v := btf.UnderlyingType(typ).(type) {
	case *btf.Struct:
		return v.Size, v.Members, true
	case *btf.Union:
		return v.Size, v.Members, true
	}
	return 0, nil, false
}

// walkPath follows a path from a structure.
func walkPath(typ btf.Type, path string) (Field, error) {
	var f Field
	base := uint32(0)
	for step := range strings.SplitSeq(path, ".") {
		name, index, indexed, err := cutIndex(step)
		if err != nil {
			return Field{}, err
		}
		m, off, ok := findMember(typ, name, map[btf.Type]bool{})
		if !ok {
			return Field{}, fmt.Errorf("no member %s: %w", step, ErrNotFound)
		}
		if f, err = fieldOf(m, base+off); err != nil {
			return Field{}, fmt.Errorf("member %s: %w", step, err)
		}
		typ = m.Type
		if indexed {
			if f, typ, err = element(f, typ, index); err != nil {
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
func element(f Field, typ btf.Type, index uint32) (Field, btf.Type, error) {
	array, ok := btf.As[*btf.Array](typ)
	if !ok || (array.Nelems != 0 && index >= array.Nelems) {
		return Field{}, nil, fmt.Errorf("no element %d: %w", index, ErrNotFound)
	}
	at := uint64(f.Offset) + uint64(index)*uint64(f.Stride)
	if at > uint64(^uint32(0)) {
		return Field{}, nil, fmt.Errorf("element %d: %w", index, ErrCorrupt)
	}
	out, err := describe(array.Type)
	out.Offset = uint32(at)
	return out, array.Type, err
}

// findMember finds a member by name, also in anonymous members. off is the
// distance in bytes of what directly holds the member from the start of typ. seen
// keeps a structure that claims to contain itself from being searched again.
func findMember(typ btf.Type, name string, seen map[btf.Type]bool) (m *btf.Member, off uint32, ok bool) {
	typ = btf.UnderlyingType(typ)
	_, members, ok := composite(typ)
	if !ok || seen[typ] || name == "" {
		return nil, 0, false
	}
	seen[typ] = true
	for i := range members {
		if members[i].Name == name {
			return &members[i], 0, true
		}
	}
	for i := range members {
		if members[i].Name != "" {
			continue
		}
		if m, off, ok := findMember(members[i].Type, name, seen); ok {
			return m, off + members[i].Offset.Bytes(), true
		}
	}
	return nil, 0, false
}

// fieldOf describes a member of something that starts at base.
func fieldOf(m *btf.Member, base uint32) (Field, error) {
	f, err := describe(m.Type)
	f.Offset = base + m.Offset.Bytes()
	if m.BitfieldSize != 0 {
		// The offset of a bit field is in bits and need not be a whole byte.
		f.Offset = base + uint32(m.Offset)/8
		f.BitOffset, f.BitSize = uint32(m.Offset)%8, uint32(m.BitfieldSize)
	}
	return f, err
}

// describe is the size, array shape and name of a type.
func describe(typ btf.Type) (Field, error) {
	f := Field{Type: typeName(typ, 0)}
	n, err := btf.Sizeof(typ)
	if err != nil {
		if _, isFunc := btf.As[*btf.FuncProto](typ); isFunc {
			return f, nil
		}
		return f, fmt.Errorf("size of %s: %w: %w", f.Type, err, ErrCorrupt)
	}
	if n < 0 || int64(n) > int64(^uint32(0)) {
		return f, fmt.Errorf("size of %s is %d: %w", f.Type, n, ErrCorrupt)
	}
	f.Size = uint32(n)
	if array, ok := btf.As[*btf.Array](typ); ok {
		f.Count = array.Nelems
		if stride, err := btf.Sizeof(array.Type); err == nil && stride >= 0 {
			f.Stride = uint32(stride)
		}
	}
	return f, nil
}

// typeNameDepth bounds the parts of a type's name, such as pointers to pointers.
const typeNameDepth = 16

// typeName renders a type as in a C declaration without the name.
func typeName(typ btf.Type, depth int) string {
	if depth > typeNameDepth {
		return "..."
	}
	switch v := typ.(type) {
	case *btf.Pointer:
		if _, ok := v.Target.(*btf.FuncProto); ok {
			return "func *"
		}
		return typeName(v.Target, depth+1) + " *"
	case *btf.Array:
		return typeName(v.Type, depth+1) + fmt.Sprintf("[%d]", v.Nelems)
	case *btf.Const:
		return "const " + typeName(v.Type, depth+1)
	case *btf.Volatile:
		return "volatile " + typeName(v.Type, depth+1)
	case *btf.Restrict:
		return typeName(v.Type, depth+1)
	case *btf.TypeTag:
		return typeName(v.Type, depth+1)
	case *btf.Struct:
		return strings.TrimSpace("struct " + v.Name)
	case *btf.Union:
		return strings.TrimSpace("union " + v.Name)
	case *btf.Enum:
		return strings.TrimSpace("enum " + v.Name)
	case *btf.Fwd:
		return v.Kind.String() + " " + v.Name
	case *btf.FuncProto:
		return "func"
	case *btf.Void:
		return "void"
	}
	return typ.TypeName()
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
