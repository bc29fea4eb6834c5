package vmx

import (
	"encoding/binary"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
	"nestdbg/internal/vmx/vmxtest"
)

// FuzzAssess looks at pages by all layouts: those of a VMCS, changed by rows of an offset,
// 2 bytes, and what is to be there, 8 bytes. Of kind 0 the page is the input itself.
func FuzzAssess(f *testing.F) {
	f.Add(uint8(0), realPage(f, "bochs"))
	for kind := range vmxtest.Kinds {
		f.Add(uint8(kind+1), []byte{})
		f.Add(uint8(kind+1), []byte{0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x78, 0, 0x5e, 0, 0, 1, 0, 0, 0, 0})
	}
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		p := make([]byte, PageSize)
		if kind %= uint8(len(vmxtest.Kinds) + 1); kind == 0 {
			copy(p, b)
		} else {
			p = vmxtest.VMCS(vmxtest.Kinds[kind-1], nil)
			for ; len(b) >= 10; b = b[10:] {
				copy(p[binary.LittleEndian.Uint16(b)%PageSize:], b[2:10])
			}
		}
		a := Assess(p, below2G)
		if a.Plausible && QuickReject(p) {
			t.Fatalf("rejected, but assessed as %+v", a)
		}
		if a.Score != len(a.Evidence) {
			t.Fatalf("score %d of %q", a.Score, a.Evidence)
		}
		for _, l := range Layouts {
			v, err := View(p, l)
			if err != nil {
				t.Fatal(err)
			}
			if len(v.Fields()) != len(l.Fields()) {
				t.Fatalf("%s: %d fields of %d", l.Name, len(v.Fields()), len(l.Fields()))
			}
			for _, s := range v.Structures() {
				if s.At == 0 || s.Size == 0 || s.What == "" {
					t.Fatalf("%s: structure %+v", l.Name, s)
				}
			}
			memory := memtest.NewMemory(mem.Range{First: 0, Last: PageSize - 1})
			memory.Put(0, p)
			for _, c := range v.Checks(Processor{PhysBits: uint(p[0]), Memory: memory}) {
				if c.Name == "" || c.Seen == "" && c.Name != "it is no shadow VMCS" {
					t.Fatalf("%s: check %+v", l.Name, c)
				}
			}
			if _, ok := v.GuestRegisters().PC(); !ok {
				t.Fatalf("%s: no RIP", l.Name)
			}
			if r, err := v.HostRegisters(); (r == nil) == (err == nil) {
				t.Fatalf("registers %v with error %v", r, err)
			}
			v.EventInjection()
			v.ExitDetails()
			v.EPTFault()
			for _, x := range v.Fields() {
				x.Field.Meaning(x.Value)
			}
		}
	})
}

func BenchmarkQuickReject(b *testing.B) {
	memory := make([]byte, 64<<20)
	for i := range memory {
		memory[i] = byte(i >> 12)
	}
	b.SetBytes(int64(len(memory)))
	for b.Loop() {
		for p := 0; p < len(memory); p += PageSize {
			QuickReject(memory[p : p+PageSize])
		}
	}
}

// BenchmarkQuickRejectNumbers is on pages that begin with a small number, all of which pass
// the first test.
func BenchmarkQuickRejectNumbers(b *testing.B) {
	memory := make([]byte, 64<<20)
	for i := 0; i < len(memory); i += PageSize {
		binary.LittleEndian.PutUint32(memory[i:], uint32(i/PageSize+1))
	}
	b.SetBytes(int64(len(memory)))
	for b.Loop() {
		for p := 0; p < len(memory); p += PageSize {
			QuickReject(memory[p : p+PageSize])
		}
	}
}
