# Data of the nested guest: watched, and written.

inferior 2
watch *(unsigned long *)&jiffies_64
# expect atchpoint [0-9]+: 
continue
# expect Thread 2\.1 .* hit
# expect Old value = [0-9]+
# expect New value = [0-9]+
delete

print init_uts_ns.name.nodename
# expect = "
set var init_uts_ns.name.nodename = "nestdbg-was-here"
print init_uts_ns.name.nodename
# expect = "nestdbg-was-here
