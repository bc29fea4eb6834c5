package machine_test

import (
	"errors"
	"slices"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
	"nestdbg/internal/paging"
	"nestdbg/internal/paging/pagingtest"
)

// roadWorld is a nested machine of four pages: its second stage maps the first
// and the last, the VMM has the first, second and last mapped, nobody has the third,
// and a fifth the VMM may only read.
func roadWorld() (parent, vm *machine.Machine, ram *memtest.Memory) {
	ram = memtest.NewMemory(mem.Range{First: 0, Last: 0xfffff})
	frames := pagingtest.NewFrames(mem.Range{First: 0x80000, Last: 0xfffff}, 0)
	npt := pagingtest.New("npt4", ram, frames)
	npt.Map(0x0, 0x10000, 4096, npt.Express(paging.Read))
	npt.Map(0x3000, 0x13000, 4096, npt.Express(paging.Read))
	vmm := pagingtest.New("x86-4level", ram, frames)
	for page, at := range map[uint64]mem.Phys{0x0: 0x10000, 0x1000: 0x11000, 0x3000: 0x13000} {
		vmm.Map(0x7f0000000000+page, at, 4096, vmm.Express(paging.Read|paging.Write))
	}
	vmm.Map(0x7f0000004000, 0x14000, 4096, vmm.Express(paging.Read))
	for i, text := range []string{"zero", "one.", "two.", "last"} {
		for o := 0; o < 4096; o += 4 {
			ram.Put(mem.Phys(0x10000+4096*i+o), []byte(text))
		}
	}
	parent = &machine.Machine{Name: "l1", Level: 1, Arch: arch.X86, Phys: ram}
	road := &machine.Road{
		Space: paging.NewSpace("virtual memory of l1", paging.X86FourLevel, ram, vmm.Root()),
		Slots: []machine.Slot{{Base: 0, Size: 0x5000, User: 0x7f0000000000}},
	}
	second := paging.NewSpace("second stage of vm0", paging.NPTFourLevel, ram, npt.Root())
	vm = &machine.Machine{Name: "vm0", Level: 2, Parent: parent, Arch: arch.X86,
		Second: &machine.SecondStage{Kind: "npt4", Space: second},
		Phys:   machine.NewNestedMemory(second).WithRoad(road, ram)}
	return parent, vm, ram
}

// A hole of the second stage is read from the VMM's memory; a hole of both is a
// fault at its own address, and never zeros.
func TestRoadFillsHoles(t *testing.T) {
	_, vm, _ := roadWorld()
	p := make([]byte, 0x2000)
	if n, err := vm.Phys.ReadPhys(p, 0); n != len(p) || err != nil || string(p[0xffc:0x1004]) != "zeroone." {
		t.Errorf("%d bytes, %v, %q", n, err, p[0xffc:0x1004])
	}
	if b := vm.Phys.SlicePhys(0x1ff0, 0x1000); len(b) != 0x10 || string(b[:4]) != "one." {
		t.Errorf("slice %q", b)
	}
	if b := vm.Phys.SlicePhys(0x2000, 16); b != nil {
		t.Errorf("slice of a hole of both: %q", b)
	}
	p = make([]byte, 0x4000)
	n, err := vm.Phys.ReadPhys(p, 0)
	var fault *mem.FaultError
	if n != 0x2000 || !errors.As(err, &fault) || fault.Addr != 0x2000 || fault.Space != "second stage of vm0" {
		t.Errorf("%d bytes, %v", n, err)
	}
	if n, err := vm.Phys.ReadPhys(p[:16], 0x3000); n != 16 || err != nil || string(p[:4]) != "last" {
		t.Errorf("%d bytes, %v, %q", n, err, p[:4])
	}
	if _, err := vm.Phys.ReadPhys(p[:16], 0x9000); !errors.Is(err, mem.ErrFault) {
		t.Errorf("outside of all slots: %v", err)
	}
}

func TestToParent(t *testing.T) {
	_, vm, _ := roadWorld()
	for _, c := range []struct {
		at, want mem.Phys
		n        uint64
		aside    bool
	}{{0x10, 0x10010, 0xff0, false}, {0x1010, 0x11010, 0xff0, true}, {0x3000, 0x13000, 0x1000, false}} {
		if pa, n, aside, err := vm.ToParent(c.at); pa != c.want || n != c.n || aside != c.aside || err != nil {
			t.Errorf("%#x: %#x, %#x bytes, aside %v, %v", c.at, pa, n, aside, err)
		}
	}
	var none *paging.NotMappedError
	if _, _, aside, err := vm.ToParent(0x2000); aside || !errors.As(err, &none) {
		t.Errorf("a hole of both: aside %v, %v", aside, err)
	}
	road := vm.Road()
	var off *machine.OffRoadError
	if _, _, err := road.Translate(0x5000); !errors.As(err, &off) || !errors.Is(err, mem.ErrFault) {
		t.Errorf("past the slots: %v", err)
	}
}

// The second road serves writes where the VMM itself may write.
func TestToParentToWrite(t *testing.T) {
	_, vm, _ := roadWorld()
	for at, want := range map[mem.Phys]mem.Phys{0x10: 0x10010, 0x1010: 0x11010} {
		if pa, n, err := vm.ToParentToWrite(at); pa != want || n != 0xff0 || err != nil {
			t.Errorf("%#x: %#x, %#x bytes, %v", at, pa, n, err)
		}
	}
	for _, at := range []mem.Phys{0x2000, 0x4000, 0x9000} {
		if pa, _, err := vm.ToParentToWrite(at); !errors.Is(err, mem.ErrFault) {
			t.Errorf("%#x: %#x, %v", at, pa, err)
		}
	}
}

// What can be read is what either road leads to.
func TestReadable(t *testing.T) {
	parent, vm, _ := roadWorld()
	if got, want := vm.Readable(), []mem.Range{{First: 0, Last: 0x1fff}, {First: 0x3000, Last: 0x4fff}}; !slices.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
	if got := parent.Readable(); len(got) != 1 || got[0].Last != 0xfffff {
		t.Errorf("%x", got)
	}
}
