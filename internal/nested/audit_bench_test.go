package nested_test

import (
	"fmt"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
	"nestdbg/internal/nested"
	"nestdbg/internal/paging"
)

// BenchmarkAudit compares two machines of 1 GiB, in large pages and in scattered small ones.
func BenchmarkAudit(b *testing.B) {
	const size = 1 << 30
	for _, page := range []uint64{2 << 20, 4096} {
		b.Run(fmt.Sprintf("%dK", page>>10), func(b *testing.B) {
			ram := memtest.NewMemory(mem.Range{First: 0, Last: 16<<20 - 1})
			l1 := &machine.Machine{Name: "l1", Level: 1, Arch: arch.X86, Phys: ram}
			t := &machine.Tower{Machines: []*machine.Machine{l1}}
			for i, name := range []string{"a", "b"} {
				m := inside(name, l1, ram, mem.Range{First: uint64(i+1) << 22, Last: uint64(i+2)<<22 - 1})
				for a := uint64(0); a < size; a += page {
					at := uint64(1+i)<<32 + a*7%size // in no order, as 7 has no factor in common with it
					m.npt.Map(a, mem.Phys(at), page, paging.Read|paging.Write)
				}
				t.Machines = append(t.Machines, m.Machine)
			}
			for b.Loop() {
				if a := nested.NewAudit(t, nil); len(a.Exposed) != 0 || a.Shared[0].Bytes != size || a.Shared[1].Bytes != 0 {
					b.Fatalf("%+v", a)
				}
			}
		})
	}
}
