# The same machine from its memory file alone, when QEMU is gone.
info threads
# expect 1\.1 .*"l1 CPU 0" \(lost
# expect 2\.1 .*"vm0 CPU 0" \(parked after exception #PF
inferior 2
backtrace
# expect #0 .* wild_store \(item=0x500000001fc8\)
# expect #1 .* crash \(item=0x500000001fc8, how=1\)
# expect #2 .* by_almanac \(item=0x500000001fc8, round=[0-9]+\)
# expect #3 .* weigh \(item=0x500000001fc8, round=[0-9]+\)
# expect #4 .* take_stock \(round=[0-9]+\)
# expect #5 .* one_round \(round=[0-9]+\)
# expect #6 .* work \(start=0x600000000000\)
# expect #7 .* start \(\)
print *item
# expect serial = 5, .*label = "fghijklmnopqrst"
print wild
# expect = \(u64 \*\) 0xdead0000
frame 5
print round == rounds && round == given->crash_round
# expect = 1
set $item = shop.shelf
while $item
printf "item %lu at 0x%lx %s\n", $item->serial, (unsigned long)$item, $item->label
set $item = $item->next
end
# expect item 0 at 0x600000001000 abcdefghijklmno
# expect item 11 at 0x500000007f98 lmnopqrstuvwxyz
set $rounds = rounds
inferior 1
print vms[0].crashed
# expect = true
print vms[0].rounds + 1 == $rounds
# expect = 1
