package linux

import (
	"fmt"

	"nestdbg/internal/mem"
)

// HostSaveArea is where a CPU keeps this kernel's own state while it runs a guest,
// as KVM's AMD module has it in its per-CPU data (Linux 6.1
// arch/x86/kvm/svm/svm.h:struct svm_cpu_data). ErrNotFound if that module is not
// there or keeps it otherwise.
func (k *Kernel) HostSaveArea(cpu int) (mem.Phys, error) {
	t, err := k.typesWith("kvm_amd", "svm_cpu_data")
	if err != nil {
		return 0, fmt.Errorf("host save area: %w", err)
	}
	s := newShape(t, "svm_cpu_data")
	pa := s.need("save_area_pa")
	if s.err != nil {
		return 0, fmt.Errorf("host save area: %w", s.err)
	}
	// A per-CPU variable of a module has the address that it would have in CPU-less
	// data: a CPU's offset leads to its copy, as for the kernel's own.
	at, err := k.symbolOf("kvm_amd", "svm_data")
	if err != nil {
		return 0, fmt.Errorf("host save area: %w", err)
	}
	off, err := k.perCPUOffset(cpu)
	if err != nil {
		return 0, fmt.Errorf("host save area: %w", err)
	}
	rec, err := s.read(k.space, at+mem.Virt(off))
	if err != nil {
		return 0, fmt.Errorf("host save area of CPU %d: %w", cpu, err)
	}
	save := rec.uint(pa)
	if save == 0 || save%pageSize != 0 {
		return 0, fmt.Errorf("host save area of CPU %d at %#x: %w", cpu, save, ErrCorrupt)
	}
	return mem.Phys(save), nil
}
