# No debug information on this host at all: what gdb needs is made from RAM.
# session: no symbols

info inferiors
# expect \b1 +process 1 .*/vmlinux-
# expect \b2 +process 2 .*/vmlinux-
inferior 2
tbreak *ksys_write
continue
# expect Thread 2\.1 "vm0 CPU 0" hit Temporary breakpoint .* ksys_write \(fd=[0-9]+, buf=0x[0-9a-f]+
backtrace
# expect #0 +0xffffffff[0-9a-f]+ in ksys_write \(
# expect do_syscall_64 \(
# expect <signal handler called>
print init_task.comm
# expect = "swapper/0
print init_uts_ns.name.release
# expect = "[0-9]+\.[0-9]+\.
ptype struct open_how
# expect __u64 resolve;
inferior 1
print init_task.comm
# expect = "swapper/0
tbreak *svm_vcpu_run
continue
# expect hit Temporary breakpoint .* svm_vcpu_run \(
backtrace
# expect #0 .* svm_vcpu_run \(
# expect kvm_arch_vcpu_ioctl_run \(
# expect kvm_vcpu_ioctl \(
# expect do_syscall_64 \(
