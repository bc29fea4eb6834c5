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

// parts implements parted.
func (svmTechnology) parts(page []byte) (out []Critical) {
	vmcb, err := svm.Parse(page)
	if err != nil {
		return nil
	}
	for _, s := range vmcb.Structures() {
		out = append(out, critical(s.What, s.At, s.Size))
	}
	return out
}
