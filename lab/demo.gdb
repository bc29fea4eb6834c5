# What a person would type into "nestdbg gdb"; lab/demo.sh runs it.
set width 120
set print frame-arguments scalars

echo \n--- Two machines, two inferiors, each with its kernel's symbols where KASLR put them\n
info inferiors
info threads

echo \n--- Stop in the nested guest, at a kernel function given by name\n
inferior 2
tbreak *do_sys_openat2
continue

echo \n--- L2: the whole way from the system call\n
backtrace

echo \n--- L1: the thread that runs this very vCPU waits inside KVM\n
thread apply 1.1 backtrace

echo \n--- L2: structures read from its memory\n
print init_uts_ns.name.release
print *how
ptype how

echo \n--- L2: single steps stay in L2\n
thread 2.1
stepi
stepi
x/3i $pc

echo \n--- The address of that instruction, through both stages of page tables\n
monitor vtop $pc
