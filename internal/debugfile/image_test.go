package debugfile

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// compile builds a program without a library, linked at 0x400000 or not at all.
func compile(t *testing.T, flags ...string) string {
	t.Helper()
	dir := t.TempDir()
	source := write(t, filepath.Join(dir, "a.c"), []byte(`
int counter = 1;
static int next(int n) { return n + counter; }
void _start(void) { counter = next(2); for (;;) ; }
`))
	out := filepath.Join(dir, "a.elf")
	args := append([]string{"-g", "-nostdlib", "-ffreestanding", "-o", out, source}, flags...)
	if text, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, text)
	}
	return out
}

// Symbols of an image are where it was loaded, position-independent or moved, and nothing
// is in a symbol that it does not reach.
func TestImage(t *testing.T) {
	at := func(v uint64) *uint64 { return &v }
	for _, c := range []struct {
		name  string
		flags []string
		base  *uint64
		slide uint64
	}{
		{"where it was linked", []string{"-static", "-no-pie"}, nil, 0},
		{"moved", []string{"-static", "-no-pie"}, at(0x7000_0040_0000), 0x7000_0000_0000},
		{"position-independent", []string{"-static-pie"}, at(0x5555_0000_0000), 0x5555_0000_0000},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := compile(t, c.flags...)
			plain, err := OpenImage(path, nil)
			if err != nil {
				t.Fatal(err)
			}
			i, err := OpenImage(path, c.base)
			if err != nil || i.Slide != c.slide || i.Base != plain.Base+c.slide {
				t.Fatalf("base %#x, slide %#x, %v", i.Base, i.Slide, err)
			}
			linkedAt, err := plain.Segments()
			segments, e := i.Segments()
			if err != nil || e != nil || len(segments) == 0 || len(segments) != len(linkedAt) || segments[0][0] != i.Base {
				t.Fatalf("segments %#x, %v; linked %#x, %v", segments, e, linkedAt, err)
			}
			for k, s := range segments {
				if s[0] != linkedAt[k][0]+c.slide || s[1]-s[0] != linkedAt[k][1]-linkedAt[k][0] {
					t.Errorf("segment %#x, linked %#x", s, linkedAt[k])
				}
			}
			for name, kind := range map[string]byte{"counter": 'D', "next": 't', "_start": 'T'} {
				linked, got := plain.Lookup(name), i.Lookup(name)
				if len(linked) != 1 || len(got) != 1 || got[0].Addr != linked[0].Addr+c.slide || got[0].Type != kind || got[0].Size == 0 {
					t.Fatalf("%s: %+v, linked %+v", name, got, linked)
				}
				s, ok := i.Symbolize(got[0].Addr + got[0].Size - 1)
				if !ok || s.Name != name {
					t.Errorf("end of %s: %+v, %v", name, s, ok)
				}
			}
			if s, ok := i.Symbolize(i.Base + 1<<32); ok {
				t.Errorf("beyond everything: %+v", s)
			}
			if s, ok := i.Symbolize(i.Base - 1); ok {
				t.Errorf("before everything: %+v", s)
			}
		})
	}
	if _, err := OpenImage(filepath.Join(t.TempDir(), "none"), nil); err == nil {
		t.Error("a file that is not there was opened")
	}
	if _, err := OpenImage(write(t, filepath.Join(t.TempDir(), "o"), object(nil)), nil); err == nil {
		t.Error("a file without segments was opened")
	}
}
