package linux

import (
	"fmt"

	"nestdbg/internal/mem"
)

// kvmExitShutdown is KVM_EXIT_SHUTDOWN (Linux 6.1 include/uapi/linux/kvm.h).
const kvmExitShutdown = 8

// VCPUShutDown reports whether the last thing that KVM told the VMM of a vCPU, a
// struct kvm_vcpu, is that it has shut down: of a triple fault, most often. KVM has reset the
// CPU by then, so its registers say nothing of it (Linux 6.1
// arch/x86/kvm/svm/svm.c:shutdown_interception).
func (k *Kernel) VCPUShutDown(vcpu mem.Virt) (bool, error) {
	t, err := k.typesWith("kvm", "kvm_vcpu")
	if err != nil {
		return false, err
	}
	s := newShape(t, "kvm_vcpu")
	run := s.need("run")
	reason, _, err := t.Offset("kvm_run", "exit_reason")
	if err != nil {
		return false, err
	}
	rec, err := s.read(k.space, vcpu)
	if err != nil {
		return false, err
	}
	v, err := mem.VirtUint32(k.space, rec.virt(run)+mem.Virt(reason))
	if err != nil {
		return false, fmt.Errorf("why vCPU %#x left KVM: %w", vcpu, err)
	}
	return v == kvmExitShutdown, nil
}
