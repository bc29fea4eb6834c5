package linux

import (
	"errors"
	"fmt"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
	"nestdbg/internal/orc"
)

// framesMax bounds a backtrace. Real ones have under 60 frames.
const framesMax = 256

// Frame is one frame of a backtrace, the innermost first.
type Frame struct {
	PC mem.Virt
	SP mem.Virt // the stack pointer in this frame, as far as it is known; else 0

	// Exact: PC is the instruction that the frame goes on with, because the CPU
	// stopped there or an interrupt or exception came. Otherwise it is a return
	// address.
	Exact bool
	User  bool // in user mode: always the last frame
	Guess bool // found by frame pointers or by its looks where no table helps, or from such a frame
}

// Symbolize names what the frame executes. Of a return address it is the function
// with the call, which may be its last instruction; the offset is that of the
// return address.
func (f *Frame) Symbolize(k *Kernel) (Place, bool) {
	switch {
	case f.User:
		return Place{}, false
	case f.Exact || f.PC == 0:
		return k.Symbolize(f.PC)
	}
	p, ok := k.Symbolize(f.PC - 1)
	p.Offset++
	return p, ok
}

// Unwinder makes backtraces in one kernel. It keeps the unwind tables it read, so
// it is for one look at the machine, and for one goroutine.
type Unwinder struct {
	// Problems are tables that are not there, so that frames of their code are guesses,
	// and tables that are damaged, that of symbols too.
	Problems []Problem

	k       *Kernel
	core    *orc.Table // nil if there is none
	text    []mem.Range
	modules map[mem.Virt]*orc.Table // by address of the struct module; nil for none

	thunkFirst, thunkEnd mem.Virt // of the thunks for indirect calls; see inThunk

	noModule bool // Problems has why an address may be a module's that is not in the list
}

// Unwinder reads the kernel's unwind table.
func (k *Kernel) Unwinder() *Unwinder {
	u := &Unwinder{k: k, modules: map[mem.Virt]*orc.Table{}}
	table, err := k.Unwind()
	if err != nil {
		u.Problems = append(u.Problems, Problem{"no unwind table (" + optionUnwind + ")", err})
	}
	u.core = table
	u.noteDamage("unwind table", table)
	if _, err := k.Symbols(); err == nil {
		u.Problems = append(u.Problems, k.tableProblems()...)
	}
	u.thunkFirst, u.thunkEnd = k.thunkRange()
	for _, s := range [][2]string{{"_stext", "_etext"}, {"_sinittext", "_einittext"}} {
		first, ok1 := k.lookupCore(s[0])
		end, ok2 := k.lookupCore(s[1])
		if ok1 && ok2 && first < end {
			u.text = append(u.text, mem.Range{First: uint64(first), Last: uint64(end) - 1})
		}
	}
	if len(u.text) == 0 {
		u.text = []mem.Range{{First: uint64(k.TextVA), Last: uint64(k.TextVA) + k.Size - 1}}
	}
	return u
}

// CPU is the backtrace from a CPU's registers, which may be known in part. With an
// error the frames up to it are returned too.
func (u *Unwinder) CPU(regs *arch.Registers) ([]Frame, error) {
	s := state(regs)
	s.Exact = true
	return u.walk(s)
}

func state(regs *arch.Registers) orc.State {
	var s orc.State
	for r, name := range orcRegs {
		if v, ok := regs.Get(name); ok {
			s.Set(r, v)
		}
	}
	return s
}

// orcRegs are the registers that unwinding may need, by their names in package arch.
var orcRegs = map[orc.Reg]string{
	orc.R15: "r15", orc.R14: "r14", orc.R13: "r13", orc.R12: "r12", orc.BP: "rbp", orc.BX: "rbx",
	orc.R11: "r11", orc.R10: "r10", orc.R9: "r9", orc.R8: "r8", orc.AX: "rax", orc.CX: "rcx",
	orc.DX: "rdx", orc.SI: "rsi", orc.DI: "rdi", orc.IP: "rip", orc.CS: "cs", orc.Flags: "eflags",
	orc.SP: "rsp", orc.SS: "ss",
}

// stackMax is the size of the largest kernel stack, THREAD_SIZE with CONFIG_KASAN.
const stackMax = 64 << 10

// Task is the backtrace of a task that does not run, from its saved registers (see
// Kernel.TaskRegisters). What it says of a task that runs means nothing.
// ErrNotFound if the task has no stack any more.
func (u *Unwinder) Task(task *Task) ([]Frame, error) {
	regs, err := u.k.TaskRegisters(task)
	if err != nil {
		return nil, err
	}
	s := state(regs)
	if pc, ok := s.Get(orc.IP); ok {
		// It is a return address, but of a task that has not run yet: that begins with
		// the first instruction of its function, before which there is no call.
		place, known := u.k.Symbolize(mem.Virt(pc))
		s.Exact = known && place.Offset == 0
	}
	return u.walk(s)
}

// TaskRegisters are the registers with which a task goes on that does not run, as
// far as they are saved: in the struct inactive_task_frame that its saved stack
// pointer leads to. For a task that runs they mean nothing. ErrNotFound if the
// task has no stack any more.
func (k *Kernel) TaskRegisters(task *Task) (*arch.Registers, error) {
	if task.Stack == 0 {
		return nil, fmt.Errorf("task %d has no stack, it has ended: %w", task.PID, ErrNotFound)
	}
	if uint64(task.SP-task.Stack) >= stackMax {
		return nil, fmt.Errorf("stack pointer %#x of task %d is not in its stack at %#x: %w",
			task.SP, task.PID, task.Stack, ErrCorrupt)
	}
	t, err := k.Types()
	if err != nil {
		return nil, err
	}
	shape := newShape(t, "inactive_task_frame")
	fields := make(map[string]Field)
	for i, r := range k.layout.switched {
		if i == 0 { // without a program counter the others are of no use
			fields[r.register] = shape.need(r.member)
		} else if f, ok := shape.want(r.member); ok {
			fields[r.register] = f
		}
	}
	size, err := t.SizeOf("inactive_task_frame")
	if err := errors.Join(shape.err, err); err != nil {
		return nil, err
	}
	rec, err := shape.read(k.space, task.SP)
	if err != nil {
		return nil, fmt.Errorf("stack of task %d: %w", task.PID, err)
	}
	regs := arch.NewRegisters(k.src.Arch)
	for name, f := range fields {
		regs.Set(name, rec.uint(f))
	}
	regs.Set(k.src.Arch.Regs[k.src.Arch.SP].Name, uint64(task.SP)+uint64(size))
	return regs, nil
}

// walk unwinds from a state to the end of the stack or to user mode.
func (u *Unwinder) walk(s orc.State) ([]Frame, error) {
	return u.walkUntil(s, func(*orc.State) bool { return false })
}

// walkUntil is walk that ends at the first caller of which done says so.
func (u *Unwinder) walkUntil(s orc.State, done func(*orc.State) bool) ([]Frame, error) {
	var out []Frame
	seen := map[[2]mem.Virt]bool{}
	for guess := false; ; {
		f, err := u.frame(&s, guess)
		if err != nil {
			return out, err
		}
		out = append(out, f)
		at := [2]mem.Virt{f.PC, f.SP}
		switch {
		case f.User:
			return out, nil
		case seen[at]:
			return out, fmt.Errorf("the stack at %#x leads back to itself: %w", f.SP, ErrCorrupt)
		case len(out) == framesMax:
			return out, fmt.Errorf("no end after %d frames: %w", framesMax, ErrCorrupt)
		}
		seen[at] = true
		pc, _ := s.LookupPC()
		e, known := u.entry(mem.Virt(pc))
		if len(out) > 1 {
			e = u.savedRegisters(e, &s, out[len(out)-2].PC)
		} else if caller, ok := u.byRegister(e, s); ok {
			s = caller
			continue
		}
		next, err := orc.Step(e, s, u.k.space)
		if known && errors.Is(err, orc.ErrUndefined) {
			if caller, maybe, ok := u.byCallSite(e, s); ok {
				next, err, guess = caller, nil, guess || maybe
			}
		}
		switch {
		case errors.Is(err, orc.ErrEndOfStack) && known:
			return out, nil
		case err != nil && !known:
			return out, fmt.Errorf("no unwind table has %#x, and its frame pointer leads nowhere: %w", pc, err)
		case err != nil:
			return out, fmt.Errorf("caller of %#x: %w", f.PC, err)
		}
		guess = guess || !known
		if guess && !u.plausible(&next) {
			return out, fmt.Errorf("no unwind table has %#x, and its frame pointer leads to no code: %w", pc, ErrNotFound)
		}
		if err := u.possible(&next); err != nil {
			return out, fmt.Errorf("caller of %#x: %w", f.PC, err)
		}
		if done(&next) {
			return out, nil
		}
		s = next
	}
}

// frame describes a state.
func (u *Unwinder) frame(s *orc.State, guess bool) (Frame, error) {
	pc, ok := s.Get(orc.IP)
	if !ok {
		return Frame{}, fmt.Errorf("the program counter is not known: %w", ErrNotFound)
	}
	sp, _ := s.Get(orc.SP)
	return Frame{PC: mem.Virt(pc), SP: mem.Virt(sp), Exact: s.Exact, Guess: guess, User: u.user(s, pc)}, nil
}

// user reports whether a state is of user mode: by the code segment, else by the
// address.
func (u *Unwinder) user(s *orc.State, pc uint64) bool {
	if _, ok := s.Get(orc.CS); ok {
		return s.User()
	}
	return pc != 0 && pc < u.k.layout.kernelMin
}

// possible checks what a table led to. Tables can be wrong for an instruction, as
// those of Linux 6.1 are for the one that switches stacks behind the call of
// error_entry, and then any word of the stack passes for a frame.
func (u *Unwinder) possible(s *orc.State) error {
	pc, _ := s.LookupPC()
	kernel := pc >= u.k.layout.kernelMin
	cs, ok := s.Get(orc.CS)
	switch {
	case !s.Exact && !kernel:
		return fmt.Errorf("its return address %#x is not in the kernel: %w", pc, ErrCorrupt)
	case !s.Exact || !ok:
		return nil
	}
	const selectors, rings = 1 << 16, 3
	ring := cs & rings
	if cs < rings+1 || cs >= selectors || ring != 0 && ring != rings || kernel == (ring == rings) && pc != 0 {
		return fmt.Errorf("what was interrupted there had code segment %#x at %#x, which cannot be: %w", cs, pc, ErrCorrupt)
	}
	return nil
}

// plausible reports whether a caller that was guessed can be one.
func (u *Unwinder) plausible(s *orc.State) bool {
	pc, _ := s.LookupPC()
	if u.user(s, pc) {
		return s.User()
	}
	return u.isText(pc) || u.module(mem.Virt(pc)) != nil
}

func (u *Unwinder) isText(pc uint64) bool {
	for _, r := range u.text {
		if r.Contains(pc) {
			return true
		}
	}
	return false
}

// module returns the module that holds an address, nil if none does.
func (u *Unwinder) module(pc mem.Virt) *Module {
	set, err := u.k.moduleSet()
	if err != nil {
		return nil
	}
	for i := range set.list {
		if set.list[i].Contains(pc) {
			return &set.list[i]
		}
	}
	if !u.noModule {
		u.noModule, u.Problems = true, append(u.Problems, set.problems...)
	}
	return nil
}

// entry is the unwind entry for an address, and whether a table has one. Where
// none has it, as in code that the kernel generated at run time, a frame with a
// frame pointer is assumed, as the kernel does (Linux 6.1
// arch/x86/kernel/unwind_orc.c:unwind_next_frame).
func (u *Unwinder) entry(pc mem.Virt) (orc.Entry, bool) {
	if pc == 0 {
		return orc.NullCall(), true
	}
	table := u.core
	if !u.isText(uint64(pc)) {
		table = u.moduleTable(u.module(pc))
	}
	if table != nil {
		if e, ok := table.Find(uint64(pc)); ok {
			return u.inThunk(e, pc), true
		}
	}
	return orc.FramePointer(), false
}

// moduleTable is the table of a module, read once; nil if it has none.
func (u *Unwinder) moduleTable(m *Module) *orc.Table {
	if m == nil {
		return nil
	}
	table, ok := u.modules[m.Addr]
	if !ok {
		var err error
		if table, err = u.k.ModuleUnwind(m); err != nil {
			u.Problems = append(u.Problems, Problem{"unwind table of " + m.Name, err})
		}
		u.noteDamage("unwind table of "+m.Name, table)
		if err := u.k.symbolsOf(m).err; err != nil {
			u.Problems = append(u.Problems, Problem{"symbols of " + m.Name, err})
		}
		u.modules[m.Addr] = table
	}
	return table
}

// noteDamage notes what is wrong with a table; nil if there is none.
func (u *Unwinder) noteDamage(what string, table *orc.Table) {
	if table == nil {
		return
	}
	if damage := table.Damage(); damage != "" {
		u.Problems = append(u.Problems, Problem{what, fmt.Errorf("%s: %w", damage, orc.ErrCorrupt)})
	}
}

// TaskOn is the task of the CPU with these registers: by the CPU's own data, or,
// for registers that do not say where that is, by the kernel stack they are on.
func (k *Kernel) TaskOn(regs *arch.Registers) (Task, error) {
	t, err := k.CurrentOf(regs)
	if err == nil {
		return t, nil
	}
	sp, ok := regs.SP()
	if !ok {
		return Task{}, err
	}
	return k.TaskOfStack(mem.Virt(sp))
}

// TaskOfStack finds the task whose kernel stack holds an address, such as the
// stack pointer of a CPU that says nothing else about what it runs. ErrNotFound
// if it is no task's: stacks of interrupts and exceptions are the CPU's own.
func (k *Kernel) TaskOfStack(sp mem.Virt) (Task, error) {
	tasks, _, err := k.Tasks()
	var best *Task
	for i := range tasks {
		t := &tasks[i]
		if t.Stack != 0 && uint64(sp-t.Stack) < stackMax && (best == nil || t.Stack > best.Stack) {
			best = t
		}
	}
	if best == nil {
		return Task{}, errors.Join(fmt.Errorf("task with a stack at %#x: %w", sp, ErrNotFound), err)
	}
	return *best, nil
}
