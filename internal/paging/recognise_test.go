package paging_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
	"nestdbg/internal/paging"
	"nestdbg/internal/paging/pagingtest"
)

// secondStages are the formats whose roots are recognised.
var secondStages = []string{"npt4", "npt5", "ept4", "ept5"}

func recognised(t *testing.T, format string) (*memtest.Memory, *pagingtest.Builder, *paging.Format) {
	t.Helper()
	f, err := paging.ByName(format)
	if err != nil {
		t.Fatal(err)
	}
	m := memtest.NewMemory(mem.Range{First: 0, Last: 0xff_ffff})
	b := pagingtest.New(format, m, pagingtest.NewFrames(mem.Range{First: 0x80_0000, Last: 0xff_ffff}, 7))
	all := b.Express(paging.Read | paging.Write | paging.Exec)
	for i := range uint64(40) {
		b.Map(i<<12, mem.Phys((i*7%40)<<12), 4096, all)
	}
	b.Map(2<<20, 0x20_0000, 2<<20, all)
	return m, b, f
}

func inRAM(a mem.Phys) bool { return a < 0x100_0000 }

func TestRecogniseRoot(t *testing.T) {
	for _, format := range secondStages {
		m, b, f := recognised(t, format)
		for _, a := range append([]mem.Phys{b.Root()}, b.Table(0, f.Levels()-1), b.Table(0, 1), 0x10_0000) {
			page := m.SlicePhys(a, 4096)
			may := f.MayBeRoot(page, 0x100_0000) && f.Survey(m, a, inRAM).Sensible()
			if may != (a == b.Root()) {
				t.Errorf("%s: %#x may be a root: %v, survey %+v", format, a, may, f.Survey(m, a, inRAM))
			}
		}
		s := f.Survey(m, b.Root(), inRAM)
		if s.Leaves != 41 || s.Bytes != 40<<12+2<<20 || s.Outside != 0 || s.Malformed != 0 || s.Cut || len(s.Tables) != f.Levels()-1 {
			t.Errorf("%s: %+v", format, s)
		}
		if f.MayBeRoot(m.SlicePhys(b.Root(), 4096), b.Table(0, f.Levels()-1)) {
			t.Errorf("%s: its table lies beyond RAM", format)
		}
		b.Edit(0, f.Levels(), func(e uint64) uint64 { return 0 })
		if f.MayBeRoot(m.SlicePhys(b.Root(), 4096), 0x100_0000) {
			t.Errorf("%s: it maps nothing", format)
		}
	}
}

// No page of random bytes is a root; the test is bounded on tables that lead anywhere.
func TestRandomIsNoRoot(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	m := memtest.NewMemory(mem.Range{First: 0, Last: 0xff_ffff})
	page := make([]byte, 4096)
	for a := mem.Phys(0); a < 0x100_0000; a += 4096 {
		for i := range page {
			page[i] = byte(r.Uint32())
		}
		if a%8192 == 0 { // and pages whose every entry is a present one
			for i := 0; i < 4096; i += 8 {
				page[i], page[i+3], page[i+4], page[i+5], page[i+6], page[i+7] = 7, 0, 0, 0, 0, 0
			}
		}
		m.Put(a, page)
	}
	for _, format := range secondStages {
		f, _ := paging.ByName(format)
		for a := mem.Phys(0); a < 0x100_0000; a += 4096 {
			if f.MayBeRoot(m.SlicePhys(a, 4096), 0x100_0000) && f.Survey(m, a, inRAM).Sensible() {
				t.Errorf("%s: %#x", format, a)
			}
		}
	}
}

// Every table that the builder made is listed, once, also when tables lead in a circle.
func TestTablePages(t *testing.T) {
	for _, format := range append(secondStages, "x86-4level", "x86-pae", "x86-2level") {
		f, err := paging.ByName(format)
		if err != nil {
			t.Fatal(err)
		}
		m := memtest.NewMemory(mem.Range{First: 0, Last: 0xf_ffff})
		b := pagingtest.New(format, m, pagingtest.NewFrames(mem.Range{First: 0x8_0000, Last: 0xf_ffff}, 3))
		all := b.Express(paging.Read | paging.Write | paging.Exec | paging.User)
		want := []mem.Phys{b.Root()}
		for _, a := range []uint64{0, 0x40_0000, 0x4000_0000} {
			b.Map(a, 0x1000, 4096, all)
			for level := 1; level < f.Levels(); level++ {
				want = append(want, b.Table(a, level))
			}
		}
		slices.Sort(want)
		want = slices.Compact(want)
		if got, complete := f.TablePages(m, b.Root()); !slices.Equal(got, want) || !complete {
			t.Errorf("%s: %#x, want %#x", format, got, want)
		}
		if f.Levels() < 3 || format == "x86-pae" {
			continue
		}
		b.Edit(0, 2, func(e uint64) uint64 { return e&0xfff | uint64(b.Root()) })
		if got, complete := f.TablePages(m, b.Root()); len(got) > len(want) || !complete {
			t.Errorf("%s in a circle: %#x", format, got)
		}
	}
}

func TestDenied(t *testing.T) {
	for _, c := range []struct {
		format string
		level  int
		leaf   bool
		entry  uint64
		want   paging.Perm
	}{
		{"npt4", 1, true, 0x1007, 0},
		{"npt4", 1, true, 0x1005, paging.Write},
		{"npt4", 2, false, 1<<63 | 0x1007, paging.Exec},
		{"ept4", 1, true, 0x1034, paging.Read | paging.Write},
		{"ept4", 3, false, 0x1003, paging.Exec},
		{"x86-4level", 4, false, 0x1003, paging.User},
		{"npt4", 9, false, 0, 0},
	} {
		f, _ := paging.ByName(c.format)
		if got := f.Denied(c.level, c.leaf, c.entry); got != c.want {
			t.Errorf("%s level %d %#x: %v, want %v", c.format, c.level, c.entry, got, c.want)
		}
	}
}
