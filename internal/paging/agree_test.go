package paging_test

import (
	"math/rand/v2"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
	"nestdbg/internal/paging"
	"nestdbg/internal/paging/pagingtest"
)

// tabled is every format that has tables.
func tabled() []*paging.Format {
	var out []*paging.Format
	for _, f := range paging.Formats() {
		if f.Levels() > 0 {
			out = append(out, f)
		}
	}
	return out
}

const allPerms = paging.Read | paging.Write | paging.Exec | paging.User | paging.UserExec

// below1G is where tests keep their tables.
var below1G = mem.Range{First: 0x10_0000, Last: 0x3fff_ffff}

// someFrames is enough of them for most tests.
func someFrames(seed uint64) *pagingtest.Frames {
	return pagingtest.NewFrames(mem.Range{First: 0x10_0000, Last: 0x4f_ffff}, seed)
}

// canonical makes an address that the format can translate out of any number.
func canonical(f *paging.Format, a uint64) uint64 {
	up := 64 - f.AddrBits()
	if f.Signed {
		return uint64(int64(a<<up) >> up)
	}
	return a << up >> up
}

// fill maps count random pages of all sizes and permissions, in a few clusters so
// that they share tables.
func fill(f *paging.Format, b *pagingtest.Builder, r *rand.Rand, count int) {
	sizes := b.PageSizes()
	base := uint64(0)
	for i := range count {
		if i%8 == 0 {
			base = r.Uint64()
		}
		size := sizes[r.IntN(len(sizes))]
		addr := canonical(f, base+uint64(r.IntN(64))*size) &^ (size - 1)
		physBits := uint(51)
		if f.EntrySize == 4 {
			physBits = 32
			if size > 4096 {
				physBits = 40
			}
		}
		if clash(b, addr, size) {
			continue
		}
		phys := r.Uint64() >> (64 - physBits) &^ (size - 1)
		b.Map(addr, mem.Phys(phys), size, b.Express(paging.Perm(r.IntN(int(allPerms)+1))))
	}
}

// clash reports whether a page would cover one that is mapped, or be covered.
func clash(b *pagingtest.Builder, addr, size uint64) bool {
	for _, l := range b.Leaves() {
		if l.Addr <= addr+(size-1) && addr <= l.Addr+(l.Size-1) {
			return true
		}
	}
	return false
}

func TestWalkAgreesWithBuilder(t *testing.T) {
	for _, f := range tabled() {
		t.Run(f.Name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			m := memtest.NewMemory(below1G)
			b := pagingtest.New(f.Name, m, someFrames(7))
			fill(f, b, r, 200)
			s := paging.NewSpace("test", f, m, b.Root())
			for _, l := range b.Leaves() {
				for _, off := range []uint64{0, 1, l.Size / 2, l.Size - 1} {
					tr, err := f.Walk(m, b.Root(), l.Addr+off)
					if err != nil {
						t.Fatalf("%#x+%#x: %v", l.Addr, off, err)
					}
					if tr.Phys != l.Phys+mem.Phys(off) || tr.PageSize != l.Size || tr.Perm != l.Perm {
						t.Errorf("%#x+%#x = %#x size %#x %v, want %#x %#x %v", l.Addr, off,
							tr.Phys, tr.PageSize, tr.Perm, l.Phys+mem.Phys(off), l.Size, l.Perm)
					}
					phys, n, err := s.Translate(l.Addr + off)
					if err != nil || phys != tr.Phys || n != l.Size-off {
						t.Errorf("Translate(%#x+%#x) = %#x, %#x, %v", l.Addr, off, phys, n, err)
					}
				}
			}
		})
	}
}

func TestRangesAgreeWithBuilder(t *testing.T) {
	for _, f := range tabled() {
		t.Run(f.Name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(3, 4))
			m := memtest.NewMemory(below1G)
			b := pagingtest.New(f.Name, m, someFrames(7))
			fill(f, b, r, 200)
			var got []pagingtest.Leaf
			for m, err := range f.Ranges(m, b.Root(), mem.Range{First: 0, Last: ^uint64(0)}) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, pagingtest.Leaf{Addr: m.First, Phys: m.Phys, Size: m.Size, Perm: m.Perm})
			}
			want := b.Leaves()
			if len(got) != len(want) {
				t.Fatalf("%d leaves, want %d", len(got), len(want))
			}
			for i := range got {
				if got[i] != want[i] {
					t.Errorf("leaf %d: %+v, want %+v", i, got[i], want[i])
				}
			}
		})
	}
}
