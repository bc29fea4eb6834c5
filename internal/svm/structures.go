package svm

import "nestdbg/internal/mem"

// Structure is memory that a VMCB points to.
type Structure struct {
	What string
	At   mem.Phys
	Size uint64 // bytes
}

// Structures is the memory that a VMCB makes the processor use, and that is no guest's: what
// it may do without its hypervisor, and what its interrupt controller is made of (APM Vol. 2,
// "I/O Intercepts", "MSR Intercepts", "Advanced Virtual Interrupt Controller"). The lower 12
// bits of these addresses are ignored, or are no part of them.
func (v *VMCB) Structures() (out []Structure) {
	avic := v.u32(offVIntr)&vAVIC != 0
	for _, s := range []struct {
		on   bool
		what string
		at   int
		size uint64
	}{
		{v.u32(offIntercept3)&interceptIO != 0, "I/O permission map", offIOPM, 12 << 10},
		{v.u32(offIntercept3)&interceptMSR != 0, "MSR permission map", offMSRPM, 8 << 10},
		{avic, "AVIC backing page", offAVICBacking, PageSize},
		{avic, "AVIC logical table", offAVICLogical, PageSize},
		{avic, "AVIC physical table", offAVICPhysical, PageSize},
	} {
		if s.on {
			out = append(out, Structure{s.what, mem.Phys(v.u64(s.at) & physMask &^ (PageSize - 1)), s.size})
		}
	}
	return out
}
