package machine_test

import (
	"slices"
	"testing"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
	"nestdbg/internal/paging"
	"nestdbg/internal/paging/pagingtest"
)

// sparse is memory of which some ranges were written.
type sparse struct {
	*memtest.Memory
	written []mem.Range
}

func (s sparse) PopulatedRanges() []mem.Range { return s.written }

// What a guest's large pages lead to need not be there: only the written parts count,
// under the guest's addresses, and through two second stages alike.
func TestPopulatedRanges(t *testing.T) {
	ram := memtest.NewMemory(mem.Range{First: 0, Last: 1<<30 - 1})
	frames := pagingtest.NewFrames(mem.Range{First: 0x80000, Last: 0xfffff}, 0)
	npt := pagingtest.New("npt4", ram, frames)
	npt.Map(0x200000, 0x400000, 2<<20, npt.Express(paging.Read))
	npt.Map(0x400000, 0x200000, 2<<20, npt.Express(paging.Read))
	npt.Map(0x600000, 0x13000, 4096, npt.Express(paging.Read))
	below := sparse{ram, []mem.Range{
		{First: 0x0, Last: 0x10fff}, {First: 0x3ff000, Last: 0x400fff}, {First: 0x5ff000, Last: 0x7fffff}}}
	want := []mem.Range{{First: 0x200000, Last: 0x200fff}, {First: 0x3ff000, Last: 0x3fffff}, {First: 0x5ff000, Last: 0x5fffff}}
	vm := machine.NewNestedMemory(paging.NewSpace("npt", paging.NPTFourLevel, below, npt.Root()))
	if got := vm.PopulatedRanges(); !slices.Equal(got, want) {
		t.Errorf("%#x, want %#x", got, want)
	}
	// The tables of a guest of that guest are in its memory, which is mapped to 2 MiB.
	if _, err := ram.WritePhys([]byte{1}, 0x400000); err != nil {
		t.Fatal(err)
	}
	inner := pagingtest.New("npt4", shifted{ram}, pagingtest.NewFrames(mem.Range{First: 0x200000, Last: 0x20ffff}, 0))
	inner.Map(0x5000, 0x3ff000, 4096, inner.Express(paging.Read))
	inner.Map(0x6000, 0x3fe000, 4096, inner.Express(paging.Read))
	deep := machine.NewNestedMemory(paging.NewSpace("npt", paging.NPTFourLevel, vm, inner.Root()))
	if got, want := deep.PopulatedRanges(), []mem.Range{{First: 0x5000, Last: 0x5fff}}; !slices.Equal(got, want) {
		t.Errorf("of a guest of a guest: %#x, want %#x", got, want)
	}
	whole := machine.NewNestedMemory(paging.NewSpace("npt", paging.NPTFourLevel, ram, npt.Root()))
	if got := whole.PopulatedRanges(); !slices.Equal(got, whole.PhysRanges()) {
		t.Errorf("of memory that does not know: %#x", got)
	}
}

// shifted is the guest's memory at 2 MiB, to build tables in.
type shifted struct{ *memtest.Memory }

const shift = 0x200000 // 0x200000 of the guest is 0x400000

func (s shifted) ReadPhys(p []byte, a mem.Phys) (int, error)  { return s.Memory.ReadPhys(p, a+shift) }
func (s shifted) WritePhys(p []byte, a mem.Phys) (int, error) { return s.Memory.WritePhys(p, a+shift) }
func (s shifted) PutUint64(a mem.Phys, v uint64)              { s.Memory.PutUint64(a+shift, v) }
