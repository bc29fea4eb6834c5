package paging

import (
	"encoding/binary"
	"errors"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
)

// FuzzWalk walks tables made of arbitrary bytes: four pages of RAM at 0x1000, the
// bytes repeated to fill them. Walk, Space and Ranges must agree, and must end.
func FuzzWalk(f *testing.F) {
	entry := func(words ...uint64) []byte {
		var b []byte
		for _, w := range words {
			b = binary.LittleEndian.AppendUint64(b, w)
		}
		return b
	}
	f.Add(uint8(0), uint64(0x1234), entry(0x1007))
	f.Add(uint8(1), ^uint64(0), entry(0x2007, 0x3087, 0x8000_0000_0000_4003, 0))
	f.Add(uint8(2), uint64(0xffff_ffff), entry(0x1001, 0x2001, 0x7ff0_0000_0000_2001))
	f.Add(uint8(4), uint64(0x40_0000), entry(0x2007_0000_1087))
	f.Add(uint8(8), uint64(0x5000), entry(0x1007, 0x3037, 0x40b7, 0x2006))
	f.Add(uint8(12), uint64(0x5000), entry(0x1007, 1<<51|7, 1<<63, 0x20b7))
	f.Fuzz(func(t *testing.T, which uint8, addr uint64, bytes []byte) {
		formats := Formats()
		format := formats[int(which)%len(formats)]
		m := memtest.NewMemory(mem.Range{First: 0x1000, Last: 0x4fff})
		if len(bytes) > 0 {
			ram := make([]byte, 0x4000)
			for n := 0; n < len(ram); {
				n += copy(ram[n:], bytes)
			}
			m.Put(0x1000, ram)
		}
		checkWalk(t, format, m, addr)
	})
}

func checkWalk(t *testing.T, f *Format, m *memtest.Memory, addr uint64) {
	t.Helper()
	tr, err := f.Walk(m, 0x1000, addr)
	s := NewSpace("s", f, m, 0x1000)
	phys, n, spaceErr := s.Translate(addr)
	var nm *NotMappedError
	switch {
	case err == nil && (spaceErr != nil || phys != tr.Phys || n != tr.PageSize-addr%tr.PageSize):
		t.Fatalf("walk to %#x, space to %#x, %#x bytes, %v", tr.Phys, phys, n, spaceErr)
	case err != nil && (!errors.As(err, &nm) || !errors.As(spaceErr, &nm) || !errors.Is(spaceErr, mem.ErrFault)):
		t.Fatalf("walk: %v, space: %v", err, spaceErr)
	case len(tr.Steps) > f.Levels():
		t.Fatalf("%d steps", len(tr.Steps))
	}
	for _, step := range tr.Steps {
		f.Flags(step.Level, step.Leaf, step.Entry)
	}
	var p [2 * 4096]byte
	if got, err := s.ReadPhys(p[:], mem.Phys(addr)); got < len(p) && err == nil {
		t.Fatalf("%d bytes without an error", got)
	}
	checkList(t, s, addr, tr, err == nil)
}

// checkList requires the listing of one address to say what the walk said.
func checkList(t *testing.T, s *Space, addr uint64, tr Translation, mapped bool) {
	t.Helper()
	found := false
	for m, err := range s.Ranges(mem.Range{First: addr, Last: addr}) {
		if err != nil {
			continue
		}
		if found || m.First != addr || m.Size != 1 || m.Phys != tr.Phys || m.Perm != tr.Perm {
			t.Fatalf("listed %+v, walked to %+v", m, tr)
		}
		found = true
	}
	if found != mapped {
		t.Fatalf("listed: %v, mapped: %v", found, mapped)
	}
	count := 0
	last := addr
	for m := range Merge(s.format.ranges(s.reader, s.root, mem.Range{First: addr, Last: ^uint64(0)}, 100)) {
		if m.First < last {
			t.Fatalf("%#x after %#x", m.First, last)
		}
		last = m.First
		if count++; count > 2000 {
			break
		}
	}
}
