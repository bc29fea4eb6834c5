# Types of modules, from the BTF that the kernel keeps of them.
# session: no symbols

inferior 1
ptype struct vcpu_svm
# expect struct kvm_vcpu vcpu;
# expect struct vmcb \*vmcb;
ptype struct kvm_svm
# expect struct kvm kvm;
# expect struct kvm_sev_info sev_info;
print sizeof(struct vcpu_svm) > sizeof(struct kvm_vcpu)
# expect = 1
# What a type of a module leads to is in the kernel's file.
ptype ((struct vcpu_svm *)0)->vcpu.mutex.wait_list.next
# expect struct list_head \*next, \*prev;|struct list_head \*next;
tbreak *svm_vcpu_run
continue
# expect hit Temporary breakpoint .* svm_vcpu_run \(vcpu=0x
print ((struct vcpu_svm *)vcpu)->vcpu.vcpu_id
# expect = 0
print ((struct kvm_svm *)vcpu->kvm)->kvm.created_vcpus
# expect = 1
inferior 2
ptype struct loop_device
# expect int lo_number;
ptype struct virtqueue
# expect struct virtio_device \*vdev;
