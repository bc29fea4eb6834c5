# The same Linux after its panic, from the memory file alone.
inferior 2
info threads
# expect \* 2\.1 .*"vm0 CPU 0" \(parked
backtrace
# expect #[0-9]+ .*\bpanic \(
# expect #[0-9]+ .* sysrq_handle_crash \(
# expect #[0-9]+ .* write_sysrq_trigger \(
# expect #[0-9]+ .* vfs_write \(
# expect #[0-9]+ .* do_syscall_64 \(
print init_uts_ns.name.sysname
# expect = "Linux
set $last = ((struct task_struct *)&init_task)->tasks.prev
set $task = (struct task_struct *)((char *)$last - (unsigned long)&((struct task_struct *)0)->tasks)
printf "task %d %s\n", $task->pid, $task->comm
# expect task [0-9]+ busybox
