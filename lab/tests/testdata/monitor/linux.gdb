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

# Instruction by instruction.
set $before = $pc
stepi
nexti
print $pc > $before && $pc < $before + 32
# expect = 1
print $pc
# expect <do_idle\+[0-9]+>

# A variable that the kernel itself changes, in an interrupt, with the clock that it has by then; and
# out of the function that does.
watch *(unsigned long *)&jiffies_64
continue
# expect Hardware watchpoint 2: .*jiffies_64
# expect Old value = ([0-9]+)
# expect New value = ([0-9]+)
backtrace
# expect #0 .* (do_timer|tick_do_update_jiffies64) \(
# expect timer_interrupt
# expect <signal handler called>
# expect do_idle
# expect start_kernel
delete
finish
# expect in (tick_periodic|tick_sched_do_timer) \(

# The list of all tasks.
set $head = &((struct task_struct *)&init_task)->tasks
set $at = $head->next
set $count = 0
while $at != $head && $count < 1000
set $task = (struct task_struct *)((char *)$at - (unsigned long)&((struct task_struct *)0)->tasks)
printf "task %d %s\n", $task->pid, $task->comm
set $at = $at->next
set $count = $count + 1
end
# expect task 1 init
# expect task 2 kthreadd
# expect task [0-9]+ ksoftirqd/0
print $count > 20 && $count < 1000
# expect = 1

# The same questions to nestdbg.
monitor print init_task.comm
# expect swapper
monitor print jiffies_64
# expect ^[0-9]{6,}$
