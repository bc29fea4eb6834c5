package nested

import (
	"encoding/binary"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
	"nestdbg/internal/svm"
)

// quickRejectHost implements hostSaver: the word at RAX is a page's address in few pages.
func (svmTechnology) quickRejectHost(page []byte) bool {
	rax := binary.LittleEndian.Uint64(page[saveRAX:])
	return rax == 0 || rax%pageSize != 0 || rax>>52 != 0 || !svm.IsHostSave(page)
}

// hostSave implements hostSaver.
func (svmTechnology) hostSave(page []byte) (mem.Phys, *arch.Registers, bool) {
	if !svm.IsHostSave(page) {
		return 0, nil, false
	}
	regs, err := svm.HostRegisters(page)
	if err != nil {
		return 0, nil, false
	}
	control, err := svm.HostVMCB(page)
	return control, regs, err == nil
}

// parts implements parted: the permission maps, which say what the guest may do without
// its hypervisor (AMD APM Vol. 2, "I/O Permissions Map" and "MSR Permissions Map").
func (svmTechnology) parts(page []byte) []Critical {
	vmcb, err := svm.Parse(page)
	if err != nil {
		return nil
	}
	part := func(what string, at mem.Phys, size uint64) Critical {
		first := uint64(at) &^ (pageSize - 1)
		return Critical{mem.Range{First: first, Last: first + size - 1}, what}
	}
	return []Critical{part("I/O permission map", vmcb.IOPM(), 12<<10), part("MSR permission map", vmcb.MSRPM(), 8<<10)}
}
