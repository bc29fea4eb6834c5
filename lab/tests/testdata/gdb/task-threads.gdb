# The tasks of both kernels as threads, without a file on this host.
# session: no symbols

inferior 2
monitor tasks
# expect ^tasks of vm0 are off$
monitor current
# expect ^vm0 CPU 0, [a-z]+: \(struct task_struct \*\) 0x[0-9a-f]+, pid [0-9]+, 
monitor current 7
# expect ^vm0 has no CPU 7; it has 1$
monitor tasks on
# expect ^[0-9]+ tasks of vm0 are threads now
info threads
# expect 1\.1 .*"l1 CPU 0"
# expect 2\.1 +Thread 2\.1 "vm0 CPU 0" \(.*, task .* \([0-9]+\)\)
# expect Thread 2\.10000001 "[^"]+ \(1\)" \(state S, last on CPU 0\) +0x[0-9a-f]+ in __schedule
# expect Thread 2\.10000002 "kthreadd \(2\)"

# The first of them is init, which waits in a system call. Its memory is its own.
thread 2.2
# expect Switching to thread 2\.2 \(Thread 2\.10000001\)
backtrace
# expect #0 +0x[0-9a-f]+ in __schedule \(
# expect #1 +0x[0-9a-f]+ in schedule \(
# expect do_syscall_64 \(
# expect <signal handler called>
# expect #[0-9]+ +0x0000[0-9a-f]+ in \?\? \(\)
info registers rip rax rbx
# expect rip .*<__schedule\+[0-9]+>
# expect rax +<unavailable>
# expect rbx +0x
up 100
x/1xb $pc
# expect ^0x0*[0-9a-f]{1,12}:\s+0x[0-9a-f][0-9a-f]$
print init_task.comm
# expect = "swapper/0
monitor bt
# expect ^vm0 task 1 
# expect __schedule\+0x
# expect user mode
monitor x/1xb $sp
# expect the thread selected in gdb is the task 1; say which CPU is meant with --cpu
monitor x/1i $pc --cpu 0
# expect ^0x[0-9a-f]+

# It does not run now.
stepi
# expect thread 2\.10000001 does not run now, so it cannot be stepped or resumed
set scheduler-locking on
continue
# expect thread 2\.10000001 does not run now, so it cannot be stepped or resumed
set scheduler-locking replay
python
try:
    gdb.execute("set var $rbx = 1")
except gdb.error as e:
    print(e)
end
# expect task .* \(1\) does not run: its registers cannot be written
thread apply all backtrace 3
# expect "kthreadd \(2\)"
# expect in kthreadd \(
# expect Thread 2\.1 "vm0 CPU 0"

# Everything runs on, whichever thread is selected.
tbreak *ksys_write
continue
# expect Thread 2\.1 "vm0 CPU 0" hit Temporary breakpoint .* ksys_write \(
monitor tasks
# expect ^tasks of vm0 are on$

inferior 1
monitor tasks on
# expect ^[0-9]+ tasks of l1 are threads now
info threads
# expect Thread 1\.10000001 "
# expect Thread 2\.10000001 "
monitor tasks off
inferior 2
monitor tasks off
info threads
# expect 1\.1 
# expect 1\.2 
# expect 2\.1 .*"vm0 CPU 0" \([a-z0-9A-Z ]*\)
