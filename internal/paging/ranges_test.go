package paging_test

import (
	"errors"
	"iter"
	"math/rand/v2"
	"slices"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
	"nestdbg/internal/paging"
	"nestdbg/internal/paging/pagingtest"
)

// outcome is one element of a listing.
type outcome struct {
	paging.Mapping
	failed bool
}

func collect(seq iter.Seq2[paging.Mapping, error]) []outcome {
	var out []outcome
	for m, err := range seq {
		out = append(out, outcome{m, err != nil})
	}
	return out
}

// TestRangesAgreeWithWalk lists random windows and walks to both ends of each
// mapping and of each gap.
func TestRangesAgreeWithWalk(t *testing.T) {
	for _, f := range tabled() {
		t.Run(f.Name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(11, 12))
			m := memtest.NewMemory(below1G)
			b := pagingtest.New(f.Name, m, someFrames(7))
			fill(f, b, r, 100)
			leaves := b.Leaves()
			for range 50 {
				x, y := leaves[r.IntN(len(leaves))], leaves[r.IntN(len(leaves))]
				in := mem.Range{First: x.Addr + r.Uint64N(x.Size), Last: y.Addr + r.Uint64N(y.Size)}
				if in.First > in.Last {
					in.First, in.Last = in.Last, in.First
				}
				checkWindow(t, f, m, b, in)
			}
		})
	}
}

func checkWindow(t *testing.T, f *paging.Format, m mem.PhysReader, b *pagingtest.Builder, in mem.Range) {
	t.Helper()
	next := in.First
	for got, err := range f.Ranges(m, b.Root(), in) {
		if err != nil {
			t.Fatal(err)
		}
		if got.First < next || got.Last() > in.Last || got.Last() < got.First {
			t.Fatalf("%v: %+v is not in order or not in the window", in, got)
		}
		if got.First > next {
			for _, a := range []uint64{next, got.First - 1} {
				if tr, err := f.Walk(m, b.Root(), a); err == nil {
					t.Fatalf("%v: %#x is in a gap but maps to %#x", in, a, tr.Phys)
				}
			}
		}
		for _, a := range []uint64{got.First, got.Last()} {
			tr, err := f.Walk(m, b.Root(), a)
			if err != nil || tr.Phys != got.Phys+mem.Phys(a-got.First) || tr.Perm != got.Perm {
				t.Fatalf("%v: %+v, but %#x walks to %#x %v, %v", in, got, a, tr.Phys, tr.Perm, err)
			}
		}
		next = got.Last() + 1
	}
}

// TestRangesCut lists parts of one leaf and what is beside it.
func TestRangesCut(t *testing.T) {
	o := mapOne(paging.X86FourLevel, 2)
	a := o.addr
	for _, c := range []struct {
		in          mem.Range
		first, size uint64 // size 0: nothing
	}{
		{mem.Range{First: a, Last: a + 0x1f_ffff}, a, 1 << 21},
		{mem.Range{First: 0, Last: ^uint64(0)}, a, 1 << 21},
		{mem.Range{First: a + 5, Last: a + 5}, a + 5, 1},
		{mem.Range{First: a - 1, Last: a}, a, 1},
		{mem.Range{First: a + 0x1f_ffff, Last: ^uint64(0)}, a + 0x1f_ffff, 1},
		{mem.Range{First: a + 1<<21, Last: ^uint64(0)}, 0, 0},
		{mem.Range{First: 0, Last: a - 1}, 0, 0},
		{mem.Range{First: a + 5, Last: a + 4}, 0, 0},
		{mem.Range{First: 1 << 47, Last: 1 << 62}, 0, 0}, // addresses that do not exist
	} {
		got := collect(o.format.Ranges(o.memory, o.tables.Root(), c.in))
		if c.size == 0 {
			if len(got) != 0 {
				t.Errorf("%v: %+v", c.in, got)
			}
			continue
		}
		want := outcome{Mapping: paging.Mapping{First: c.first, Phys: onePhys + mem.Phys(c.first-a),
			Size: c.size, Perm: allPerms &^ paging.UserExec}}
		if len(got) != 1 || got[0] != want {
			t.Errorf("%v: %+v, want %+v", c.in, got, want)
		}
	}
}

// TestRangesGoOn loses a table in the middle, and one for good.
func TestRangesGoOn(t *testing.T) {
	m := memtest.NewMemory(below1G)
	b := pagingtest.New("npt4", m, someFrames(0))
	perm := paging.Read | paging.Write
	for i := range uint64(3) {
		b.Map(i<<21, 0x1000, 4096, perm)
	}
	b.Edit(1<<21, 2, func(e uint64) uint64 { return e | 1<<50 }) // points out of RAM
	seq := paging.NPTFourLevel.Ranges(m, b.Root(), mem.Range{First: 0, Last: 3<<21 - 1})
	want := []outcome{
		{paging.Mapping{First: 0, Phys: 0x1000, Size: 4096, Perm: perm}, false},
		{paging.Mapping{First: 1 << 21, Size: 1 << 21}, true},
		{paging.Mapping{First: 2 << 21, Phys: 0x1000, Size: 4096, Perm: perm}, false},
	}
	if got := collect(seq); !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	for _, err := range seq {
		var nm *paging.NotMappedError
		if err != nil && (!errors.As(err, &nm) || nm.Level != 1 || len(nm.Steps) != 3 ||
			nm.Addr != 1<<21 || nm.Steps[2].At != b.EntryAt(1<<21, 2)) {
			t.Errorf("%v with %+v", err, nm)
		}
	}
	// Whoever has enough stops.
	for n := range want {
		count := 0
		for range seq {
			if count++; count > n {
				break
			}
		}
	}
	// A connection that broke does not get better at the next table.
	broken := errors.New("the connection broke")
	got := collect(paging.NPTFourLevel.Ranges(memtest.FailNthWith(m, 3, broken), b.Root(), everything))
	if len(got) != 1 || !got[0].failed {
		t.Errorf("%+v", got)
	}
}

// TestLoops has tables that are their own entries.
func TestLoops(t *testing.T) {
	m := memtest.NewMemory(below1G)
	for i := range mem.Phys(512) {
		m.PutUint64(0x10_0000+8*i, 0x10_0007)
	}
	for _, f := range []*paging.Format{paging.X86FiveLevel, paging.NPTFiveLevel, paging.EPTFiveLevel} {
		tr, err := f.Walk(m, 0x10_0000, 0x1234)
		if err != nil || tr.Phys != 0x10_0234 || len(tr.Steps) != 5 {
			t.Errorf("%s: %+v, %v", f.Name, tr, err)
		}
		// Every page there is maps to the table; a listing of some ends by itself.
		n := 0
		for range f.Ranges(m, 0x10_0000, mem.Range{First: 0, Last: 1<<30 - 1}) {
			n++
		}
		if n != 1<<18 {
			t.Errorf("%s: %d pages", f.Name, n)
		}
	}
}

func TestMerge(t *testing.T) {
	bad := errors.New("bad")
	type element struct {
		m   paging.Mapping
		err error
	}
	rw, r := paging.Read|paging.Write, paging.Read
	seq := func(in ...element) iter.Seq2[paging.Mapping, error] {
		return func(yield func(paging.Mapping, error) bool) {
			for _, e := range in {
				if !yield(e.m, e.err) {
					return
				}
			}
		}
	}
	at := func(first uint64, phys mem.Phys, pages uint64, p paging.Perm) element {
		return element{m: paging.Mapping{First: first, Phys: phys, Size: pages << 12, Perm: p}}
	}
	hole := element{m: paging.Mapping{First: 0x3000, Size: 0x1000}, err: bad}
	for _, c := range []struct{ in, want []element }{
		{nil, nil},
		{[]element{at(0, 0x1000, 1, r)}, []element{at(0, 0x1000, 1, r)}},
		{[]element{at(0, 0x1000, 1, r), at(0x1000, 0x2000, 2, r), at(0x3000, 0x4000, 1, r)},
			[]element{at(0, 0x1000, 4, r)}},
		{[]element{at(0, 0x1000, 1, r), at(0x1000, 0x2000, 1, rw)},
			[]element{at(0, 0x1000, 1, r), at(0x1000, 0x2000, 1, rw)}},
		{[]element{at(0, 0x1000, 1, r), at(0x1000, 0x3000, 1, r)},
			[]element{at(0, 0x1000, 1, r), at(0x1000, 0x3000, 1, r)}},
		{[]element{at(0, 0x1000, 1, r), at(0x2000, 0x2000, 1, r)},
			[]element{at(0, 0x1000, 1, r), at(0x2000, 0x2000, 1, r)}},
		{[]element{at(0x2000, 0x1000, 1, r), hole, at(0x4000, 0x2000, 1, r)},
			[]element{at(0x2000, 0x1000, 1, r), hole, at(0x4000, 0x2000, 1, r)}},
		{[]element{hole, hole}, []element{hole, hole}},
		{[]element{at(^uint64(0)-0x1fff, 0, 1, r), at(^uint64(0)-0xfff, 0x1000, 1, r)},
			[]element{at(^uint64(0)-0x1fff, 0, 2, r)}},
	} {
		var got []element
		for m, err := range paging.Merge(seq(c.in...)) {
			got = append(got, element{m, err})
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%+v -> %+v, want %+v", c.in, got, c.want)
		}
		for n := range got {
			count := 0
			for range paging.Merge(seq(c.in...)) {
				if count++; count > n {
					break
				}
			}
		}
	}
}
