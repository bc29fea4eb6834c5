package report_test

import (
	"strings"
	"testing"

	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/report"
	"nestdbg/internal/session"
	"nestdbg/internal/svm/svmtest"
)

// A VMCB that VMRUN would refuse, with an exit that has details.
func TestControlBlocks(t *testing.T) {
	w := nestedtest.New()
	v := w.Guest().CPU(text, text+0x3f00)
	v.Park(text+0x10, text+0x3f00, svmtest.Values{
		"EXITCODE": 0x400, "EXITINFO1": 1<<32 | 6, "EXITINFO2": 0xfee000b0, "CR0": 0xa0050033,
		"EVENTINJ": 1<<31 | 1<<11 | 3<<8 | 14 | 2<<32,
	})
	s := session.New(nestedtest.NewStill(w, w.Host(0, text+0x200, text+0x3f00)))
	if _, err := s.Look(t.Context(), session.Full); err != nil {
		t.Fatal(err)
	}
	vm, err := s.Machine("vm0")
	if err != nil {
		t.Fatal(err)
	}
	r, err := report.NewControlBlocks(vm, vm.CPUs, false)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "vmcb", r)
	if r, err = report.NewControlBlocks(vm, vm.CPUs, true); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	r.Text(&all)
	for _, want := range []string{"    TSC_OFFSET                 0x0\n", "    LBR_STACK                  0x0\n"} {
		if !strings.Contains(all.String(), want) {
			t.Errorf("--all does not show %q:\n%s", want, &all)
		}
	}
	if _, err := report.NewControlBlocks(vm.Parent, vm.Parent.CPUs, false); err == nil || !strings.Contains(err.Error(), "QEMU's own machine") {
		t.Errorf("of l1: %v", err)
	}
}
