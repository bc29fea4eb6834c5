package vmstate

import (
	"bytes"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/vmstate/vmstatetest"
)

func FuzzParse(f *testing.F) {
	f.Add(small().Bytes())
	f.Add(vmstatetest.NewMigration("pc", "x-ignore-shared").Piece(1, "ram", 4, ramList("pc.ram", 1<<20)).
		Piece(3, "ram", 4, ramEnd()).Section("cpu", 0, 12, vmstatetest.CPU(nil)).
		Description(`{"page_size":4096,"devices":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Parse(b, arch.X86)
		if (s == nil) == (err == nil) {
			t.Fatalf("state %v with error %v", s, err)
		}
		if d, err := ParseDescription(b); (d == nil) == (err == nil) {
			t.Fatalf("description %v with error %v", d, err)
		}
		if s == nil {
			return
		}
		known := false
		for _, r := range s.CPUs {
			known = known || r != nil
		}
		if !known {
			t.Fatal("no CPU and no error")
		}
		// Sections follow each other without a gap up to the end of the stream.
		for i, c := range s.Sections {
			end := c.Offset + len(c.Payload)
			if !footerAt(b, end, c.ID) || !bytes.Equal(b[c.Offset:end], c.Payload) {
				t.Fatalf("section %d at %#x has no footer at %#x", i, c.Offset, end)
			}
			if i+1 == len(s.Sections) {
				if !isEnd(b, end+footerSize) {
					t.Fatalf("the last section ends at %#x of %#x", end, len(b))
				}
				continue
			}
			if h, ok := parseSectionHeader(b, end+footerSize); !ok || h.payload != s.Sections[i+1].Offset {
				t.Fatalf("section %d ends at %#x, the next is at %#x", i, end, s.Sections[i+1].Offset)
			}
		}
	})
}

func BenchmarkParse(b *testing.B) {
	s := stream(b, "l2.xen")
	b.SetBytes(int64(len(s)))
	for b.Loop() {
		if _, err := Parse(s, arch.X86); err != nil {
			b.Fatal(err)
		}
	}
}
