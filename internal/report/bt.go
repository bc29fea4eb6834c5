package report

import (
	"errors"
	"fmt"
	"io"

	"nestdbg/internal/arch"
	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
)

// Backtraces are stacks of one machine.
type Backtraces struct {
	Machine  string   `json:"machine"`
	Stacks   []Stack  `json:"stacks"`
	Problems []string `json:"problems,omitempty"`
}

// Stack is the backtrace of a CPU or of a task that is on none. Task is null where
// it is not known. Error says why the frames end before the stack does.
type Stack struct {
	CPU   *int      `json:"cpu"`
	State string    `json:"state"`
	Task  *TaskName `json:"task"`
	// Source says where the registers are from, if they are not the CPU's own.
	Source string       `json:"source,omitempty"`
	Frames []StackFrame `json:"frames"`
	Error  string       `json:"error,omitempty"`
}

// TaskName names a task.
type TaskName struct {
	PID  int `json:"pid"`
	TGID int `json:"tgid"`
	Comm Raw `json:"comm"`
	Addr Hex `json:"addr"`
}

// StackFrame is one frame, the innermost first. Symbol is empty where none is
// known. Interrupted: an interrupt or exception came at this very instruction;
// otherwise a PC that is not the first frame's is a return address. Guess: no
// unwind table leads here.
type StackFrame struct {
	PC          Hex     `json:"pc"`
	SP          *Hex    `json:"sp"`
	Symbol      string  `json:"symbol,omitempty"`
	Offset      Hex     `json:"offset"`
	Size        *uint64 `json:"size"`
	Module      string  `json:"module,omitempty"`
	Interrupted bool    `json:"interrupted,omitempty"`
	User        bool    `json:"user,omitempty"`
	Guess       bool    `json:"guess,omitempty"`
}

// stacks is what a Backtracer asks of a kernel.
type stacks interface {
	Tasks() ([]linux.Task, []linux.Problem, error)
	// TaskOn is the task that a CPU runs.
	TaskOn(*arch.Registers) (linux.Task, error)
	CPU(*arch.Registers) ([]linux.Frame, error)
	Task(*linux.Task) ([]linux.Frame, error)
	// TaskOfStack is the task on whose stack an address is.
	TaskOfStack(mem.Virt) (linux.Task, error)
	// Current is the task on a CPU of the kernel, as the kernel says.
	Current(cpu int) (linux.Task, error)
	// Lost is a guess at the stack of a task that ran on a CPU without registers.
	Lost(*linux.Task) ([]linux.Frame, error)
	Place(*linux.Frame) (linux.Place, bool)
	// Problems are those of the stacks so far.
	Problems() []linux.Problem
}

// kernelStacks are those of a real kernel.
type kernelStacks struct {
	*linux.Kernel
	unwinder *linux.Unwinder
}

func (s kernelStacks) CPU(regs *arch.Registers) ([]linux.Frame, error) { return s.unwinder.CPU(regs) }
func (s kernelStacks) Task(t *linux.Task) ([]linux.Frame, error)       { return s.unwinder.Task(t) }
func (s kernelStacks) Lost(t *linux.Task) ([]linux.Frame, error)       { return s.unwinder.Lost(t) }
func (s kernelStacks) Place(f *linux.Frame) (linux.Place, bool)        { return f.Symbolize(s.Kernel) }
func (s kernelStacks) Problems() []linux.Problem                       { return s.unwinder.Problems }

// Backtracer collects backtraces of a machine. It is for one look at it.
type Backtracer struct {
	report  *Backtraces
	machine *machine.Machine
	stacks  stacks
	current map[int]*linux.Task // by CPU of the machine; nil where not known
	old     map[int]*linux.Task // that runs now where the registers are older than memory
}

// NewBacktracer begins a report on a machine that runs a kernel.
func NewBacktracer(m *machine.Machine, k *linux.Kernel, u *linux.Unwinder) *Backtracer {
	return newBacktracer(m, kernelStacks{k, u})
}

func newBacktracer(m *machine.Machine, from stacks) *Backtracer {
	b := &Backtracer{report: &Backtraces{Machine: m.Name, Stacks: []Stack{}}, machine: m, stacks: from,
		current: map[int]*linux.Task{}, old: map[int]*linux.Task{}}
	for _, c := range m.CPUs {
		// A CPU that hosts a guest does not say where its own data is.
		t, err := from.TaskOn(c.Regs)
		if c.State == machine.Lost { // its number is the kernel's: there is nothing else to number it by
			t, err = from.Current(c.Index)
		}
		switch {
		case err != nil:
		case c.Doubtful && b.onOther(c, &t):
			b.old[c.Index] = &t
		default:
			b.current[c.Index] = &t
		}
	}
	return b
}

// onOther reports whether the stack pointer of a CPU is on the stack of a task that is not the one
// that runs there.
func (b *Backtracer) onOther(c *machine.CPU, t *linux.Task) bool {
	sp, _ := c.Regs.SP()
	owner, err := b.stacks.TaskOfStack(mem.Virt(sp))
	return err == nil && owner.Addr != t.Addr
}

// Report is what was collected.
func (b *Backtracer) Report() *Backtraces {
	for _, p := range b.stacks.Problems() {
		b.report.Problems = append(b.report.Problems, p.String())
	}
	return b.report
}

// CPU adds the backtrace of a CPU.
func (b *Backtracer) CPU(c *machine.CPU) {
	index := c.Index
	s := Stack{CPU: &index, State: c.State.String(), Task: taskName(b.current[c.Index])}
	_, known := c.Regs.PC()
	switch t := b.current[c.Index]; {
	case c.State == machine.Lost && !known && t != nil:
		b.lost(s, t)
		return
	case c.State == machine.Lost && known:
		s.Source = c.Source
	}
	frames, err := b.stacks.CPU(c.Regs)
	if t := b.old[c.Index]; t != nil {
		err = errors.Join(err, fmt.Errorf("the registers are those of its last exit, and task %d has run since", t.PID))
	}
	b.add(s, frames, err)
}

// lost adds what can be made of the stack of a task that ran on a CPU whose registers
// are not known.
func (b *Backtracer) lost(s Stack, t *linux.Task) {
	why := fmt.Errorf("it runs on CPU %d of the kernel, whose registers are not known", t.CPU)
	frames, err := b.stacks.Lost(t)
	if err == nil {
		why = fmt.Errorf("a guess from what is on its stack, where the innermost may be old: %w", why)
	}
	b.add(s, frames, why)
}

// Task adds the backtraces of the tasks with a number, most often one. A task
// that runs now has that of its CPU. NoTaskError is for a list that was read to its end.
func (b *Backtracer) Task(pid int) error {
	tasks, problems, err := b.stacks.Tasks()
	found := false
	for i := range tasks {
		if tasks[i].PID == pid {
			found = true
			b.task(&tasks[i])
		}
	}
	for _, p := range problems {
		err = errors.Join(err, fmt.Errorf("%s: %w", p.What, p.Err))
	}
	switch {
	case found:
		return nil
	case err != nil:
		return fmt.Errorf("task %d is not among the %d of %s that could be read: %w", pid, len(tasks), b.machine.Name, err)
	}
	return &NoTaskError{b.machine.Name, pid}
}

// NoTaskError says that a machine has no task of a number.
type NoTaskError struct {
	Machine string
	PID     int
}

func (e *NoTaskError) Error() string { return fmt.Sprintf("%s has no task %d", e.Machine, e.PID) }

// All adds the backtraces of every CPU, then of every task that is on none. It fails
// only if there is nothing to show.
func (b *Backtracer) All() error {
	err := b.collect(func(*linux.Task) bool { return true })
	if len(b.report.Stacks) > 0 {
		return nil
	}
	return err
}

// collect adds the backtraces of every CPU, then of those tasks on none that are wanted.
// What could not be read of the list is among the report's problems.
func (b *Backtracer) collect(want func(*linux.Task) bool) error {
	shown := map[mem.Virt]bool{}
	for _, c := range b.machine.CPUs {
		b.CPU(c)
		if t := b.current[c.Index]; t != nil {
			shown[t.Addr] = true
		}
	}
	tasks, problems, err := b.stacks.Tasks()
	for i := range tasks {
		if t := &tasks[i]; !shown[t.Addr] && want(t) {
			b.task(t)
		}
	}
	if err != nil {
		b.report.Problems = append(b.report.Problems, err.Error())
	}
	for _, p := range problems {
		b.report.Problems = append(b.report.Problems, p.String())
	}
	return err
}

func (b *Backtracer) task(t *linux.Task) {
	for _, c := range b.machine.CPUs {
		if x := b.current[c.Index]; x != nil && x.Addr == t.Addr {
			b.CPU(c)
			return
		}
	}
	s := Stack{State: t.State, Task: taskName(t)}
	if t.OnCPU {
		b.lost(s, t)
		return
	}
	frames, err := b.stacks.Task(t)
	b.add(s, frames, err)
}

func taskName(t *linux.Task) *TaskName {
	if t == nil {
		return nil
	}
	return &TaskName{PID: t.PID, TGID: t.TGID, Comm: Raw(t.Comm), Addr: Hex(t.Addr)}
}

func (b *Backtracer) add(s Stack, frames []linux.Frame, err error) {
	s.Frames = []StackFrame{}
	for i := range frames {
		f := &frames[i]
		out := StackFrame{PC: Hex(f.PC), SP: hexPointer(uint64(f.SP), f.SP != 0), User: f.User, Guess: f.Guess,
			Interrupted: f.Exact && i > 0 && !f.User}
		if p, ok := b.stacks.Place(f); ok {
			out.Symbol, out.Offset, out.Module, out.Size = p.Name, Hex(p.Offset), p.Module, sizePointer(p.Size)
		}
		s.Frames = append(s.Frames, out)
	}
	if err != nil {
		s.Error = err.Error()
	}
	b.report.Stacks = append(b.report.Stacks, s)
}

// Text implements Report.
func (r *Backtraces) Text(w io.Writer) {
	for i := range r.Stacks {
		if i > 0 {
			fmt.Fprintln(w)
		}
		r.Stacks[i].text(w, r.Machine)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "not sure: %s\n", p)
	}
}

func (s *Stack) text(w io.Writer, machine string) {
	fmt.Fprint(w, machine)
	if s.CPU != nil {
		fmt.Fprintf(w, " CPU %d, %s", *s.CPU, s.State)
	}
	if t := s.Task; t != nil {
		fmt.Fprintf(w, " task %d %s", t.PID, printable(string(t.Comm)))
		if s.CPU == nil {
			fmt.Fprintf(w, ", state %s", s.State)
		}
	}
	if s.Source != "" {
		fmt.Fprintf(w, ", from the %s", s.Source)
	}
	fmt.Fprintln(w)
	for i := range s.Frames {
		s.Frames[i].text(w, i)
	}
	if s.Error != "" {
		fmt.Fprintf(w, "#%-2d %s\n", len(s.Frames), s.Error)
	}
}

func (f *StackFrame) text(w io.Writer, number int) {
	fmt.Fprintf(w, "#%-2d 0x%016x ", number, uint64(f.PC))
	if f.Guess {
		fmt.Fprint(w, "? ")
	}
	switch {
	case f.User:
		fmt.Fprint(w, "user mode")
	case f.Symbol == "":
		fmt.Fprint(w, "no symbol")
	default:
		fmt.Fprint(w, placeText(f.Symbol, uint64(f.Offset), f.Size, f.Module))
	}
	if f.Interrupted {
		fmt.Fprint(w, ", interrupted")
	}
	fmt.Fprintln(w)
}
