package linux

import (
	"errors"
	"fmt"
	"sync"

	"nestdbg/internal/arch"
	"nestdbg/internal/cexpr"
	"nestdbg/internal/mem"
)

// ExprContext is what expressions see besides the kernel.
type ExprContext struct {
	Memory mem.VirtReader // whose address space; nil for the kernel's own
	// CPU is the CPU that "$rip" and "current()" mean, and addresses that Memory does
	// not map. It is asked for once, when an expression needs one, as that may stop a
	// machine; nil if there is none.
	CPU  func() (ExprCPU, error)
	Task mem.Virt // the task that "current()" means instead; may be 0
}

// ExprCPU is a CPU as expressions see it.
type ExprCPU struct {
	Regs   *arch.Registers
	Memory mem.VirtReader // as the CPU sees it; may be nil
}

// Expressions is what C expressions about this kernel are evaluated in, for one
// question: memory that was read once is not read again, so that an answer does not
// contradict itself, and the Env belongs to one goroutine. Types come from BTF, of modules
// too. A kernel without has an Env that knows symbols and says what is missing.
func (k *Kernel) Expressions(c ExprContext) *cexpr.Env {
	e := &cexpr.Env{PerCPU: k.exprPerCPU}
	if c.Memory == nil {
		c.Memory = k.space
	}
	memory := &pageMemory{from: c.Memory, pages: map[uint64]memoryPage{}}
	if c.CPU != nil {
		c.CPU = sync.OnceValues(c.CPU)
		memory.more = c.CPU
	}
	e.Memory = memory
	symbols := &exprSymbols{k: k, env: e}
	e.Symbols = symbols
	if core, err := k.Types(); err != nil {
		e.Types = noTypes{whyNoTypes(err)}
	} else {
		symbols.types = newExprTypes(k, core)
		e.Types = symbols.types
	}
	if c.CPU != nil {
		e.Registers = func(name string) (uint64, error) {
			one, err := c.CPU()
			if err != nil {
				return 0, err
			}
			return exprRegister(one.Regs, name)
		}
	}
	e.Helpers = k.helpers(e, c)
	return e
}

// exprPerCPU is perCPUOffset for expressions: a CPU that is not there is a mistake
// of the person.
func (k *Kernel) exprPerCPU(cpu int) (uint64, error) {
	off, err := k.perCPUOffset(cpu)
	if errors.Is(err, ErrNotFound) {
		n, _ := k.CPUCount()
		return 0, &cexpr.Error{Pos: -1, Msg: fmt.Sprintf("there is no CPU %d; the kernel has %d, from 0 on", cpu, n), Err: err}
	}
	return off, err
}

func exprRegister(regs *arch.Registers, name string) (uint64, error) {
	switch a := regs.Arch(); name {
	case "pc":
		name = a.Regs[a.PC].Name
	case "sp":
		name = a.Regs[a.SP].Name
	}
	v, ok := regs.Get(name)
	if !ok {
		return 0, fmt.Errorf("register $%s is not known of this CPU", name)
	}
	return v, nil
}

// helpers are the functions that expressions can call, with the names that the
// kernel's own scripts for gdb give them.
func (k *Kernel) helpers(e *cexpr.Env, c ExprContext) map[string]cexpr.Helper {
	pointer := func(tag string, at mem.Virt) (cexpr.Value, error) {
		list, err := e.Types.Named("struct", tag)
		if err != nil {
			return cexpr.Value{}, err
		}
		return e.Computed(cexpr.PointerTo(list[0]), uint64(at)), nil
	}
	current := func(args []cexpr.Value) (cexpr.Value, error) {
		at, err := k.currentFor(args, c)
		if err != nil {
			return cexpr.Value{}, err
		}
		return pointer("task_struct", at)
	}
	task := func(args []cexpr.Value) (cexpr.Value, error) {
		at, err := k.taskFor(args)
		if err != nil {
			return cexpr.Value{}, err
		}
		return pointer("task_struct", at)
	}
	module := func(args []cexpr.Value) (cexpr.Value, error) {
		at, err := k.moduleFor(args)
		if err != nil {
			return cexpr.Value{}, err
		}
		return pointer("module", at)
	}
	object := func(f func([]cexpr.Value) (cexpr.Value, error)) func([]cexpr.Value) (cexpr.Value, error) {
		return func(args []cexpr.Value) (cexpr.Value, error) {
			v, err := f(args)
			if err != nil {
				return v, err
			}
			return v.Deref()
		}
	}
	return map[string]cexpr.Helper{
		"current":         {Usage: "current([CPU])", Call: current},
		"task":            {Usage: "task(PID)", Call: task},
		"module":          {Usage: `module("NAME")`, Call: module},
		"$lx_current":     {Usage: "$lx_current()", Call: object(current)},
		"$lx_task_by_pid": {Usage: "$lx_task_by_pid(PID)", Call: object(task)},
		"$lx_module":      {Usage: `$lx_module("NAME")`, Call: object(module)},
	}
}

func refuse(format string, args ...any) error {
	return &cexpr.Error{Pos: -1, Msg: fmt.Sprintf(format, args...)}
}

// number is the argument of a helper that has to be a small number.
func number(v cexpr.Value, what string) (int, error) {
	if v.Type == nil {
		return 0, refuse("%s has to be a number, not %q", what, v.Symbol)
	}
	n, err := v.Bits()
	if err != nil {
		return 0, err
	}
	if n > 1<<31-1 {
		return 0, refuse("there is no %s %d", what, int64(n))
	}
	return int(n), nil
}

// currentFor is where the task is that a CPU runs: the one given, by the kernel's
// number, else the one whose registers are at hand.
func (k *Kernel) currentFor(args []cexpr.Value, c ExprContext) (mem.Virt, error) {
	cpu := 0
	var err error
	switch {
	case len(args) > 1:
		return 0, refuse("current takes one CPU at most")
	case len(args) == 1:
		if cpu, err = number(args[0], "CPU"); err != nil {
			return 0, err
		}
		if _, err := k.exprPerCPU(cpu); err != nil {
			return 0, err
		}
	case c.Task != 0:
		return c.Task, nil
	case c.CPU == nil:
		return 0, refuse("current() needs a CPU whose registers are known; write current(CPU)")
	default:
		one, err := c.CPU()
		if err != nil {
			return 0, err
		}
		if cpu, err = k.CPUOf(one.Regs); err != nil {
			return 0, err
		}
	}
	at, err := k.currentPointer(cpu)
	if err != nil {
		return 0, err
	}
	p, err := mem.VirtUint64(k.space, at)
	return mem.Virt(p), err
}

func (k *Kernel) taskFor(args []cexpr.Value) (mem.Virt, error) {
	if len(args) != 1 {
		return 0, refuse("task takes the number of a task")
	}
	pid, err := number(args[0], "task")
	if err != nil {
		return 0, err
	}
	list, problems, err := k.Tasks()
	for i := range list {
		if list[i].PID == pid {
			return list[i].Addr, nil
		}
	}
	if err != nil {
		return 0, err
	}
	return 0, refuse("there is no task %d%s", pid, Unread(problems))
}

func (k *Kernel) moduleFor(args []cexpr.Value) (mem.Virt, error) {
	if len(args) != 1 || args[0].Type != nil {
		return 0, refuse(`module takes a name: module("kvm")`)
	}
	list, problems, err := k.Modules()
	for i := range list {
		if list[i].Name == args[0].Symbol {
			return list[i].Addr, nil
		}
	}
	if err != nil {
		return 0, err
	}
	return 0, refuse("there is no module %q%s", args[0].Symbol, Unread(problems))
}

// pageMemory reads each page once. It keeps a bounded number of them.
type pageMemory struct {
	from  mem.VirtReader
	more  func() (ExprCPU, error) // for what from does not have; may be nil
	pages map[uint64]memoryPage
}

type memoryPage struct {
	b   []byte // shorter than a page if err is not nil
	err error
}

// pagesMax bounds the pages that one question keeps.
const pagesMax = 4096

// ReadVirt implements mem.VirtReader.
func (m *pageMemory) ReadVirt(p []byte, a mem.Virt) (int, error) {
	done := 0
	for done < len(p) {
		at := uint64(a) + uint64(done)
		page := m.page(at &^ (pageSize - 1))
		off := at % pageSize
		if off >= uint64(len(page.b)) {
			return done, faultAt(page.err, at)
		}
		done += copy(p[done:], page.b[off:])
	}
	return done, nil
}

func (m *pageMemory) page(base uint64) memoryPage {
	if page, ok := m.pages[base]; ok {
		return page
	}
	page := readPage(m.from, base)
	if page.err != nil && m.more != nil {
		if one, err := m.more(); err != nil {
			page.err = fmt.Errorf("%w; no CPU can be asked either: %w", page.err, err)
		} else if one.Memory != nil {
			page = readPage(one.Memory, base)
		}
	}
	if len(m.pages) < pagesMax {
		m.pages[base] = page
	}
	return page
}

func readPage(from mem.VirtReader, base uint64) memoryPage {
	b := make([]byte, pageSize)
	n, err := from.ReadVirt(b, mem.Virt(base))
	return memoryPage{b[:n], err}
}

// faultAt is a page's fault, for the address in it that was wanted.
func faultAt(err error, at uint64) error {
	var fault *mem.FaultError
	if errors.As(err, &fault) && fault.Addr < at && fault.Addr>>12 == at>>12 {
		return &mem.FaultError{Space: fault.Space, Addr: at, Err: fault.Err}
	}
	return err
}
