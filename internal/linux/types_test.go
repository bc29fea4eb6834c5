package linux

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"
)

// testTypes has what fakeTypes cannot say: anonymous members, bit fields, unions,
// two structures of one name.
func testTypes(t testing.TB) []byte {
	u32, u64 := &btf.Int{Name: "unsigned int", Size: 4}, &btf.Int{Name: "long", Size: 8}
	inner := &btf.Struct{Size: 8, Members: []btf.Member{
		{Name: "low", Type: u32}, {Name: "high", Type: u32, Offset: 32}}}
	pair := &btf.Union{Size: 8, Members: []btf.Member{{Name: "whole", Type: u64}, {Type: inner}}}
	point := &btf.Struct{Name: "point", Size: 8, Members: []btf.Member{{Name: "x", Type: u32}, {Name: "y", Type: u32, Offset: 32}}}
	outer := &btf.Struct{Name: "outer", Size: 64, Members: []btf.Member{
		{Name: "first", Type: u32},
		{Name: "a", Type: u32, Offset: 32, BitfieldSize: 3},
		{Name: "b", Type: u32, Offset: 35, BitfieldSize: 9},
		{Type: pair, Offset: 64},
		{Name: "points", Type: &btf.Array{Index: u32, Type: point, Nelems: 3}, Offset: 128},
		{Name: "next", Type: &btf.Pointer{Target: &btf.Const{Type: point}}, Offset: 320},
		{Name: "call", Type: &btf.Pointer{Target: &btf.FuncProto{Return: u32}}, Offset: 384},
		{Name: "flexible", Type: &btf.Array{Index: u32, Type: point}, Offset: 512},
	}}
	twin := &btf.Struct{Name: "twin", Size: 8, Members: []btf.Member{{Name: "same", Type: u32}, {Name: "left", Type: u32, Offset: 32}}}
	twin2 := &btf.Struct{Name: "twin", Size: 16, Members: []btf.Member{{Name: "same", Type: u32}, {Name: "moved", Type: u64, Offset: 64}}}
	twin.Members = append(twin.Members, btf.Member{Name: "moved", Type: u32, Offset: 32})
	all := []btf.Type{outer, point, twin, twin2, &btf.Fwd{Name: "declared"},
		&btf.Typedef{Name: "outer_t", Type: outer}, &btf.Enum{Name: "mode", Size: 4}}
	b, err := btf.NewBuilder(all, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := b.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestField(t *testing.T) {
	types, err := parseTypes("test", testTypes(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		structName, path string
		want             Field
		err              error
	}{
		{"outer", "first", Field{Offset: 0, Size: 4, Type: "unsigned int"}, nil},
		{"outer", "whole", Field{Offset: 8, Size: 8, Type: "long"}, nil},
		{"outer", "high", Field{Offset: 12, Size: 4, Type: "unsigned int"}, nil},
		{"outer_t", "high", Field{Offset: 12, Size: 4, Type: "unsigned int"}, nil},
		{"outer", "a", Field{Offset: 4, Size: 4, BitSize: 3, Type: "unsigned int"}, nil},
		{"outer", "b", Field{Offset: 4, Size: 4, BitOffset: 3, BitSize: 9, Type: "unsigned int"}, nil},
		{"outer", "points", Field{Offset: 16, Size: 24, Count: 3, Stride: 8, Type: "struct point[3]"}, nil},
		{"outer", "points[2].y", Field{Offset: 36, Size: 4, Type: "unsigned int"}, nil},
		{"outer", "points[2]", Field{Offset: 32, Size: 8, Type: "struct point"}, nil},
		{"outer", "points[3]", Field{}, ErrNotFound},
		{"outer", "flexible[100].x", Field{Offset: 864, Size: 4, Type: "unsigned int"}, nil},
		{"outer", "flexible[4294967295].x", Field{}, ErrCorrupt},
		{"outer", "next", Field{Offset: 40, Size: 8, Type: "const struct point *"}, nil},
		{"outer", "next.x", Field{}, ErrNotFound}, // not through pointers
		{"outer", "call", Field{Offset: 48, Size: 8, Type: "func *"}, nil},
		{"outer", "", Field{}, ErrNotFound},
		{"outer", "points[x]", Field{}, ErrNotFound},
		{"outer", "first[0]", Field{}, ErrNotFound},
		{"twin", "same", Field{Size: 4, Type: "unsigned int"}, nil},
		{"twin", "left", Field{Offset: 4, Size: 4, Type: "unsigned int"}, nil},
		{"twin", "moved", Field{}, ErrUnsupported},
		{"declared", "x", Field{}, ErrNotFound},
		{"mode", "x", Field{}, ErrNotFound},
		{"nothing", "x", Field{}, ErrNotFound},
	}
	for _, tt := range tests {
		got, err := types.Field(tt.structName, tt.path)
		if got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%s.%s: got %+v, %v; want %+v, %v", tt.structName, tt.path, got, err, tt.want, tt.err)
		}
	}
	if _, _, err := types.Offset("outer", "a"); !errors.Is(err, ErrUnsupported) {
		t.Errorf("offset of a bit field: %v", err)
	}
}

// TestFieldIsBounded has a thousand structures of one name, each with an anonymous
// member that has as many members as there can be, of a type behind a hundred names.
func TestFieldIsBounded(t *testing.T) {
	const structs, members = 900, 1<<16 - 1
	words := []uint32{1, 1 << 24, 4, 32} // type 1: int
	for i := range uint32(98) {
		words = append(words, 0, 8<<24, i+1) // a typedef each
	}
	words = append(words, 0, 4<<24|members, 8) // type 100
	for range members {
		words = append(words, 1, 99, 0)
	}
	for range structs {
		words = append(words, 5, 4<<24|1, 8, 0, 100, 0)
	}
	var types []byte
	for _, w := range words {
		types = binary.LittleEndian.AppendUint32(types, w)
	}
	raw := []byte{0x9f, 0xeb, 1, 0}
	for _, w := range []int{24, 0, len(types), len(types), 10} {
		raw = binary.LittleEndian.AppendUint32(raw, uint32(w))
	}
	raw = append(append(raw, types...), "\x00int\x00many\x00"...)
	got, err := parseTypes("test", raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if _, err := got.Field("many", "none"); !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("looked for %v", d)
	}
}

func TestStruct(t *testing.T) {
	types, err := parseTypes("test", testTypes(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := types.Struct("point")
	want := Struct{Name: "point", Size: 8, Members: []Member{
		{"x", Field{Size: 4, Type: "unsigned int"}}, {"y", Field{Offset: 4, Size: 4, Type: "unsigned int"}}}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	if _, err := types.Struct("mode"); !errors.Is(err, ErrNotFound) {
		t.Errorf("an enumeration as a structure: %v", err)
	}
	if n, err := types.SizeOf("mode"); n != 4 || err != nil {
		t.Errorf("size of mode: %d, %v", n, err)
	}
}

func TestRawBTFBySearch(t *testing.T) {
	f := newFake(t, fakeCore)
	k := f.find()
	f.symbols["__start_BTF"] = 0
	var hidden Kernel
	hidden.image, hidden.space, hidden.VMCoreInfo = k.image, k.space, nil
	// A kernel whose table does not list data: here, one that has no table at all.
	clear(f.ram[fakeImagePA : fakeImagePA+fakeBannerAt])
	raw, err := hidden.rawBTF()
	if want := f.types.marshal(t); err != nil || string(raw) != string(want) {
		t.Errorf("%d bytes, %v; want %d", len(raw), err, len(want))
	}
}

func FuzzTypes(f *testing.F) {
	base := testTypes(f)
	f.Add(base)
	f.Add(splitBTF(base, "s", "m", 1, 8, 0))
	// A structure that contains itself.
	self := append([]byte(nil), base[:btfHeaderSize]...)
	for _, w := range []uint32{1, 4<<24 | 1, 8, 3, 1, 0} {
		self = binary.LittleEndian.AppendUint32(self, w)
	}
	self = append(self, "\x00s\x00m\x00"...)
	for i, w := range []uint32{24, 0, 24, 24, 5} {
		binary.LittleEndian.PutUint32(self[4+4*i:], w)
	}
	f.Add(self)
	whole, err := parseTypes("base", base, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, on := range []*Types{nil, whole} {
			types, err := parseTypes("fuzz", raw, on)
			if (types == nil) == (err == nil) {
				t.Fatalf("value %v and error %v", types, err)
			}
			if err != nil {
				continue
			}
			for _, name := range []string{"outer", "twin", "point", "outer_t", "mode", "s", "list_head"} {
				types.Struct(name)
				types.SizeOf(name)
				for _, path := range []string{"first", "high", "b", "points[2].y", "moved", "m", "m.m", "flexible[7]"} {
					if f, err := types.Field(name, path); err != nil && f != (Field{}) {
						t.Fatalf("%s.%s: value and error %v", name, path, err)
					}
				}
			}
		}
	})
}
