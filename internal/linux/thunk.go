package linux

import (
	"nestdbg/internal/mem"
	"nestdbg/internal/orc"
)

// thunkRange is the code of the thunks for indirect calls, empty if the kernel does
// not say where they are (Linux 5.10 to 6.1 arch/x86/kernel/vmlinux.lds.S).
func (k *Kernel) thunkRange() (first, end mem.Virt) {
	first, ok1 := k.lookupCore("__indirect_thunk_start")
	end, ok2 := k.lookupCore("__indirect_thunk_end")
	if !ok1 || !ok2 {
		return 0, 0
	}
	return first, end
}

// inThunk corrects the entry for an address in a thunk for indirect calls. There
// the tables of kernels up to 6.1 say that the stack ends (arch/x86/lib/retpoline.S
// has UNWIND_HINT_EMPTY, for want of a hint that says "not known"), which it does
// not: a thunk is called and has nothing of its own on the stack, so what is on top
// of it is a return address. The one place where that is not so has an entry of its
// own.
func (u *Unwinder) inThunk(e orc.Entry, pc mem.Virt) orc.Entry {
	if e.Type == orc.End && pc >= u.thunkFirst && pc < u.thunkEnd {
		return orc.NullCall()
	}
	return e
}
