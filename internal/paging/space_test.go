package paging_test

import (
	"bytes"
	"errors"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
	"nestdbg/internal/paging"
	"nestdbg/internal/paging/pagingtest"
)

func TestSpaceAccessors(t *testing.T) {
	s := paging.NewSpace("va of vm0", paging.X86PAE, memtest.NewMemory(), 0x1020)
	if s.Name() != "va of vm0" || s.Format() != paging.X86PAE || s.Root() != 0x1020 {
		t.Errorf("%q %v %#x", s.Name(), s.Format().Name, s.Root())
	}
}

// TestRootOutsideRAM asks for an address whose root table is nowhere.
func TestRootOutsideRAM(t *testing.T) {
	m := memtest.NewMemory(mem.Range{First: 0, Last: 0xffff})
	for _, f := range tabled() {
		for _, root := range []mem.Phys{0x1_0000, 0xf_ffff_ffff_f000, 0xffff_ffff_ffff_f000} {
			s := paging.NewSpace("s", f, m, root)
			n, err := s.ReadPhys(make([]byte, 8), 0x1000)
			var nm *paging.NotMappedError
			if n != 0 || !errors.As(err, &nm) || nm.Cause != paging.Unreadable || nm.Level != f.Levels() ||
				!errors.Is(err, mem.ErrNoRAM) || blamed(err) != "s/test memory" {
				t.Errorf("%s, root %#x: %d, %v", f.Name, root, n, err)
			}
			count := 0
			for m, err := range s.Ranges(everything) {
				count++
				if m.First != 0 || !errors.Is(err, mem.ErrNoRAM) || !errors.As(err, &nm) {
					t.Errorf("%s: Ranges: %+v, %v", f.Name, m, err)
				}
			}
			if count != 1 {
				t.Errorf("%s: %d errors from Ranges", f.Name, count)
			}
		}
	}
}

// TestPartlyUnreadableTable has RAM end within a table: its readable entries count.
func TestPartlyUnreadableTable(t *testing.T) {
	ram := make([]byte, 0x3000-0x800)
	image, err := mem.NewImage([]mem.Segment{{Base: 0, Data: ram}})
	if err != nil {
		t.Fatal(err)
	}
	w := writable{image, ram}
	b := pagingtest.New("x86-2level", w, pagingtest.NewFrames(mem.Range{First: 0x1000, Last: 0x2fff}, 0))
	b.Map(0x40_0000, 0x1000, 4096, paging.Read|paging.Exec)
	b.Map(0x5f_f000, 0x0000, 4096, paging.Read|paging.Exec) // the last entry in RAM
	s := paging.NewSpace("s", paging.X86TwoLevel, w, b.Root())
	for _, addr := range []uint64{0x40_0000, 0x5f_f000} {
		want, _, _ := b.Lookup(addr)
		if phys, _, err := s.Translate(addr); err != nil || phys != want {
			t.Errorf("%#x = %#x, %v", addr, phys, err)
		}
	}
	if _, _, err := s.Translate(0x60_0000); !errors.Is(err, mem.ErrNoRAM) {
		t.Errorf("beyond RAM: %v", err)
	}
	var firsts []uint64
	var failed []paging.Mapping
	for m, err := range s.Ranges(everything) {
		if err != nil {
			failed = append(failed, m)
		} else {
			firsts = append(firsts, m.First)
		}
	}
	if len(firsts) != 2 || len(failed) != 1 || failed[0].First != 0x60_0000 || failed[0].Last() != 0x7f_ffff {
		t.Errorf("Ranges: %#x and errors for %+v", firsts, failed)
	}
}

// TestWrap reads over the end of the address space.
func TestWrap(t *testing.T) {
	for _, size := range []int{16, 3 * 4096} {
		m := memtest.NewMemory()
		b := pagingtest.New("x86-4level", m, someFrames(0))
		b.Map(^uint64(0)-4095, 0x8000_0000, 4096, paging.Read|paging.User)
		b.Map(0, 0x8000_1000, 4096, paging.Read|paging.User)
		s := paging.NewSpace("s", paging.X86FourLevel, m, b.Root())
		n, err := s.ReadVirt(make([]byte, size), ^mem.Virt(0)-7)
		if n != 8 || !errors.Is(err, mem.ErrFault) {
			t.Errorf("%d bytes: %d, %v", size, n, err)
		}
		if _, err := s.ReadVirt(make([]byte, 8), ^mem.Virt(0)-7); err != nil {
			t.Error(err)
		}
	}
}

// TestFlush changes tables behind the space's back.
func TestFlush(t *testing.T) {
	for _, c := range []struct {
		name   string
		hide   func(m *memtest.Memory) mem.PhysReader
		sliced bool
	}{
		{"sliced", func(m *memtest.Memory) mem.PhysReader { return m }, true},
		{"copied", func(m *memtest.Memory) mem.PhysReader { return noSlices{m} }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := memtest.NewMemory()
			b := pagingtest.New("x86-4level", m, someFrames(0))
			all := paging.Read | paging.Write | paging.Exec | paging.User
			b.Map(0x1000, 0x8000_0000, 4096, all)
			s := paging.NewSpace("s", paging.X86FourLevel, c.hide(m), b.Root())
			check := func(addr uint64, want mem.Phys) {
				t.Helper()
				if got, _, err := s.Translate(addr); err != nil || got != want {
					t.Errorf("%#x = %#x, %v, want %#x", addr, got, err, want)
				}
			}
			check(0x1000, 0x8000_0000)
			// What was not mapped is never remembered: the walk finds it.
			b.Map(0x2000, 0x9000_0000, 4096, all)
			check(0x2000, 0x9000_0000)
			// A changed entry shows at once if tables are not copied, else after Flush.
			b.Map(0x1000, 0xa000_0000, 4096, all)
			if c.sliced {
				check(0x1000, 0xa000_0000)
			} else {
				check(0x1000, 0x8000_0000)
			}
			s.Flush()
			check(0x1000, 0xa000_0000)
			// A new table in place of an old one shows after Flush.
			at := pagingtest.New("x86-4level", m, pagingtest.NewFrames(mem.Range{First: 0x60_0000, Last: 0x6f_ffff}, 0))
			at.Map(0x1000, 0xb000_0000, 4096, all)
			b.Edit(0x1000, 2, func(uint64) uint64 { return at.Entry(0x1000, 2) })
			s.Flush()
			check(0x1000, 0xb000_0000)
		})
	}
}

// TestCacheCosts counts reads: a cached table is not fetched again, and one that
// was fetched serves all its entries.
func TestCacheCosts(t *testing.T) {
	m := memtest.NewMemory()
	b := pagingtest.New("x86-5level", m, someFrames(0))
	for i := range uint64(512) {
		b.Map(i*4096, mem.Phys(0x8000_0000+i*8192), 4096, paging.Read|paging.Exec)
	}
	r := memtest.NewCounting(m)
	s := paging.NewSpace("s", paging.X86FiveLevel, r, b.Root())
	for i := range uint64(512) {
		if _, _, err := s.Translate(i * 4096); err != nil {
			t.Fatal(err)
		}
	}
	if r.Reads() != 5 || r.Bytes() != 5*4096 {
		t.Errorf("%d reads of %d bytes, want 5 of a page", r.Reads(), r.Bytes())
	}
	if _, err := s.ReadPhys(make([]byte, 16), 0xff8); err != nil || r.Reads() != 7 {
		t.Errorf("%d reads with two of data, %v", r.Reads(), err)
	}
}

// TestTranslateLarge checks the bytes to the end of a large leaf, and a read across it.
func TestTranslateLarge(t *testing.T) {
	m := memtest.NewMemory()
	b := pagingtest.New("npt4", m, someFrames(0))
	b.Map(0, 0x40_0000_0000, 1<<30, paging.Read|paging.Write|paging.Exec)
	b.Map(1<<30, 0x50_0000_0000, 1<<21, paging.Read|paging.Write|paging.Exec)
	m.PutUint64(0x40_3fff_fff8, 0x1111)
	m.PutUint64(0x50_0000_0000, 0x2222)
	s := paging.NewSpace("s", paging.NPTFourLevel, m, b.Root())
	phys, n, err := s.Translate(0x1234)
	if phys != 0x40_0000_1234 || n != 1<<30-0x1234 || err != nil {
		t.Errorf("%#x, %#x, %v", phys, n, err)
	}
	var p [16]byte
	if _, err := s.ReadPhys(p[:], 0x3fff_fff8); err != nil || p[0] != 0x11 || p[8] != 0x22 {
		t.Errorf("% x, %v", p, err)
	}
	for range 2 { // the second time from the cache
		if _, n, err := s.Translate(1<<30 + 0x1f_fff0); n != 16 || err != nil {
			t.Errorf("%#x, %v", n, err)
		}
	}
	if b := s.SlicePhys(0, 0); len(b) != 0 {
		t.Error("a slice of no bytes")
	}
	if n, err := s.ReadPhys(nil, 1<<60); n != 0 || err != nil {
		t.Errorf("reading nothing: %d, %v", n, err)
	}
}

// TestLargeOverSmall has a page of 2 MiB in the guest on scattered small ones below,
// which end in its midst.
func TestLargeOverSmall(t *testing.T) {
	const pages = 70
	m := memtest.NewMemory(mem.Range{First: 0, Last: 0xff_ffff})
	npt := pagingtest.New("npt4", m, pagingtest.NewFrames(mem.Range{First: 0, Last: 0xff_ffff}, 9))
	l2 := npt.Guest()
	guest := pagingtest.New("x86-4level", l2, someFrames(0))
	guest.Map(0x4000_0000, 0x4000_0000, 1<<21, paging.Read|paging.User)
	var text []byte
	for i := range pages * 4096 {
		text = append(text, byte(i>>12+i))
	}
	if _, err := l2.WritePhys(text, 0x4000_0000); err != nil {
		t.Fatal(err)
	}
	second := paging.NewSpace("npt", paging.NPTFourLevel, m, npt.Root())
	va := paging.NewSpace("va", paging.X86FourLevel, second, guest.Root())
	for _, size := range []int{1, 4096, 4097, 17 * 4096, len(text) - 100} {
		p := make([]byte, size)
		if n, err := va.ReadVirt(p, 0x4000_0064); n != size || err != nil || !bytes.Equal(p, text[100:100+size]) {
			t.Errorf("%d bytes: %d, %v", size, n, err)
		}
	}
	p := make([]byte, 1<<21)
	n, err := va.ReadVirt(p, 0x4000_0000)
	var fault *mem.FaultError
	if n != len(text) || !bytes.Equal(p[:n], text) || !errors.As(err, &fault) ||
		fault.Addr != 0x4000_0000+uint64(n) || blamed(err) != "va/npt" {
		t.Errorf("%d, %v", n, err)
	}
}

// TestRAMEndsInLeaf has a leaf half of which is RAM.
func TestRAMEndsInLeaf(t *testing.T) {
	for name, hide := range map[string]func(m mem.PhysReader) mem.PhysReader{
		"sliced": func(m mem.PhysReader) mem.PhysReader { return m },
		"read":   func(m mem.PhysReader) mem.PhysReader { return noSlices{m} },
	} {
		m := memtest.NewMemory(mem.Range{First: 0, Last: 0x70_0fff})
		b := pagingtest.New("x86-4level", m, someFrames(0))
		b.Map(0x40_0000, 0x60_0000, 1<<21, paging.Read|paging.User)
		s := paging.NewSpace("s", paging.X86FourLevel, hide(m), b.Root())
		n, err := s.ReadVirt(make([]byte, 0x2000), 0x50_0010)
		var fault *mem.FaultError
		if n != 0xff0 || !errors.As(err, &fault) || fault.Addr != 0x50_1000 || blamed(err) != "s/test memory" {
			t.Errorf("%s: %#x bytes, %v", name, n, err)
		}
	}
}
