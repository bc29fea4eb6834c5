package linux

import (
	"errors"
	"fmt"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
	"nestdbg/internal/orc"
)

// LeftRegisters are the registers of a CPU that nothing has any more, as far as the
// kernel's memory has them: those that it noted for a dump of its own, or that were saved
// when something interrupted what the CPU did, and that it has not gone back to since.
// source says which, and what speaks for it. ErrNotFound for a CPU that was doing something
// else, such as one that has called panic: what it had in its registers is nowhere.
func (k *Kernel) LeftRegisters(cpu int) (regs *arch.Registers, source string, err error) {
	var errs []error
	for _, find := range []func(int) (*arch.Registers, string, error){k.noted, k.interrupted, k.stoppedInUser} {
		if regs, source, err = find(cpu); err == nil {
			return regs, source, nil
		}
		errs = append(errs, err)
	}
	return nil, "", errors.Join(errs...)
}

// noted are the registers in the note that a kernel with kdump makes for each CPU before
// it starts the kernel that dumps it: an ELF note of type NT_PRSTATUS, empty until then
// (Linux 6.1 kernel/kexec_core.c:crash_save_cpu).
func (k *Kernel) noted(cpu int) (*arch.Registers, string, error) {
	none := func(err error) (*arch.Registers, string, error) {
		return nil, "", fmt.Errorf("crash_notes of CPU %d: %w", cpu, err)
	}
	pointer, ok := k.lookupCore("crash_notes")
	if !ok {
		return none(k.missingSymbol("crash_notes", ""))
	}
	notes, err := mem.VirtUint64(k.space, pointer)
	if err != nil {
		return none(err)
	}
	offset, err := k.perCPUOffset(cpu)
	if err != nil {
		return none(err)
	}
	// The size of the name, that of the rest, and the type with the name.
	const nameSize, kind = "\x05\x00\x00\x00", "\x01\x00\x00\x00CORE\x00\x00\x00\x00"
	note := mem.Virt(notes + offset)
	b := make([]byte, 8+len(kind))
	if _, err := k.space.ReadVirt(b, note); err != nil {
		return none(err)
	}
	if string(b[:4]) != nameSize || string(b[8:]) != kind {
		return none(fmt.Errorf("empty: %w", ErrNotFound))
	}
	t, err := k.Types()
	if err != nil {
		return none(err)
	}
	at, _, err := t.Offset("elf_prstatus", "pr_reg")
	if err != nil {
		return none(err)
	}
	// It begins as struct pt_regs does (Linux 6.1 arch/x86/include/asm/elf.h:ELF_CORE_COPY_REGS).
	s, err := orc.LoadRegs(k.space, note+mem.Virt(len(b))+mem.Virt(at))
	if err != nil {
		return none(err)
	}
	return k.registers(&s), "registers that the kernel noted for its own dump, when it crashed", nil
}

// interrupted are the registers that the handler was entered with which has the CPU's
// interrupt stack: the flag is set for as long as that is in use. The word at the top of
// the stack is the stack pointer from before, and below it stands where the handler
// returns to (Linux 6.1 arch/x86/include/asm/irq_stack.h:call_on_irqstack).
func (k *Kernel) interrupted(cpu int) (*arch.Registers, string, error) {
	none := func(what string, err error) (*arch.Registers, string, error) {
		return nil, "", fmt.Errorf("interrupt stack of CPU %d: %s: %w", cpu, what, err)
	}
	if k.layout.irqStackInUse == "" {
		return none("it has none", ErrNotFound)
	}
	at, err := k.hotVariable(cpu, k.layout.irqStackInUse)
	if err != nil {
		return none(k.layout.irqStackInUse, err)
	}
	var inUse [1]byte
	if _, err := k.space.ReadVirt(inUse[:], at); err != nil {
		return none(k.layout.irqStackInUse, err)
	}
	if inUse[0] == 0 {
		return none("not in use", ErrNotFound)
	}
	if at, err = k.hotVariable(cpu, k.layout.irqStackTop); err != nil {
		return none(k.layout.irqStackTop, err)
	}
	top, err := mem.VirtUint64(k.space, at)
	if err != nil {
		return none(k.layout.irqStackTop, err)
	}
	back, err := mem.VirtUint64(k.space, mem.Virt(top-8))
	if err != nil {
		return none("return address", err)
	}
	u := k.Unwinder()
	target, returns := u.callBefore(back)
	if !returns {
		return none(fmt.Sprintf("%#x is no return address", back), ErrCorrupt)
	}
	var s orc.State
	s.Set(orc.IP, back)
	s.Set(orc.SP, top)
	if s, err = u.interruption(s); err != nil {
		return none("what was interrupted", err)
	}
	handler := "a handler"
	if place, ok := k.Symbolize(mem.Virt(target)); ok && target != 0 {
		handler = place.Name
	}
	return k.registers(&s), "registers that " + handler + " interrupted; the CPU has done no more than that since" + k.offlineWords(cpu), nil
}

// interruption walks from a state to the first that an interrupt or exception saved.
func (u *Unwinder) interruption(s orc.State) (orc.State, error) {
	var found *orc.State
	_, err := u.walkUntil(s, func(s *orc.State) bool {
		if s.Exact {
			found = s
		}
		return s.Exact
	})
	if found == nil {
		return orc.State{}, errors.Join(fmt.Errorf("nothing was: %w", ErrNotFound), err)
	}
	return *found, nil
}

// registers are those of a state.
func (k *Kernel) registers(s *orc.State) *arch.Registers {
	regs := arch.NewRegisters(k.src.Arch)
	for r, name := range orcRegs {
		if v, ok := s.Get(r); ok {
			regs.Set(name, v)
		}
	}
	return regs
}

// offlineWords say that a CPU is offline, if it is.
func (k *Kernel) offlineWords(cpu int) string {
	if off, err := k.offline(cpu); err == nil && off {
		return ", and is offline, as panic leaves it"
	}
	return ""
}

// offline reports whether a CPU is not in the kernel's mask: panic takes those out that
// it has stopped (Linux 6.1 arch/x86/kernel/process.c:stop_this_cpu).
func (k *Kernel) offline(cpu int) (bool, error) {
	mask, ok := k.lookupCore("__cpu_online_mask")
	if !ok {
		return false, k.missingSymbol("__cpu_online_mask", "")
	}
	const bits = 64
	word, err := mem.VirtUint64(k.space, mask+mem.Virt(cpu/bits*8))
	return word>>(cpu%bits)&1 == 0, err
}

// entryPadding is what may lie between the saved registers of user mode and the end of a
// stack: nothing, or two words with CONFIG_X86_FRED (Linux 6.9
// arch/x86/include/asm/thread_info.h:TOP_OF_KERNEL_STACK_PADDING).
var entryPadding = [...]mem.Virt{0, 16}

// stoppedInUser are the registers of user mode with which a task came into the kernel
// whose CPU is in a panic and stopped, and was not in the kernel before: then it would have
// been on its interrupt stack. In a CPU that was not stopped they are those of any earlier entry.
func (k *Kernel) stoppedInUser(cpu int) (*arch.Registers, string, error) {
	off, err := k.offline(cpu)
	if err != nil {
		return nil, "", err
	}
	if panicking, ok := k.PanicCPU(); !off || !ok || panicking == cpu {
		return nil, "", fmt.Errorf("CPU %d was not stopped by a panic: %w", cpu, ErrNotFound)
	}
	task, err := k.Current(cpu)
	if err != nil {
		return nil, "", err
	}
	if task.MM == 0 || task.Stack == 0 {
		return nil, "", fmt.Errorf("task %d has no user mode: %w", task.PID, ErrNotFound)
	}
	const size = mem.Virt(8 * (orc.SS + 1)) // of struct pt_regs
	for _, padding := range entryPadding {
		s, err := orc.LoadRegs(k.space, task.Stack+lostStack-padding-size)
		if err != nil {
			return nil, "", fmt.Errorf("end of the stack of task %d: %w", task.PID, err)
		}
		if pc, ok := s.Get(orc.IP); ok && s.User() && pc < k.layout.kernelMin {
			return k.registers(&s), fmt.Sprintf("registers of user mode with which task %d came into the kernel last; "+
				"its CPU is offline, as panic leaves it, and was not in the kernel before", task.PID), nil
		}
	}
	return nil, "", fmt.Errorf("task %d: no registers of user mode at the end of its stack: %w", task.PID, ErrNotFound)
}
