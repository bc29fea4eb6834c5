package linux

import (
	"encoding/binary"

	"nestdbg/internal/mem"
	"nestdbg/internal/orc"
)

// callSiteWords bounds how much of a stack is searched for a return address. The
// functions that need it are written in assembly and keep a few registers there.
const callSiteWords = 32

// byCallSite finds the caller of the innermost frame where the tables do not say,
// or say that it is found by a register that is not known: while a guest runs, the
// hypervisor's frame pointer is in none (Linux 6.12 arch/x86/kvm/svm/vmenter.S);
// indirect calls have thunks without data (arch/x86/lib/retpoline.S). A word of the
// stack that stands behind a call of this very function is its return address. One
// behind another call may be: a guess. The method is ours.
func (u *Unwinder) byCallSite(e orc.Entry, s orc.State) (next orc.State, guess, ok bool) {
	pc, known := s.Get(orc.IP)
	sp, stack := s.Get(orc.SP)
	if !known || !stack || !s.Exact {
		return next, false, false
	}
	function := uint64(0)
	if place, ok := u.k.Symbolize(mem.Virt(pc)); ok {
		function = pc - place.Offset
	}
	var candidate uint64 // address of the first return address of another call
	for at := sp; at < sp+8*callSiteWords; at += 8 {
		w, err := mem.VirtUint64(u.k.space, mem.Virt(at))
		if err != nil {
			break
		}
		target, isReturn := u.callBefore(w)
		switch {
		case isReturn && target == function && function != 0:
			next, ok := u.returnTo(e, s, at, w)
			return next, false, ok
		case isReturn && candidate == 0:
			candidate = at
		}
	}
	if candidate == 0 {
		return next, false, false
	}
	w, err := mem.VirtUint64(u.k.space, mem.Virt(candidate))
	if err != nil {
		return next, false, false
	}
	next, ok = u.returnTo(e, s, candidate, w)
	return next, true, ok
}

// byRegister finds the caller of the innermost frame where no return address stands at the
// place that the tables say: error_entry has its own in a register while it pushes the
// others (Linux 6.1 arch/x86/entry/calling.h:PUSH_REGS, save_ret), and what is there instead
// may look like anything. A register with an address behind a call of this very function
// has it.
func (u *Unwinder) byRegister(e orc.Entry, s orc.State) (next orc.State, ok bool) {
	pc, _ := s.Get(orc.IP)
	if !s.Exact || e.Type != orc.Call {
		return next, false
	}
	cfa, err := e.CFA(s, u.k.space)
	if err != nil {
		return next, false
	}
	w, err := mem.VirtUint64(u.k.space, mem.Virt(cfa-8))
	if err != nil {
		return next, false
	}
	if _, isReturn := u.callBefore(w); isReturn {
		return next, false
	}
	place, known := u.k.Symbolize(mem.Virt(pc))
	for reg := orc.R15; known && reg <= orc.DI; reg++ {
		if w, ok := s.Get(reg); ok {
			if target, isReturn := u.callBefore(w); isReturn && target == pc-place.Offset {
				return u.returnTo(e, s, cfa-8, w)
			}
		}
	}
	return next, false
}

// savedRegisters corrects the entry of a return address behind which nothing but what the
// hardware pushed is said to be on the stack. Entry code calls there what makes a whole
// struct pt_regs of that, which ends where the stack pointer is after it returned, and
// jumps on to sync_regs (Linux 6.1 arch/x86/entry/entry_64.S:error_entry). In the function
// that is called the tables know better; in the other they say what was before the call,
// and then registers of user mode pass for what was interrupted.
func (u *Unwinder) savedRegisters(e orc.Entry, s *orc.State, inner mem.Virt) orc.Entry {
	if e.Type != orc.RegsPartial || s.Exact {
		return e
	}
	pc, _ := s.Get(orc.IP)
	target, isCall := u.callBefore(pc)
	place, known := u.k.Symbolize(inner)
	if !isCall || !known || uint64(inner)-place.Offset == target {
		return e
	}
	return orc.Entry{Type: orc.Regs, Signal: e.Signal, Base: orc.BaseSP}
}

// callBefore decodes the call in front of a word of the stack, if that can be a
// return address.
func (u *Unwinder) callBefore(w uint64) (target uint64, ok bool) {
	n := uint64(u.k.layout.callMax)
	if w < u.k.layout.kernelMin+n || !u.isText(w-1) && u.module(mem.Virt(w-1)) == nil {
		return 0, false
	}
	code := make([]byte, n)
	if _, err := u.k.space.ReadVirt(code, mem.Virt(w-n)); err != nil {
		return 0, false
	}
	return u.k.layout.callBefore(code, w)
}

// returnTo is the state of the caller whose return address w stands at an address
// of the stack.
func (u *Unwinder) returnTo(e orc.Entry, s orc.State, at, w uint64) (next orc.State, ok bool) {
	next.Set(orc.IP, w)
	next.Set(orc.SP, at+8)
	switch e.BP {
	case orc.BPSame:
		if bp, ok := s.Get(orc.BP); ok {
			next.Set(orc.BP, bp)
		}
	case orc.BPAtCFA:
		bp, err := mem.VirtUint64(u.k.space, mem.Virt(at+8+uint64(int64(e.BPOffset))))
		if err != nil {
			return next, false
		}
		next.Set(orc.BP, bp)
	}
	return next, true
}

// x86CallBefore decodes CALL rel32 (E8) and CALL r/m64 (FF /2), the one with a
// register, a displacement or an index (Intel SDM Vol. 2, "CALL").
func x86CallBefore(code []byte, returns uint64) (target uint64, ok bool) {
	n := len(code)
	if n >= 5 && code[n-5] == 0xe8 {
		return returns + uint64(int64(int32(binary.LittleEndian.Uint32(code[n-4:])))), true
	}
	for _, form := range []struct {
		size     int  // of the instruction without a prefix
		mod, low byte // of ModRM; low 4 is a SIB byte, 5 with mod 0 is RIP-relative, 8 any other
	}{{2, 3, 8}, {2, 0, 8}, {3, 0, 4}, {6, 0, 5}, {3, 1, 8}, {4, 1, 4}, {6, 2, 8}, {7, 2, 4}} {
		if n < form.size || code[n-form.size] != 0xff {
			continue
		}
		modRM := code[n-form.size+1]
		low := modRM & 7
		fits := low == form.low || form.low == 8 && (form.mod == 3 || low != 4 && (form.mod != 0 || low != 5))
		if modRM>>6 == form.mod && modRM>>3&7 == 2 && fits {
			return 0, true
		}
	}
	return 0, false
}
