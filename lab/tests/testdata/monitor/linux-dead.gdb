# The same Linux in its panic, from the memory file alone.
inferior 2
info threads
# expect \* 2\.1 .*"vm0 CPU 0" \(parked .*perhaps entered again: the registers are those of its last exit\)
print init_uts_ns.name.sysname
# expect = "Linux
set $last = ((struct task_struct *)&init_task)->tasks.prev
set $task = (struct task_struct *)((char *)$last - (unsigned long)&((struct task_struct *)0)->tasks)
printf "task %d %s\n", $task->pid, $task->comm
# expect task [0-9]+ busybox
