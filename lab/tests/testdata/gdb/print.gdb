# C expressions as nestdbg evaluates them, for the machine and the thread that are
# selected in gdb.
# session: no symbols

inferior 2
tbreak *ksys_write
continue
# expect hit Temporary breakpoint .* ksys_write
monitor print (unsigned long)&ksys_write == $rip
# expect ^1$
monitor print init_task.comm
# expect ^"swapper/0"$
# expect ^note: init_task is assumed to be struct task_struct
monitor p/x -1
# expect ^0xffffffff$
monitor print 7 - 5
# expect ^2$
monitor print -7
# expect ^-7$
monitor struct list_head
# expect ^struct list_head \{$
# expect struct list_head \*prev; .* 8 +8 \*/
# expect size: 16, members: 2
monitor struct task_struct.comm,pid task(2)
# expect comm = "kthreadd"
# expect pid = 2
monitor print current()->comm
# expect ^".+"$
monitor print init_task.comn
# expect struct task_struct has no member "comn"; near: comm

# A task that runs on no CPU is what current() means when it is the thread selected.
monitor tasks on
info threads
# expect "kthreadd \(2\)
python [t for t in gdb.selected_inferior().threads() if t.ptid[1] % 10000000 == 2][0].switch()
monitor print current()->comm
# expect ^"kthreadd"$
monitor print current() == task(2)
# expect ^1$
monitor print $rip
# expect no registers are known
monitor tasks off

inferior 1
monitor print sizeof(struct vcpu_svm) > sizeof(struct kvm_vcpu)
# expect ^1$
monitor print container_of(vm_list.next, struct kvm, vm_list)->created_vcpus
# expect ^1$
