# Linux under a hypervisor of which nothing is said: not even its own file.
info inferiors
# expect \b2 +process 2 .*vmlinux
inferior 2
tbreak do_idle
continue
# expect Thread 2\.1 "vm0 CPU 0" hit Temporary breakpoint .*do_idle
backtrace
# expect #0 .*do_idle
# expect #1 .*cpu_startup_entry
# expect start_kernel
print init_uts_ns.name.sysname
# expect = "Linux
print ((struct task_struct *)&init_task)->comm
# expect = "swapper
