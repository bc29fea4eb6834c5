package linux

import (
	"encoding/binary"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
)

// fakeTypes are structures written as in C, with natural alignment:
//
//	struct list_head { ptr next; ptr prev; }
//
// Types are ptr, long, int, u32, u16, u8, char and structures defined before;
// members may be arrays; "char name" alone before a member moves it, so that
// offsets differ from any real kernel's.
type fakeTypes struct {
	t       testing.TB
	order   []string
	structs map[string]*fakeStruct
}

type fakeStruct struct {
	size, align uint32
	members     []fakeMember
}

type fakeMember struct {
	name, kind   string
	offset, size uint32 // of one element
	count        uint32
	array        bool
}

var fakeScalars = map[string]uint32{"ptr": 8, "long": 8, "int": 4, "u32": 4, "u16": 2, "u8": 1, "char": 1}

func parseFakeTypes(t testing.TB, text string) *fakeTypes {
	f := &fakeTypes{t: t, structs: map[string]*fakeStruct{}}
	for def := range strings.SplitSeq(text, "}") {
		head, body, ok := strings.Cut(def, "{")
		if !ok {
			continue
		}
		name := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(head), "struct "))
		s := &fakeStruct{align: 1}
		for decl := range strings.SplitSeq(body, ";") {
			if fields := strings.Fields(decl); len(fields) == 2 {
				f.member(s, fields[0], fields[1])
			}
		}
		s.size = (s.size + s.align - 1) / s.align * s.align
		f.structs[name] = s
		f.order = append(f.order, name)
	}
	return f
}

func (f *fakeTypes) member(s *fakeStruct, kind, name string) {
	m := fakeMember{name: name, kind: kind, count: 1}
	if n, count, ok := strings.Cut(name, "["); ok {
		m.name, m.array = n, true
		c, err := strconv.Atoi(strings.TrimSuffix(count, "]"))
		if err != nil {
			f.t.Fatalf("array %s: %v", name, err)
		}
		m.count = uint32(c)
	}
	size, ok := fakeScalars[kind]
	align := size
	if !ok {
		inner := f.structs[kind]
		if inner == nil {
			f.t.Fatalf("no structure %s", kind)
		}
		size, align = inner.size, inner.align
	}
	m.size, m.offset = size, (s.size+align-1)/align*align
	s.size, s.align = m.offset+size*m.count, max(s.align, align)
	s.members = append(s.members, m)
}

func (f *fakeTypes) size(name string) uint32 {
	s := f.structs[name]
	if s == nil {
		f.t.Fatalf("no structure %s", name)
	}
	return s.size
}

// resolve follows "a.b[1].c"; no path is the structure itself.
func (f *fakeTypes) resolve(name, path string) (offset, size uint32) {
	if path == "" {
		return 0, 8
	}
	for step := range strings.SplitSeq(path, ".") {
		member, index, _ := strings.Cut(step, "[")
		i, _ := strconv.Atoi(strings.TrimSuffix(index, "]"))
		found := false
		for _, m := range f.structs[name].members {
			if m.name == member {
				offset, size, name, found = offset+m.offset+uint32(i)*m.size, m.size, m.kind, true
				break
			}
		}
		if !found {
			f.t.Fatalf("no member %s of %s", path, name)
		}
	}
	return offset, size
}

func (f *fakeTypes) offset(name, path string) uint32 { o, _ := f.resolve(name, path); return o }
func (f *fakeTypes) sizeOf(name, path string) uint32 { _, s := f.resolve(name, path); return s }

// marshal makes BTF of the structures.
func (f *fakeTypes) marshal(t testing.TB) []byte {
	made := map[string]btf.Type{"ptr": &btf.Pointer{Target: &btf.Void{}}}
	for name, size := range fakeScalars {
		if name != "ptr" {
			made[name] = &btf.Int{Name: name, Size: size}
		}
	}
	b, err := btf.NewBuilder(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range f.order {
		s := f.structs[name]
		typ := &btf.Struct{Name: name, Size: s.size}
		for _, m := range s.members {
			member := btf.Member{Name: m.name, Type: made[m.kind], Offset: btf.Bits(m.offset * 8)}
			if m.array {
				member.Type = &btf.Array{Index: made["u32"], Type: made[m.kind], Nelems: m.count}
			}
			typ.Members = append(typ.Members, member)
		}
		made[name] = typ
		if _, err := b.Add(typ); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := b.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// splitBTF makes a module's BTF by hand: a structure with one member of a type of
// the kernel's.
func splitBTF(base []byte, structName, member string, memberType, size, bitOffset uint32) []byte {
	baseStrings := binary.LittleEndian.Uint32(base[20:])
	strs := structName + "\x00" + member + "\x00"
	const btfStruct = 4 << 24
	var types []byte
	for _, w := range []uint32{baseStrings, btfStruct | 1, size,
		baseStrings + uint32(len(structName)) + 1, memberType, bitOffset} {
		types = binary.LittleEndian.AppendUint32(types, w)
	}
	raw := []byte{0x9f, 0xeb, 1, 0}
	for _, w := range []uint32{24, 0, uint32(len(types)), uint32(len(types)), uint32(len(strs))} {
		raw = binary.LittleEndian.AppendUint32(raw, w)
	}
	return append(append(raw, types...), strs...)
}

// typeID finds a type's number in raw BTF, by trying: for tests only.
func typeID(t testing.TB, raw []byte, name string) uint32 {
	types, err := parseTypes("test", raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	ids := types.spec.Named(name)
	if len(ids) == 0 {
		t.Fatalf("no type %s", name)
	}
	return uint32(ids[0])
}
