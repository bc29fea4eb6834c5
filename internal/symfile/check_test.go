package symfile

import (
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/btf"
)

// TestHostileTypes has types that no compiler makes. Each must be left out with a
// word, and the file must still be one that gdb and Go can read.
func TestHostileTypes(t *testing.T) {
	for _, c := range []struct {
		name  string
		build func(b *rawBTF)
		wants []string
	}{
		{"typedef of itself", func(b *rawBTF) { b.add("t", btf.Typedef, 0, 2) },
			[]string{"a type contains itself (id 2): its target or members are left out"}},
		{"qualifiers in a circle", func(b *rawBTF) {
			b.add("", btf.Const, 0, 3)
			b.add("", btf.Volatile, 0, 4)
			b.add("t", btf.Typedef, 0, 2)
		}, []string{"a type contains itself (id 4): its target or members are left out"}},
		{"pointer to itself", func(b *rawBTF) { b.add("", btf.Ptr, 0, 2) },
			[]string{"a type contains itself (id 2): its target or members are left out"}},
		{"tag of itself", func(b *rawBTF) {
			b.add("t", btf.TypeTag, 0, 2)
			b.add("", btf.Ptr, 0, 2)
		}, []string{"a type contains itself (id 2): its target or members are left out"}},
		{"prototype of itself", func(b *rawBTF) { b.add("", btf.FuncProto, 1, 2, b.name("p"), 2) },
			[]string{"a type contains itself (id 2): its target or members are left out"}},
		{"structures in each other", func(b *rawBTF) {
			b.add("a", btf.Struct, 1, 4, b.name("b"), 3, 0)
			b.add("b", btf.Struct, 1, 4, b.name("a"), 4, 0)
			b.add("", btf.Array, 0, 0, 2, 1, 1)
		}, []string{"a type contains itself (id 4): its target or members are left out"}},
		{"tower upwards", func(b *rawBTF) {
			for range 1000 {
				b.add("", btf.Ptr, 0, b.lastID+2)
			}
		}, []string{"a type is nested too deep (id 900): its target or members are left out (and 8 more like it)"}},
		{"tower downwards", func(b *rawBTF) {
			for range 1000 {
				b.add("", btf.Ptr, 0, b.lastID)
			}
		}, []string{"a type is nested too deep (id 102): its target or members are left out (and 8 more like it)"}},
		{"tower of structures", func(b *rawBTF) {
			for range 150 {
				b.add("s", btf.Struct, 1, 4, b.name("m"), b.lastID, 0)
			}
		}, []string{"a type is nested too deep (id 102): its target or members are left out"}},
		{"no such type", func(b *rawBTF) { b.add("", btf.Ptr, 0, 1<<31) }, nil},
		{"pointer to a function", func(b *rawBTF) {
			b.add("", btf.FuncProto, 0, 0)
			b.add("f", btf.Func, 0, 2)
			b.add("", btf.Ptr, 0, 3)
		}, nil},
		{"sizes", func(b *rawBTF) {
			b.add("big", btf.Int, 0, 1<<31, 32)
			b.add("odd", btf.Int, 0, 3, 24)
			b.add("none", btf.Enum, 0, 0)
			b.add("half", btf.Float, 0, 1)
			b.add("", btf.Ptr, 0, 2)
		}, []string{"BTF kind 1 with 2147483648 bytes: not described (and 3 more like it)"}},
		{"members", func(b *rawBTF) {
			b.add("s", btf.Struct, 2, 4, b.name("in"), 1, 0, b.name("out"), 1, 8)
			b.add("u", btf.Union, 1, 2, b.name("wide"), 1, 0)
			b.add("f", btf.Struct, flag|1, 8, b.name("bits"), 1, 33<<24)
			b.add("a", btf.Struct, 1, 8, b.name("array"), b.lastID+2, 0)
			b.add("", btf.Array, 0, 0, 7, 1, 1<<31)
			b.add("", btf.Array, 0, 0, 8, 1, 1<<31)
			b.add("", btf.Array, 0, 0, 1, 1, 1<<31)
		}, []string{`member "out" of a structure of 4 bytes has 32 bits at bit 8: left out (and 3 more like it)`}},
		{"names", func(b *rawBTF) {
			b.add("esc\x1b[2J\x07\xff", btf.Struct, 0, 0)
			b.add("", btf.Typedef, 0, 1)
			b.types.putU32(b.types.len()-12, 1<<30)
		}, nil},
		{"unknown kind", func(b *rawBTF) {
			b.add("s", btf.Struct, 0, 0)
			b.add("x", 25, 0, 0)
			b.add("lost", btf.Struct, 0, 0)
		}, []string{"BTF of k: type 3 at 0x1c: BTF not supported: kind 25"}},
		{"record past the end", func(b *rawBTF) { b.add("s", btf.Struct, 1, 4) },
			[]string{"BTF of k: type 2 at 0x10: corrupt BTF: record of 24 bytes, 12 are left"}},
	} {
		var b rawBTF
		b.add("int", btf.Int, 0, 4, 1<<24|32)
		c.build(&b)
		checkProblems(t, c.name, &File{Arch: arch.X86, Units: []Unit{{Name: "k", BTF: b.bytes()}}}, c.wants...)
	}
}

// TestHostileTower: a hundred thousand levels cost neither stack nor time.
func TestHostileTower(t *testing.T) {
	for name, next := range map[string]uint32{"up": 2, "down": 0} {
		var b rawBTF
		b.add("int", btf.Int, 0, 4, 1<<24|32)
		for range 100_000 {
			b.add("", btf.Ptr, 0, b.lastID+next)
		}
		f := File{Arch: arch.X86, Units: []Unit{{Name: "k", BTF: b.bytes()}}}
		if _, problems := write(t, &f); len(problems) != 1 || problems[0].Count < 900 {
			t.Errorf("%s: %v", name, problems)
		}
	}
}

// TestNamesAreHarmless: no control character gets from memory to a terminal.
func TestNamesAreHarmless(t *testing.T) {
	var b rawBTF
	b.add("esc\x1b[2J\x07\xff", btf.Struct, 0, 0)
	checkEntries(t, &File{Arch: arch.X86, Units: []Unit{{Name: "k\n", BTF: b.bytes()}}},
		"unit k?", "struct esc?[2J?? {}")
}
