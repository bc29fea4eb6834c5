package snapshot

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nestdbg/internal/mem"
)

// zeroRAM is memory that reads as zeros, and costs nothing.
type zeroRAM struct{ all, populated []mem.Range }

func (r zeroRAM) PhysRanges() []mem.Range                        { return r.all }
func (r zeroRAM) PopulatedRanges() []mem.Range                   { return slices.Clone(r.populated) }
func (r zeroRAM) ReadPhys(p []byte, _ mem.Phys) (n int, _ error) { clear(p); return len(p), nil }

// BenchmarkExtents: memory in a million pieces, of a page each, as a file has them whose
// guest wrote every other page. It stands still while this is done.
func BenchmarkExtents(b *testing.B) {
	const pieces = 1 << 20
	r := zeroRAM{all: []mem.Range{{First: 0, Last: 2*pieces*pageSize - 1}}}
	for i := range uint64(pieces) {
		r.populated = append(r.populated, mem.Range{First: 2 * i * pageSize, Last: (2*i+1)*pageSize - 1})
	}
	for b.Loop() {
		w, err := Create(filepath.Join(b.TempDir(), "snap"))
		if err != nil {
			b.Fatal(err)
		}
		if err := w.CopyRAM(b.Context(), r, nil); err != nil {
			b.Fatal(err)
		}
		w.Abort()
	}
}

// TestPopulatedIn asks for every place around every end, of ranges of memory and of what
// is populated, and compares with a walk of all bytes.
func TestPopulatedIn(t *testing.T) {
	c := &copying{w: &Writer{}, populated: apart([]mem.Range{{First: 25, Last: 27}, {First: 2, Last: 3}, {First: 3, Last: 5}, {First: 9, Last: 9}, {First: 30, Last: 99}})}
	c.w.m.Ranges = []Range{{0, 7, 0}, {9, 9, 8}, {20, 31, 9}}
	if want := []mem.Range{{First: 2, Last: 5}, {First: 9, Last: 9}, {First: 25, Last: 27}, {First: 30, Last: 99}}; !slices.Equal(c.populated, want) {
		t.Errorf("apart: %v", c.populated)
	}
	at := func(offset uint64) (addr uint64, ok bool) {
		for _, r := range c.w.m.Ranges {
			if offset >= r.Offset && offset-r.Offset <= r.Last-r.First {
				return r.First + offset - r.Offset, true
			}
		}
		return 0, false
	}
	for offset := range uint64(24) {
		for n := uint64(1); n < 24; n++ {
			want := false
			for o := offset; o < offset+n; o++ {
				addr, ok := at(o)
				want = want || ok && slices.ContainsFunc(c.populated, func(p mem.Range) bool { return p.First <= addr && addr <= p.Last })
			}
			if got := c.populatedIn(offset, n); got != want {
				t.Errorf("%d bytes at %d: %v", n, offset, got)
			}
		}
	}
}

// TestSweep: what a killed writer left goes, and nothing else.
func TestSweep(t *testing.T) {
	parent := t.TempDir()
	writer := func(name string) *Writer {
		t.Helper()
		w, err := Create(filepath.Join(parent, name))
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	writes, killed, other := writer("mine-1"), writer("mine-2"), writer("theirs")
	defer writes.Abort()
	for _, w := range []*Writer{killed, other} { // as the end of their process would
		w.own.Close()
		w.ram.Close()
	}
	for _, name := range []string{".mine-3.incomplete-x1", "mine-4.incomplete-1", ".mine-5"} {
		if err := os.Mkdir(filepath.Join(parent, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	before := names(t, parent)
	ours := func(name string) bool { return strings.HasPrefix(name, "mine-") }
	if err := Sweep(parent, ours); err != nil {
		t.Error(err)
	}
	want := slices.DeleteFunc(before, func(name string) bool { return name == filepath.Base(killed.temp) })
	if left := names(t, parent); !slices.Equal(left, want) || len(left) != 5 {
		t.Errorf("left %q, want %q", left, want)
	}
	if err := Sweep(filepath.Join(parent, "none"), ours); err == nil {
		t.Error("no directory and no error")
	}
	// What is committed is nobody's to sweep, and no lock of it is left.
	if err := writes.CopyRAM(t.Context(), newRAM(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := writes.Commit(Manifest{}, nil); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(filepath.Join(parent, "mine-1"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := lock(d); err != nil {
		t.Error(err)
	}
}

func names(t *testing.T, dir string) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}
