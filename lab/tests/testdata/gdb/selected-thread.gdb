# "monitor" is about what is selected in gdb, which does not say what that is.

info threads
inferior 1
thread 1.2
monitor bt
# expect ^l1 CPU 1, 
thread 1.1
monitor bt
# expect ^l1 CPU 0, 
monitor sym init_task
# expect init_task
inferior 2
monitor bt
# expect ^vm0 CPU 0, 
monitor ps
# expect ^ +1 +0 S
monitor lsmod
# expect ^virtio_ring 
monitor dmesg
# expect Linux version
inferior 1
monitor lsmod
# expect ^kvm_amd 
# The tasks as threads work with the vendor's file, too.
monitor tasks on
thread apply all backtrace 3
# expect "kthreadd \(2\)"
# expect schedule \(
# expect Thread 1\.2 "l1 CPU 1"
monitor tasks off
