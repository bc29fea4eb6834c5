package nested

import (
	"fmt"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
	"nestdbg/internal/svm"
)

// On a host with KVM, a processor runs L2 on a VMCB of L0's, and the hypervisor's own
// state is in L0's memory: the device state has both in the page that KVM gives out.

// currentOfKVM is the second stage of a CPU whose device state has that page. Its format
// is that of the hypervisor's own paging.
func currentOfKVM(page []byte) (*paging.Format, mem.Phys, error) {
	vmcb, err := svm.Parse(page)
	if err != nil {
		return nil, 0, err
	}
	if !vmcb.NestedPaging() {
		return nil, 0, fmt.Errorf("it runs without nested paging")
	}
	host, err := svm.NestedHost(page)
	if err != nil {
		return nil, 0, err
	}
	mode, err := nptMode(host)
	if err != nil {
		return nil, 0, err
	}
	f, err := paging.NPTForMode(mode)
	if err != nil {
		return nil, 0, err
	}
	return f, f.Root(vmcb.NCR3()), nil
}

// hostOfKVM is the hypervisor's own state in that page.
func hostOfKVM(page []byte) (*arch.Registers, string, error) {
	regs, err := svm.NestedHost(page)
	return regs, "nested state that KVM keeps", err
}
