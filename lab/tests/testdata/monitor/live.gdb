# A person debugs a monitor of one's own and the program in its VM: both layers' symbols,
# no Linux anywhere. Lines "# expect RE" must match the transcript, in this order.

info inferiors
# expect \b1 +process 1 .*/monitor\.elf
# expect \b2 +process 2 .*/program\.elf

inferior 2
break by_almanac
continue
# expect hit Breakpoint 1, by_almanac \(item=0x[0-9a-f]+, round=[0-9]+\)
backtrace
# expect #0 +by_almanac \(item=0x[0-9a-f]+, round=([0-9]+)\)
# expect #1 .* weigh \(item=0x[0-9a-f]+, round=[0-9]+\)
# expect #2 .* take_stock \(round=[0-9]+\)
# expect #3 .* one_round \(round=[0-9]+\)
# expect #4 .* work \(start=0x600000000000\)
# expect #5 .* start \(\)
print item->serial % 2 == 1 && round == rounds
# expect = 1
print shop
# expect name = 0x[0-9a-f]+ "corner shop", weighers = {0x[0-9a-f]+ <by_serial>, 0x[0-9a-f]+ <by_almanac>}, shelf = 0x600000001000, items = 12}
frame 2
info locals
# expect item = 0x[0-9a-f]+
# expect sum = [0-9]+

# The list goes through all of the VM's memory: heap, lake and quilt in turns.
set $item = shop.shelf
while $item
printf "item %lu at 0x%lx %s\n", $item->serial, (unsigned long)$item, $item->label
set $item = $item->next
end
# expect item 0 at 0x600000001000 abcdefghijklmno
# expect item 1 at 0x700000011530 bcdefghijklmnop
# expect item 2 at 0x500000000fe0 cdefghijklmnopq
# expect item 3 at 0x600000031690 defghijklmnopqr
# expect item 4 at 0x7000000154c0 efghijklmnopqrs
# expect item 5 at 0x500000001fc8 fghijklmnopqrst
# expect item 6 at 0x600000061d20 ghijklmnopqrstu
# expect item 11 at 0x500000007f98 lmnopqrstuvwxyz

# An array whose pages are nowhere near each other: every entry is known.
set $almanac = (unsigned long *)given->almanac
set $n = 500
set $wrong = 0
while $n < 8192
set $wrong = $wrong + ($almanac[$n] != $n * 0x9e3779b97f4a7c15ul + 1)
set $n = $n + ($n % 512 < 20 ? 1 : $n % 512 >= 500 ? 1 : 60)
end
print $wrong
# expect = 0
x/2gx &$almanac[511]
# expect 0x61.*ff8:\s+0x[0-9a-f]+\s+0x[0-9a-f]+

delete
frame 0
finish
# expect Value returned is
watch total
continue
# expect Hardware watchpoint 2: total
# expect Old value = [0-9]+
# expect New value = [0-9]+
# expect one_round \(round=[0-9]+\)
delete

# Over a VM call: the step leaves the program, and comes back behind the call.
break call_monitor if number == 2
continue
# expect hit Breakpoint 3, call_monitor \(number=2, argument=[0-9]+\)
python
def at_call():
    pc = gdb.selected_frame().pc()
    return gdb.selected_frame().architecture().disassemble(pc)[0]["asm"].strip() == "vmmcall"
for _ in range(40):
    if at_call():
        break
    gdb.execute("stepi", to_string=True)
print("at the call", at_call())
end
# expect at the call True
set $before = $pc
stepi
print $pc - $before
# expect = 3
print $rax == 2 * argument
# expect = 1
finish
# expect Value returned is
print $ == 2 * round
# expect = 1

# Into the call: the monitor answers it, with its VM parked.
delete
inferior 1
tbreak svm_answer
continue
# expect Thread 1\.1 .* hit Temporary breakpoint .*svm_answer \(vm=.*0x[0-9a-f]+ <vms>, rax=
backtrace
# expect #0 +svm_answer
# expect #1 .* turn \(vm=.*0x[0-9a-f]+ <vms>\)
# expect #2 .* run \(cpu=
# expect #3 .* cpu_start \(cpu=0\)
# expect #4 .* start64 \(\)
print vms[0].name
# expect = "vm0"
inferior 2
backtrace
# expect #0 .* call_monitor \(number=
# expect work \(start=0x600000000000\)
# expect start \(\)
x/i $pc
# expect vmmcall

# And out of it again.
tbreak *($pc + 3)
continue
# expect Thread 2\.1 .* hit Temporary breakpoint .* call_monitor \(number=

# Now the program is made to crash, and the monitor is caught when it hears of it.
set var *(unsigned long *)&given->crash_round = rounds + 2
set var *(unsigned long *)&given->crash = 1
inferior 1
tbreak crashed
continue
# expect Thread 1\.1 .* hit Temporary breakpoint .*crashed \(vm=
print e->vector
# expect = 14
print/x e->address
# expect = 0xdead0000
inferior 2
backtrace
# expect #0 .* wild_store \(item=0x500000001fc8\)
# expect #1 .* crash \(item=0x500000001fc8, how=1\)
# expect #2 .* by_almanac \(item=0x500000001fc8, round=[0-9]+\)
