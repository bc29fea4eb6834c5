# A person debugs both layers at once, with KASLR on in both and no file named.
# Lines "# expect RE" must match the transcript, in this order.

info inferiors
# expect \b1 +process 1 .*vmlinux-
# expect \b2 +process 2 .*vmlinux-
info threads
# expect 1\.1 .*"l1 CPU 0"
# expect 2\.1 .*"vm0 CPU 0"

inferior 2
tbreak *ksys_write
continue
# expect Thread 2\.1 "vm0 CPU 0" hit Temporary breakpoint .* ksys_write \(fd=
backtrace
# expect #0 +ksys_write \(
# expect do_syscall_64 \(
# expect <signal handler called>
# expect \?\? \(\)

# The backtrace ends there: of user programs nothing is known.
print $_inferior
# expect = 2
print init_uts_ns.name.release
# expect = "[0-9]+\.[0-9]+\.
print init_task.comm
# expect = "swapper/0
print ((struct task_struct *)&init_task)->pid
# expect = 0

info registers rip cs
# expect rip +0xffffffff[0-9a-f]+ +.*<ksys_write>
# expect cs +0x10
stepi
x/i $pc
# expect => 0xffffffff[0-9a-f]+ <ksys_write\+[0-9]+>
finish
# expect Value returned is

# L1, while its CPU is in the guest: the vCPU's thread waits behind VMRUN.
tbreak *do_sys_openat2
continue
# expect hit Temporary breakpoint .* do_sys_openat2 \(
inferior 1
print init_uts_ns.name.release
# expect = "[0-9]+\.[0-9]+\.
thread apply 1.1 1.2 backtrace
# expect __svm_vcpu_run
# expect svm_vcpu_run
# expect kvm_arch_vcpu_ioctl_run
# expect do_syscall_64

# What the protocol does not carry is behind "monitor".
monitor help
# expect status
# expect vtop
monitor status
# expect l1 +x86-64
# expect vm0 +x86-64
inferior 2
monitor vtop $pc
# expect stage 1
# expect stage 2 npt
# expect offset 0x[0-9a-f]+ in QEMU's RAM file
monitor regs
# expect cr3 +0x
monitor qemu info version
# expect ^[0-9]+\.[0-9]+
info os machines
# expect vm0
