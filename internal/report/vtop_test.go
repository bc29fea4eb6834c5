package report_test

import (
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
	"nestdbg/internal/paging"
	"nestdbg/internal/paging/pagingtest"
	"nestdbg/internal/report"
	"nestdbg/internal/svm/svmtest"
)

// roadWorld has a guest whose second stage lacks one page, and has another where the VMM
// does not.
func roadWorld() (*machine.Machine, *memtest.Memory) {
	ram := memtest.NewMemory(mem.Range{First: 0, Last: 0xfffff})
	frames := pagingtest.NewFrames(mem.Range{First: 0x80000, Last: 0xfffff}, 0)
	npt, vmm := pagingtest.New("npt4", ram, frames), pagingtest.New("x86-4level", ram, frames)
	for page, at := range map[uint64]mem.Phys{0x0: 0x10000, 0x2000: 0x12000, 0x5000: 0x15000} {
		npt.Map(page, at, 4096, npt.Express(paging.Read))
	}
	for page, at := range map[uint64]mem.Phys{0x0: 0x10000, 0x1000: 0x11000, 0x2000: 0x1f000} {
		vmm.Map(0x7f0000000000+page, at, 4096, vmm.Express(paging.Read))
	}
	l1 := &machine.Machine{Name: "l1", Level: 1, Arch: arch.X86, Phys: ram}
	second := paging.NewSpace("second stage of vm0", paging.NPTFourLevel, ram, npt.Root())
	road := &machine.Road{Space: paging.NewSpace("virtual memory of l1", paging.X86FourLevel, ram, vmm.Root()),
		Slots: []machine.Slot{{Size: 0x4000, User: 0x7f0000000000}}}
	return &machine.Machine{Name: "vm0", Level: 2, Parent: l1, Arch: arch.X86,
		Second: &machine.SecondStage{Kind: "npt4", Space: second},
		Phys:   machine.NewNestedMemory(second).WithRoad(road, ram)}, ram
}

// TestVTopRoads follows addresses of that guest.
func TestVTopRoads(t *testing.T) {
	vm, _ := roadWorld()
	for _, tt := range []struct {
		pa    mem.Phys
		says  string // "" if nothing is to be said of the second road
		fault bool
	}{
		{0x10, "", false},
		{0x1010, "not present at level 1\n  second road: pa 0x1010 is at 0x7f0000001010 in the VMM (memory slot of 0x0)\n  pa 0x11010 in its parent", false},
		{0x2010, "second road: the second stage leads to 0x12010, this to 0x1f010", false},
		{0x3010, "second road: 0x7f0000003010 is not mapped by x86-4level", true},
		{0x5010, "", false}, // in no slot
		{0x6010, "", true},
	} {
		v := report.NewPTop(vm, tt.pa, nil)
		var b strings.Builder
		v.Text(&b)
		if text := b.String(); !strings.Contains(text, tt.says) || strings.Contains(text, "second road") != (tt.says != "") ||
			(v.Fault != "") != tt.fault {
			t.Errorf("%#x: %s", tt.pa, text)
		}
	}
}

// A guest that is caught between its fault and its hypervisor's repair: the second stage still
// has the hole, and that the VMM has the page does not fill it.
func TestFaultWithRoad(t *testing.T) {
	for pa, want := range map[uint64]string{0x1010: "not-present", 0x10: "gone", 0x3010: "not-present"} {
		vm, ram := roadWorld()
		ram.Put(0x3000, svmtest.VMCB(svmtest.Values{"EXITCODE": 0x400, "EXITINFO1": 1<<32 | 4, "EXITINFO2": pa}))
		v, err := report.NewFault(vm, &machine.CPU{On: -1, State: machine.Parked, Control: 0x3000, Kind: "VMCB"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if v.Text(&b); v.Why == nil || v.Why.Cause != want || v.Why.Stage != 2 || strings.Count(b.String(), "why: ") != 1 {
			t.Errorf("%#x: %+v\n%s", pa, v.Why, &b)
		}
		if pa == 0x1010 && (v.RootPA == nil || *v.RootPA != 0x11010) {
			t.Errorf("the page of the VMM is not followed: %+v", v)
		}
	}
}
