package orc

import (
	"encoding/binary"
	"fmt"

	"nestdbg/internal/mem"
)

// Reg is a register that unwinding may know, in the order of struct pt_regs
// (Linux 6.1 arch/x86/include/asm/ptrace.h), each 8 bytes.
type Reg uint8

// The registers. OrigAX is a field of pt_regs, not of the CPU.
const (
	R15 Reg = iota
	R14
	R13
	R12
	BP
	BX
	R11
	R10
	R9
	R8
	AX
	CX
	DX
	SI
	DI
	OrigAX
	IP
	CS
	Flags
	SP
	SS
	regCount
)

// State is the registers in one frame, each known or not. The zero State knows
// nothing.
type State struct {
	// Exact: IP is the instruction that the frame will execute next, as in a
	// stopped CPU or under an exception. Otherwise it is a return address.
	Exact bool

	value [regCount]uint64
	known uint32
}

// Get returns a register's value, if it is known.
func (s *State) Get(r Reg) (uint64, bool) {
	if r >= regCount || s.known&(1<<r) == 0 {
		return 0, false
	}
	return s.value[r], true
}

// Set makes a register known.
func (s *State) Set(r Reg, v uint64) {
	if r < regCount {
		s.value[r], s.known = v, s.known|1<<r
	}
}

// LookupPC is the address whose entry describes the frame: IP, or the byte
// before a return address.
func (s *State) LookupPC() (uint64, bool) {
	pc, ok := s.Get(IP)
	if ok && !s.Exact && pc > 0 {
		pc--
	}
	return pc, ok
}

// User reports whether the frame is known to be in user mode.
func (s *State) User() bool {
	cs, ok := s.Get(CS)
	return ok && cs&3 != 0
}

// CFA computes the entry's frame address from the frame's registers:
//
//	BaseSP, BaseBP         register + SPOffset
//	BaseSPIndirect         *(rsp) + SPOffset (since v5.12; not in use before)
//	BaseBPIndirect         *(rbp + SPOffset)
//	the other registers    register
func (e Entry) CFA(s State, r mem.VirtReader) (uint64, error) {
	reg := [...]Reg{BaseSP: SP, BaseBP: BP, BaseAX: AX, BaseDX: DX, BaseDI: DI, BaseR10: R10,
		BaseR13: R13, BaseSPIndirect: SP, BaseBPIndirect: BP}
	if e.Base == BaseUndefined || int(e.Base) >= len(reg) {
		return 0, fmt.Errorf("%w: no frame address", ErrUndefined)
	}
	v, ok := s.Get(reg[e.Base])
	if !ok {
		return 0, fmt.Errorf("%w: the frame address is in a register not known here", ErrUndefined)
	}
	offset := uint64(int64(e.SPOffset))
	switch e.Base {
	case BaseSP, BaseBP:
		return v + offset, nil
	case BaseSPIndirect:
		v, err := mem.VirtUint64(r, mem.Virt(v))
		return v + offset, err
	case BaseBPIndirect:
		return mem.VirtUint64(r, mem.Virt(v+offset))
	}
	return v, nil
}

// Step computes the caller's registers. s is the frame, e the entry for
// s.LookupPC(). No caller is ErrEndOfStack: in an End entry, in user mode, and
// when the return address is 0. No way to tell is ErrUndefined, and stacks that
// cannot be read give the reader's fault.
//
// Step reads at most 200 bytes. Nothing keeps a damaged stack from leading on
// for ever, so the caller must bound the number of steps; Step itself refuses
// only a caller that is the frame itself.
func Step(e Entry, s State, r mem.VirtReader) (State, error) {
	switch {
	case s.User() || e.Type == End:
		return State{}, ErrEndOfStack
	case e.Type == Undefined:
		return State{}, fmt.Errorf("%w: the kernel has no unwind data for this code", ErrUndefined)
	}
	cfa, err := e.CFA(s, r)
	if err != nil {
		return State{}, fmt.Errorf("find the frame: %w", err)
	}
	next, err := e.caller(s, cfa, r)
	if err != nil {
		return State{}, err
	}
	if err := e.restoreBP(&next, s, cfa, r); err != nil {
		return State{}, err
	}
	pc, _ := next.Get(IP)
	sp, _ := next.Get(SP)
	oldPC, _ := s.Get(IP)
	oldSP, _ := s.Get(SP)
	if pc == oldPC && sp == oldSP {
		return State{}, fmt.Errorf("%w: the frame at %#x is its own caller", ErrUndefined, sp)
	}
	if pc == 0 && !next.Exact {
		return State{}, ErrEndOfStack
	}
	return next, nil
}

// caller computes everything but rbp.
func (e Entry) caller(s State, cfa uint64, r mem.VirtReader) (State, error) {
	next := State{Exact: e.Signal}
	switch e.Type {
	case Call:
		pc, err := mem.VirtUint64(r, mem.Virt(cfa-8))
		if err != nil {
			return State{}, fmt.Errorf("read the return address: %w", err)
		}
		// A function may have changed any register but rbp and rsp, and its own
		// copy of the callee-saved ones is nowhere described.
		if bp, ok := s.Get(BP); ok {
			next.Set(BP, bp)
		}
		next.Set(IP, pc)
		next.Set(SP, cfa)
		return next, nil
	case Regs:
		err := next.load(R15, cfa, r)
		return next, err
	case RegsPartial:
		// Nothing but the interrupt frame is saved yet, so the rest is unchanged.
		next.value, next.known = s.value, s.known
		err := next.load(IP, cfa, r)
		return next, err
	}
	return State{}, fmt.Errorf("%w: entry of type %d", ErrUndefined, e.Type)
}

// LoadRegs is the state in a struct pt_regs.
func LoadRegs(r mem.VirtReader, at mem.Virt) (State, error) {
	s := State{Exact: true}
	err := s.load(R15, uint64(at), r)
	return s, err
}

// load reads the registers from first to the end of pt_regs at address at.
func (s *State) load(first Reg, at uint64, r mem.VirtReader) error {
	var buf [8 * regCount]byte
	b := buf[8*first:]
	if _, err := r.ReadVirt(b, mem.Virt(at)); err != nil {
		return fmt.Errorf("read the saved registers: %w", err)
	}
	for reg := first; reg < regCount; reg++ {
		s.Set(reg, binary.LittleEndian.Uint64(buf[8*reg:]))
	}
	return nil
}

// restoreBP applies the entry's rule for rbp.
func (e Entry) restoreBP(next *State, s State, cfa uint64, r mem.VirtReader) error {
	at := cfa
	switch e.BP {
	case BPSame:
		return nil
	case BPAtBP:
		bp, ok := s.Get(BP)
		if !ok {
			return fmt.Errorf("%w: the caller's rbp is relative to rbp, which is not known", ErrUndefined)
		}
		at = bp
	}
	v, err := mem.VirtUint64(r, mem.Virt(at+uint64(int64(e.BPOffset))))
	if err != nil {
		return fmt.Errorf("read the caller's rbp: %w", err)
	}
	next.Set(BP, v)
	return nil
}
