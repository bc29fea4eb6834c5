# Two VMs with the same program at different addresses, each on a CPU of its own.
info inferiors
# expect \b1 +process 1 .*/monitor\.elf
# expect \b2 +process 2 .*/program\.elf
# expect \b3 +process 3 .*/program\.elf
break take_stock
# expect \(2 locations\)
disable 1.2
continue
# expect Thread 2\.1 .* hit Breakpoint 1.*, take_stock \(round=
print given->number
# expect = 0
print shop.weighers[0]
# expect 0x5580000[0-9a-f]+ <by_serial>
enable 1.2
disable 1.1
continue
# expect Thread 3\.1 .* hit Breakpoint 1.*, take_stock \(round=
print given->number
# expect = 1
print shop.weighers[0]
# expect 0x5591234[0-9a-f]+ <by_serial>
info threads
# expect 1\.1 .*"l1 CPU 0"
# expect 1\.2 .*"l1 CPU 1"
# expect 2\.1 .*"vm0 CPU 0"
# expect 3\.1 .*"vm1 CPU 0"
thread apply 1.1 1.2 backtrace -frame-arguments none
# expect Thread 1\.1
# expect run \(
# expect cpu_start \(
# expect start64 \(
# expect Thread 1\.2
# expect run \(
# expect cpu_start \(
# expect start64 \(
inferior 2
print given->number
# expect = 0
print shop.items
# expect = 12
