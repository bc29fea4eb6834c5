package pagingtest_test

import (
	"bytes"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
	"nestdbg/internal/paging"
	"nestdbg/internal/paging/pagingtest"
)

// TestEntries compares what the builder writes with entries worked out by hand.
func TestEntries(t *testing.T) {
	const r, w, x, u = paging.Read, paging.Write, paging.Exec, paging.User
	for _, c := range []struct {
		format string
		size   uint64
		phys   mem.Phys
		perm   paging.Perm
		level  int
		leaf   uint64
		table  uint64 // the entry above, or 0
	}{
		{"x86-4level", 1 << 12, 0x1234_5000, r | w | x | u, 1, 0x1234_5007, 0x4007},
		{"x86-4level", 1 << 12, 0x1234_5000, r, 1, 0x8000_0000_1234_5001, 0x4007},
		{"x86-5level", 1 << 21, 0x1220_0000, r | x, 2, 0x1220_0081, 0x4007},
		{"x86-pae", 1 << 21, 0x1220_0000, r | x, 2, 0x1220_0081, 0x2001},
		{"x86-2level-pse", 1 << 22, 0xab_1200_0000, r | w | x, 2, 0x1215_6083, 0},
		{"npt4", 1 << 30, 0x4000_0000, r | x, 3, 0x4000_0085, 0x2007},
		{"ept4", 1 << 12, 0x1234_5000, r | w, 1, 0x1234_5033, 0x4007},
		{"ept4-mbec", 1 << 21, 0x1220_0000, r | paging.UserExec, 2, 0x1220_04b1, 0x3407},
	} {
		m := memtest.NewMemory()
		b := pagingtest.New(c.format, m, pagingtest.NewFrames(mem.Range{First: 0x1000, Last: 0xffff}, 0))
		b.Map(0, c.phys, c.size, c.perm)
		if got := b.Entry(0, c.level); got != c.leaf {
			t.Errorf("%s: leaf %#x, want %#x", c.format, got, c.leaf)
		}
		if c.table == 0 {
			continue
		}
		if got := b.Entry(0, c.level+1); got&^0xf000 != c.table&^0xf000 || mem.Phys(got&0xf000) != b.Table(0, c.level) {
			t.Errorf("%s: table entry %#x, want %#x", c.format, got, c.table)
		}
	}
}

func TestMisuse(t *testing.T) {
	b := pagingtest.New("ept4", memtest.NewMemory(), pagingtest.NewFrames(mem.Range{First: 0x1000, Last: 0xffff}, 0))
	for name, do := range map[string]func(){
		"address not aligned": func() { b.Map(8, 0, 4096, paging.Read) },
		"frame not aligned":   func() { b.Map(0, 8, 4096, paging.Read) },
		"no such size":        func() { b.Map(0, 0, 8192, paging.Read) },
		"write without read":  func() { b.Map(0, 0, 4096, paging.Write) },
		"no such table":       func() { b.Table(1<<40, 1) },
		"no such format":      func() { pagingtest.New("vax", memtest.NewMemory(), nil) },
		"no frames":           func() { (&pagingtest.Frames{}).Take() },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: accepted", name)
				}
			}()
			do()
		}()
	}
}

// TestFrames: every page once, in whatever order.
func TestFrames(t *testing.T) {
	for _, seed := range []uint64{0, 1} {
		f := pagingtest.NewFrames(mem.Range{First: 0x1000, Last: 0x10_0fff}, seed)
		seen := map[mem.Phys]bool{}
		ascending := true
		last := mem.Phys(0)
		for range 256 {
			a := f.Take()
			if a%4096 != 0 || a < 0x1000 || a > 0x10_0000 || seen[a] {
				t.Fatalf("frame %#x", a)
			}
			ascending = ascending && a > last
			seen[a], last = true, a
		}
		if ascending != (seed == 0) {
			t.Errorf("seed %d: ascending is %v", seed, ascending)
		}
	}
}

// TestGuest writes through the builder's own view and finds it in the frames.
func TestGuest(t *testing.T) {
	m := memtest.NewMemory()
	b := pagingtest.New("npt4", m, pagingtest.NewFrames(mem.Range{First: 0x1000, Last: 0xf_ffff}, 3))
	g := b.Guest()
	text := bytes.Repeat([]byte("nested"), 1000)
	if n, err := g.WritePhys(text, 0x7f_f123); n != len(text) || err != nil {
		t.Fatal(n, err)
	}
	got := make([]byte, len(text))
	if n, err := g.ReadPhys(got, 0x7f_f123); n != len(text) || err != nil || !bytes.Equal(got, text) {
		t.Fatal(n, err)
	}
	phys, leaf, ok := b.Lookup(0x80_0000)
	if !ok || leaf.Size != 4096 || leaf.Addr != 0x80_0000 || len(b.Leaves()) != 2 {
		t.Fatalf("%#x %+v %v, %d leaves", phys, leaf, ok, len(b.Leaves()))
	}
	if b := m.SlicePhys(phys, 6); !bytes.Equal(b, text[0x80_0000-0x7f_f123:][:6]) {
		t.Errorf("frame holds %q", b)
	}
}
