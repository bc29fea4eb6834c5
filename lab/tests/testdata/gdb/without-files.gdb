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
# An address that only the person knows, here from a register.
tbreak *vfs_write
continue
# expect hit Temporary breakpoint .* vfs_write \(file=0x
eval "print *(struct file *)0x%lx", $rdi
# expect = \{.*f_op = 0x[0-9a-f]+ <[a-z0-9_]+>
up
# expect #1 .* ksys_write \(
up
# expect #2 .* do_syscall_64 \(|#2 .* __x64_sys_write \(
frame 0
finish
# expect in ksys_write \(
print $rax > 0
# expect = 1
print init_task.comm
# expect = "swapper/0
print init_uts_ns.name.release
# expect = "[0-9]+\.[0-9]+\.
print jiffies > 4294000000
# expect = 1
print linux_banner
# expect = "Linux version [0-9]
whatis prb
# expect type = struct printk_ringbuffer \*
# The variable of one CPU: its symbol, and what the kernel adds for the CPU.
print ((struct rq *)((char *)&runqueues + __per_cpu_offset[0]))->idle->comm
# expect = "swapper/0
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
