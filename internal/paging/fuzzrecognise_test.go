package paging

import (
	"encoding/binary"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
)

// FuzzRecognise surveys tables made of arbitrary bytes, which may lead to each other: it
// ends, and what it lists are pages.
func FuzzRecognise(f *testing.F) {
	word := func(words ...uint64) (b []byte) {
		for _, w := range words {
			b = binary.LittleEndian.AppendUint64(b, w)
		}
		return b
	}
	f.Add(uint8(0), word(0x2007, 0, 0x3007))
	f.Add(uint8(1), word(0x1007, 0x2037, 0x30b7, 1<<63))
	f.Add(uint8(2), word(0x2067, 0x80000000000030a7))
	f.Fuzz(func(t *testing.T, which uint8, bytes []byte) {
		format := Formats()[int(which)%len(Formats())]
		m := memtest.NewMemory(mem.Range{First: 0x1000, Last: 0x4fff})
		if len(bytes) > 0 {
			ram := make([]byte, 0x4000)
			for n := 0; n < len(ram); {
				n += copy(ram[n:], bytes)
			}
			m.Put(0x1000, ram)
		}
		format.MayBeRoot(m.SlicePhys(0x1000, 4096), 0x5000)
		s := format.Survey(m, 0x1000, func(a mem.Phys) bool { return a >= 0x1000 && a < 0x5000 })
		if len(s.Tables) > 4*format.Levels()+s.Malformed || s.Sensible() && s.Bytes == 0 {
			t.Fatalf("%+v", s)
		}
		pages, complete := format.TablePages(m, 0x1000)
		if !complete || len(pages) > 8 {
			t.Fatalf("%#x, complete %v", pages, complete)
		}
		for level := range 6 {
			for _, leaf := range []bool{false, true} {
				format.Denied(level, leaf, binary.LittleEndian.Uint64(append(bytes, make([]byte, 8)...)))
			}
		}
	})
}
