package snapshot

import (
	"path/filepath"
	"slices"
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
