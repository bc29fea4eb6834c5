package btf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	cilium "github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"
)

// sample has every kind that cilium's encoder writes; the two readers share nothing.
func sample(t testing.TB) []byte {
	t.Helper()
	char := &cilium.Int{Name: "char", Size: 1, Encoding: cilium.Signed}
	integer := &cilium.Int{Name: "int", Size: 4, Encoding: cilium.Signed}
	word := &cilium.Typedef{Name: "word", Type: &cilium.Const{Type: &cilium.Volatile{Type: integer}}}
	list := &cilium.Struct{Name: "list", Size: 16}
	pointer := &cilium.Pointer{Target: list}
	list.Members = []cilium.Member{{Name: "next", Type: pointer}, {Name: "prev", Type: pointer, Offset: 64}}
	proto := &cilium.FuncProto{Return: integer, Params: []cilium.FuncParam{{Name: "l", Type: pointer}, {Name: "w", Type: word}}}
	types := []cilium.Type{
		&cilium.Struct{Name: "task", Size: 96, Members: []cilium.Member{
			{Name: "a", Type: integer, BitfieldSize: 3}, {Name: "b", Type: integer, Offset: 3, BitfieldSize: 20},
			{Name: "comm", Type: &cilium.Array{Index: integer, Type: char, Nelems: 16}, Offset: 64},
			{Name: "grid", Type: &cilium.Array{Index: integer, Type: &cilium.Array{Index: integer, Type: word, Nelems: 3}, Nelems: 2}, Offset: 192},
			{Type: &cilium.Union{Size: 16, Members: []cilium.Member{{Name: "links", Type: list}, {Name: "w", Type: word}}}, Offset: 384},
		}},
		&cilium.Func{Name: "run", Type: proto, Linkage: cilium.GlobalFunc},
		&cilium.Var{Name: "counter", Type: word},
		&cilium.Enum{Name: "state", Size: 4, Signed: true, Values: []cilium.EnumValue{{Name: "DEAD", Value: ^uint64(0)}}},
		&cilium.Enum{Name: "flags", Size: 8, Values: []cilium.EnumValue{{Name: "HIGH", Value: 1 << 40}}},
		&cilium.Fwd{Name: "list"}, &cilium.Float{Name: "double", Size: 8},
		&cilium.Struct{Name: "list", Size: 4, Members: []cilium.Member{{Name: "other", Type: integer}}},
		&cilium.Pointer{Target: &cilium.TypeTag{Type: word, Value: "user"}},
	}
	b, err := cilium.NewBuilder(types, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := b.Marshal(nil, &cilium.MarshalOptions{Order: binary.LittleEndian})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// agree compares every type of a section with what cilium's reader says.
func agree(t *testing.T, s *Spec, c *cilium.Spec) {
	t.Helper()
	byName := make(map[string][]ID)
	for i := range s.Len() {
		id := s.First() + ID(i)
		typ, err := c.TypeByID(cilium.TypeID(id))
		if err != nil {
			t.Fatal(err)
		}
		r, _ := s.Type(id)
		// What is called a name of a tag is its value there.
		if name := string(s.Text(r.Name)); name != typ.TypeName() && r.Kind != TypeTag && r.Kind != DeclTag {
			t.Errorf("type %d is named %q, want %q", id, name, typ.TypeName())
		}
		if isNamed(r.Kind) && typ.TypeName() != "" {
			byName[typ.TypeName()] = append(byName[typ.TypeName()], id)
		}
		size, err := s.Size(id)
		want, wantErr := cilium.Sizeof(typ)
		if _, isVar := typ.(*cilium.Var); isVar {
			wantErr = errors.New("a variable is no type")
		}
		if (err == nil) != (wantErr == nil) || err == nil && size != uint64(want) {
			t.Errorf("size of %v: %d, %v; want %d, %v", typ, size, err, want, wantErr)
		}
		if diff := cmp.Diff(ciliumMembers(typ), members(s, &r)); diff != "" {
			t.Errorf("members of %v: %s", typ, diff)
		}
	}
	for name, want := range byName {
		if diff := cmp.Diff(want, s.Named(name)); diff != "" {
			t.Errorf("types named %s: %s", name, diff)
		}
	}
	for _, name := range []string{"", "no such type", "counter", "run"} {
		if ids := s.Named(name); ids != nil {
			t.Errorf("types named %q: %v", name, ids)
		}
	}
}

func members(s *Spec, t *Type) (out []string) {
	if !t.IsComposite() {
		return nil
	}
	for i := range t.Count {
		m := s.Member(t, i)
		out = append(out, fmt.Sprintf("%s at %d for %d", s.Text(m.Name), m.BitOffset, m.BitSize))
	}
	return out
}

func ciliumMembers(t cilium.Type) (out []string) {
	var list []cilium.Member
	switch t := t.(type) {
	case *cilium.Struct:
		list = t.Members
	case *cilium.Union:
		list = t.Members
	}
	for _, m := range list {
		out = append(out, fmt.Sprintf("%s at %d for %d", m.Name, m.Offset, m.BitfieldSize))
	}
	return out
}

// records makes raw BTF of words, a few types with their strings.
func records(strings string, words ...uint32) []byte {
	raw := binary.LittleEndian.AppendUint16(nil, magic)
	raw = append(raw, version, 0)
	for _, w := range []uint32{headerSize, 0, uint32(4 * len(words)), uint32(4 * len(words)), uint32(len(strings))} {
		raw = binary.LittleEndian.AppendUint32(raw, w)
	}
	for _, w := range words {
		raw = binary.LittleEndian.AppendUint32(raw, w)
	}
	return append(raw, strings...)
}

func word(k Kind, count uint32) uint32 { return uint32(k)<<24 | count }

func TestAgreesWithCilium(t *testing.T) {
	raw := sample(t)
	s, err := Parse(raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := cilium.LoadSpecFromReader(readerAt(raw))
	if err != nil {
		t.Fatal(err)
	}
	agree(t, s, c)

	_, first := s.Strings()
	base, _ := s.Strings()
	next := first + uint32(len(base))
	module := records("\x00vcpu\x00id\x00", next+1, word(Struct, 2), 24, next+6, 1, 0, next+6, uint32(s.Len())+2, 64,
		0, word(Ptr, 0), 1)
	on, err := Parse(module, s)
	if err != nil {
		t.Fatal(err)
	}
	c, err = cilium.LoadSplitSpecFromReader(readerAt(module), c)
	if err != nil {
		t.Fatal(err)
	}
	if on.Base() != s || on.First() != ID(s.Len())+1 {
		t.Errorf("the module's types begin at %d", on.First())
	}
	agree(t, on, c)
}
