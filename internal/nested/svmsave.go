package nested

import (
	"encoding/binary"
	"fmt"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/svm"
)

// saved reads a host save area. It belongs to this entry if RAX in it is the address
// of the VMCB, as VMRUN takes it; a search takes no other.
func (t svmTechnology) saved(m *machine.Machine, control, at mem.Phys) (*arch.Registers, mem.Phys, error) {
	if at == 0 {
		var ok bool
		if at, ok = findSave(m, control); !ok {
			return nil, 0, fmt.Errorf("no host save area of an entry with the VMCB at %#x", control)
		}
	}
	page := make([]byte, pageSize)
	if _, err := m.Phys.ReadPhys(page, at); err != nil {
		return nil, 0, fmt.Errorf("host save area: %w", err)
	}
	regs, err := svm.HostRegisters(page)
	if err != nil {
		return nil, 0, fmt.Errorf("host save area at %#x: %w", at, err)
	}
	if vmcb, err := svm.HostVMCB(page); err == nil && vmcb != control {
		return nil, 0, fmt.Errorf("the host save area at %#x is that of an entry with the VMCB at %#x, not %#x", at, vmcb, control)
	}
	return regs, at, nil
}

// saveRAX is where RAX lies in a host save area, which has the form of a VMCB's.
const saveRAX = 0x5f8

// findSave searches memory for the host save area of an entry with a VMCB.
func findSave(m *machine.Machine, control mem.Phys) (mem.Phys, bool) {
	ranges := m.Phys.PhysRanges()
	if p, ok := m.Phys.(PopulatedRanger); ok {
		ranges = p.PopulatedRanges()
	}
	for _, r := range ranges {
		for a := (r.First + pageSize - 1) &^ (pageSize - 1); a >= r.First && a < r.Last && r.Last-a >= pageSize-1; a += pageSize {
			b := m.Phys.SlicePhys(mem.Phys(a), pageSize)
			if len(b) < pageSize || mem.Phys(binary.LittleEndian.Uint64(b[saveRAX:])) != control {
				continue
			}
			if at, err := svm.HostVMCB(b); err == nil && at == control && svm.QuickReject(b) {
				return mem.Phys(a), true
			}
		}
	}
	return 0, false
}

// enter uses the VMCB's N_CR3, which a processor copies at the entry, and the paging
// mode of the hypervisor.
func (t svmTechnology) enter(m *machine.Machine, cpu *arch.Registers, control, save mem.Phys, host *arch.Registers) error {
	page := make([]byte, pageSize)
	if _, err := m.Phys.ReadPhys(page, control); err != nil {
		return fmt.Errorf("VMCB at %#x: %w", control, err)
	}
	vmcb, err := svm.Parse(page)
	if err != nil {
		return err
	}
	mode, err := hostMode(m)
	if host != nil {
		if own, e := nptMode(host); e == nil {
			mode, err = own, nil
		}
	}
	if err != nil {
		return fmt.Errorf("mode of its nested paging: %w", err)
	}
	cpu.Set("guest_mode", 1)
	cpu.Set("vm_vmcb", uint64(control))
	cpu.Set("nested_cr3", vmcb.NCR3())
	cpu.Set("nested_pg_mode", mode)
	if host != nil && save != 0 {
		cpu.Set("vm_hsave", uint64(save))
	}
	return nil
}
