package kernelfile

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"nestdbg/internal/linux"
	"nestdbg/internal/mem"
	"nestdbg/internal/symfile"
)

// The files as a whole are tried on real kernels, by TestExport of the lab.

func TestSymbolLetters(t *testing.T) {
	type kind struct{ Code, Local bool }
	for letter, want := range map[byte]kind{
		't': {true, true}, 'T': {true, false}, // text
		'w': {true, false}, 'W': {true, false}, // weak: always global
		'd': {false, true}, 'D': {false, false}, 'b': {false, true}, 'B': {false, false}, 'R': {false, false}, 'r': {false, true},
		'V': {false, false}, // a weak object
	} {
		s := symbol("name", 0xffffffff81000000, 8, letter)
		if (kind{s.Code, s.Local}) != want || s.Name != "name" || s.Addr != 0xffffffff81000000 || s.Size != 8 {
			t.Errorf("%c: %+v, want %+v", letter, s, want)
		}
	}
}

// TestKernelSections: the sections are those whose bounds are known, in order and
// without a hole, from the first byte of the image to the last.
func TestKernelSections(t *testing.T) {
	const text, size = uint64(0xffffffffa2000000), uint64(0x2000000)
	whole := map[string]uint64{"_text": text, "_etext": text + 0x1000000, "_sdata": text + 0x1600000,
		"__init_begin": text + 0x1800000, "_sinittext": text + 0x1880000, "_einittext": text + 0x1900000,
		"__bss_start": text + 0x1a00000, "_end": text + 0x1c00000}
	without := func(names ...string) map[string]uint64 {
		out := map[string]uint64{}
		for name, a := range whole {
			out[name] = a
		}
		for _, name := range names {
			delete(out, name)
		}
		return out
	}
	disordered := without()
	disordered["_sdata"] = text + 0x10
	for _, tt := range []struct {
		name    string
		symbols map[string]uint64
		want    []string
		end     uint64
	}{
		{"whole", whole, []string{".text", ".rodata", ".data", ".init.data", ".init.text", ".init.rodata", ".bss"}, text + 0x1c00000},
		{"no end", without("_end"), []string{".text", ".rodata", ".data", ".init.data", ".init.text", ".init.rodata", ".bss"}, text + size},
		{"no data symbols", without("_sdata", "__init_begin", "__bss_start", "_end"),
			[]string{".text", ".rodata", ".init.text", ".init.rodata"}, text + size},
		{"nothing", nil, []string{".text"}, text + size},
		{"disordered", disordered, []string{".text", ".rodata", ".init.data", ".init.text", ".init.rodata", ".bss"}, text + 0x1c00000},
		{"beyond the image", map[string]uint64{"_etext": text + 2*size}, []string{".text", ".rodata"}, text + 2*size + 1},
	} {
		got := sections(text, size, func(name string) (mem.Virt, bool) {
			a, ok := tt.symbols[name]
			return mem.Virt(a), ok
		})
		var names []string
		at := text
		for _, s := range got {
			names = append(names, s.Name)
			if s.First != at || s.Size == 0 {
				t.Errorf("%s: %s of %#x bytes is at %#x, not at %#x", tt.name, s.Name, s.Size, s.First, at)
			}
			if isText := s.Name == ".text" || s.Name == ".init.text"; s.Exec != isText || s.Exec && s.Write {
				t.Errorf("%s: %+v", tt.name, s)
			}
			at = s.First + s.Size
		}
		if diff := cmp.Diff(tt.want, names); diff != "" || at != tt.end {
			t.Errorf("%s: %s, the end is at %#x, want %#x", tt.name, diff, at, tt.end)
		}
	}
}

// TestModule has a module with an empty region, and symbols in it and elsewhere.
func TestModule(t *testing.T) {
	const text, data = 0xffffffffc0400000, 0xffffffffc0500000
	m := &linux.Module{Name: "toy", Regions: []linux.Region{
		{Name: "text", Base: text, Size: 0x1000}, {Name: "ro_after_init"}, {Name: "data", Base: data, Size: 0x800},
		{Name: "rodata", Base: text - 0x2000, Size: 0x1000}}}
	want := []symfile.Section{{Name: ".rodata", First: text - 0x2000, Size: 0x1000, Write: true}, // the lowest is the first
		{Name: ".text", First: text, Size: 0x1000, Exec: true},
		{Name: ".data", First: data, Size: 0x800, Write: true}}
	if diff := cmp.Diff(want, moduleSections(m)); diff != "" {
		t.Error(diff)
	}
	var found []linux.ModuleSymbol
	for _, x := range []struct {
		name   string
		addr   uint64
		letter byte
	}{{"run", text, 't'}, {"weak", text + 0x10, 'w'}, {"last", text + 0xfff, 'T'}, {"behind", text + 0x1000, 'T'},
		{"value", data, 'd'}, {"percpu", 0x34000, 'd'}, {"init", 0xffffffffc0600000, 't'}} {
		var s linux.ModuleSymbol
		s.Name, s.Addr, s.Type, s.Size = x.name, x.addr, x.letter, 4
		found = append(found, s)
	}
	wantSymbols := []symfile.Symbol{
		{Name: "run", Addr: text, Size: 4, Code: true, Local: true},
		{Name: "weak", Addr: text + 0x10, Size: 4, Code: true},
		{Name: "last", Addr: text + 0xfff, Size: 4, Code: true},
		{Name: "value", Addr: data, Size: 4, Local: true},
	}
	if diff := cmp.Diff(wantSymbols, symbolsIn(m, found)); diff != "" {
		t.Error(diff)
	}
}

func TestBuildID(t *testing.T) {
	if got := buildID("3b43fad5"); string(got) != "\x3b\x43\xfa\xd5" {
		t.Errorf("%x", got)
	}
	for _, text := range []string{"", "3", "no hex"} {
		if got := buildID(text); len(got) != 0 {
			t.Errorf("%q: %x", text, got)
		}
	}
}

func TestBoundsIn(t *testing.T) {
	lookup := boundsIn([]symfile.Symbol{{Name: "_text", Addr: 0x1000}, {Name: "other", Addr: 0x1800}, {Name: "_etext", Addr: 0x2000}, {Name: "_etext", Addr: 0x3000}})
	for name, want := range map[string]mem.Virt{"_text": 0x1000, "_etext": 0x2000, "other": 0, "_end": 0} {
		if va, ok := lookup(name); va != want || ok != (want != 0) {
			t.Errorf("%s: %#x, %v", name, va, ok)
		}
	}
}
