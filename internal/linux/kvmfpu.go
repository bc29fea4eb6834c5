package linux

import (
	"encoding/binary"
	"errors"
	"slices"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
)

// fpuShape is where KVM keeps the floating-point registers of a vCPU: in a struct
// fpstate that its thread uses as its own from KVM_RUN on until it is back in the VMM.
// So it holds the guest's whenever that thread is not on a CPU, which may have newer
// ones (Linux 6.1 arch/x86/kernel/fpu/core.c:fpu_swap_kvm_fpstate). Before 5.16 the
// thread's own area was used, and nothing says when.
type fpuShape struct {
	shape          *shape // of struct kvm_vcpu
	state          Field  // pointer to the struct fpstate
	area, features uint32 // offsets in that
}

// newFPUShape returns nil where the kernel has no such thing.
func newFPUShape(t *Types) *fpuShape {
	s := newShape(t, "kvm_vcpu")
	state, ok := s.want("arch.guest_fpu.fpstate")
	_, err0 := t.Field("task_struct", "on_cpu") // says whether the thread is on a CPU
	area, _, err1 := t.Offset("fpstate", "regs")
	features, _, err2 := t.Offset("fpstate", "xfeatures")
	if !ok || state.Size != 8 || errors.Join(err0, err1, err2) != nil {
		return nil
	}
	return &fpuShape{shape: s, state: state, area: area, features: features}
}

// An XSAVE area begins with an FXSAVE image, then the header: which components are
// not in their initial state, and the format (Intel SDM Vol. 1, "XSAVE Area").
const (
	xsaveX87     = 1 << 0
	xsaveSSE     = 1 << 1
	xsaveCompact = 1 << 63

	initialControl = 0x37f
	initialMXCSR   = 0x1f80
)

// read adds the registers of the vCPU at addr.
func (f *fpuShape) read(space AddressSpace, addr mem.Virt, regs *arch.Registers) error {
	rec, err := f.shape.read(space, addr)
	if err != nil {
		return err
	}
	state := rec.virt(f.state)
	features, err := mem.VirtUint64(space, state+mem.Virt(f.features))
	if err != nil {
		return err
	}
	var b [arch.FXSAVESize + 16]byte
	if _, err := space.ReadVirt(b[:], state+mem.Virt(f.area)); err != nil {
		return err
	}
	image, initial := (*[arch.FXSAVESize]byte)(b[:]), new([arch.FXSAVESize]byte)
	binary.LittleEndian.PutUint16(initial[:], initialControl)
	used, format := binary.LittleEndian.Uint64(b[arch.FXSAVESize:]), binary.LittleEndian.Uint64(b[arch.FXSAVESize+8:])
	if features&(xsaveX87|xsaveSSE) == 0 {
		used, format = xsaveX87|xsaveSSE, 0 // no XSAVE: FXSAVE writes all
	}
	pick := func(component uint64) *[arch.FXSAVESize]byte {
		if used&component != 0 {
			return image
		}
		return initial
	}
	regs.X87(pick(xsaveX87))
	regs.SSE(pick(xsaveSSE))
	// In the standard format MXCSR is always there.
	if format&xsaveCompact != 0 && used&xsaveSSE == 0 {
		regs.Set("mxcsr", initialMXCSR)
	} else {
		regs.MXCSR(image)
	}
	return nil
}

// offCPU reports whether the thread is known and on no CPU.
func (r *kvmReader) offCPU(pid int) bool {
	i := slices.IndexFunc(r.tasks, func(t Task) bool { return t.PID == pid })
	return i >= 0 && !r.tasks[i].OnCPU
}
