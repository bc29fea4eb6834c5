# A list of modules that leads nowhere behind the second: gdb keeps those in front.
# session: no symbols

inferior 2
info sharedlibrary
# expect Yes .*/vm0/[a-z0-9_]+\.ko-
set $last = modules.next->next
set $next = $last->next
set var $last->next = (struct list_head *)0x10
info sharedlibrary
# expect Yes .*/vm0/[a-z0-9_]+\.ko-
# expect Yes .*/vm0/[a-z0-9_]+\.ko-
set var $last->next = $next
print modules.next->next->next == $next
# expect = 1
