package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nestdbg/internal/arch"
	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
)

// fakeStacks are those of a kernel with a table of functions, 0x100 bytes each.
type fakeStacks struct {
	tasks    []linux.Task
	tasksErr error
	frames   map[mem.Virt][]linux.Frame // by task, and by the program counter of a CPU
	errs     map[mem.Virt]error
	problems []linux.Problem
	unread   []linux.Problem // of the list of tasks
}

func (s *fakeStacks) Tasks() ([]linux.Task, []linux.Problem, error) {
	return s.tasks, s.unread, s.tasksErr
}

// TaskOn is the task whose address is in rbx.
func (s *fakeStacks) TaskOn(regs *arch.Registers) (linux.Task, error) {
	v, _ := regs.Get("rbx")
	for _, t := range s.tasks {
		if t.Addr == mem.Virt(v) {
			return t, nil
		}
	}
	return linux.Task{}, linux.ErrNotFound
}

// TaskOfStack knows stacks of 16 KiB.
func (s *fakeStacks) TaskOfStack(sp mem.Virt) (linux.Task, error) {
	for _, t := range s.tasks {
		if t.Stack != 0 && sp-t.Stack < 16<<10 {
			return t, nil
		}
	}
	return linux.Task{}, linux.ErrNotFound
}

func (s *fakeStacks) Current(cpu int) (linux.Task, error) {
	for _, t := range s.tasks {
		if t.OnCPU && t.CPU == cpu {
			return t, nil
		}
	}
	return linux.Task{}, linux.ErrNotFound
}

func (s *fakeStacks) Lost(t *linux.Task) ([]linux.Frame, error) {
	if t.Stack == 0 {
		return nil, linux.ErrNotFound
	}
	return s.frames[t.Stack], nil
}

func (s *fakeStacks) CPU(regs *arch.Registers) ([]linux.Frame, error) {
	pc, _ := regs.PC()
	return s.frames[mem.Virt(pc)], s.errs[mem.Virt(pc)]
}

func (s *fakeStacks) Task(t *linux.Task) ([]linux.Frame, error) {
	return s.frames[t.Addr], s.errs[t.Addr]
}

func (s *fakeStacks) Place(f *linux.Frame) (linux.Place, bool) {
	if f.User || f.PC < 0xffffffff81000000 {
		return linux.Place{}, false
	}
	p := linux.Place{Name: fmt.Sprintf("f%x", uint64(f.PC)>>8&0xff), Offset: uint64(f.PC & 0xff), Size: 0x100}
	if f.PC >= 0xffffffffc0000000 {
		p.Module = "mod"
	}
	return p, true
}

func (s *fakeStacks) Problems() []linux.Problem { return s.problems }

// bootedStacks has a CPU in an interrupt, another that hosts and says nothing of its
// task, and tasks that sleep, run on the CPUs, or elsewhere.
func bootedStacks() (*machine.Machine, *fakeStacks) {
	cpu := func(index int, state machine.RunState, pc, task uint64) *machine.CPU {
		r := arch.NewRegisters(arch.X86)
		r.Set("rip", pc)
		r.Set("rbx", task)
		return &machine.CPU{Index: index, State: state, Regs: r}
	}
	const kernel, module, user = 0xffffffff81000000, 0xffffffffc0000000, 0x401000
	m := &machine.Machine{Name: "vm0", CPUs: []*machine.CPU{
		cpu(0, machine.Running, kernel+0x104, 0xa0), cpu(1, machine.Hosting, kernel+0x204, 0)}}
	s := &fakeStacks{
		tasks: []linux.Task{
			{Addr: 0xa0, PID: 7, TGID: 7, Comm: "sh", State: "R", CPU: 0, OnCPU: true},
			{Addr: 0xb0, PID: 8, TGID: 8, Comm: "evil\x1b[2J\n", State: "S", CPU: 1},
			{Addr: 0xc0, PID: 9, TGID: 8, Comm: "lost", State: "R", CPU: 3, OnCPU: true},
			{Addr: 0xd0, PID: 10, TGID: 10, Comm: "zombie", State: "Z"},
		},
		frames: map[mem.Virt][]linux.Frame{
			kernel + 0x104: {
				{PC: kernel + 0x104, SP: 0x1000, Exact: true}, // on the interrupt's stack
				{PC: kernel + 0x310, SP: 0x1010},
				{PC: module + 0x420, SP: 0x2000, Exact: true}, // interrupted module code
				{PC: kernel + 0x530, SP: 0x2010},
				{PC: user, SP: 0x7000, Exact: true, User: true},
			},
			kernel + 0x204: {{PC: kernel + 0x204, Exact: true}},
			0xb0:           {{PC: kernel + 0x640, SP: 0x3000}, {PC: 0x1234, SP: 0x3010, Guess: true}, {PC: kernel + 0x650, SP: 0x3020, Guess: true}},
		},
		errs:     map[mem.Virt]error{0xd0: errors.New("it has ended"), 0xb0: errors.New("no end")},
		problems: []linux.Problem{{What: "unwind table of mod", Err: errors.New("not found")}},
		unread:   []linux.Problem{{What: "task 12", Err: errors.New("cannot be read")}},
	}
	return m, s
}

// TestAllBacktraces: every CPU once, with its task; then every task that is on none;
// what is not known is said.
func TestAllBacktraces(t *testing.T) {
	m, from := bootedStacks()
	b := newBacktracer(m, from)
	if err := b.All(); err != nil {
		t.Fatal(err)
	}
	want := `vm0 CPU 0, running task 7 sh
#0  0xffffffff81000104 f1+0x4/0x100
#1  0xffffffff81000310 f3+0x10/0x100
#2  0xffffffffc0000420 f4+0x20/0x100 [mod], interrupted
#3  0xffffffff81000530 f5+0x30/0x100
#4  0x0000000000401000 user mode

vm0 CPU 1, hosting
#0  0xffffffff81000204 f2+0x4/0x100

vm0 task 8 evil\x1b[2J\x0a, state S
#0  0xffffffff81000640 f6+0x40/0x100
#1  0x0000000000001234 ? no symbol
#2  0xffffffff81000650 ? f6+0x50/0x100
#3  no end

vm0 task 9 lost, state R
#0  it runs on CPU 3 of the kernel, whose registers are not known

vm0 task 10 zombie, state Z
#0  it has ended
not sure: task 12: cannot be read
not sure: unwind table of mod: not found
`
	r := b.Report()
	var text strings.Builder
	r.Text(&text)
	if diff := cmp.Diff(want, text.String()); diff != "" {
		t.Error(diff)
	}
	checkBacktracesJSON(t, r)
}

// checkBacktracesJSON checks what scripts rely on: what is not known is null, and a
// list without elements is a list.
func checkBacktracesJSON(t *testing.T, r *Backtraces) {
	t.Helper()
	var script bytes.Buffer
	if err := JSON(&script, r); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Stacks []struct {
			CPU    *int
			Task   *struct{ PID, TGID int }
			Frames []map[string]any
			Error  string
		}
	}
	if err := json.Unmarshal(script.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if s := got.Stacks[1]; s.Task != nil || *s.CPU != 1 || s.Frames[0]["sp"] != nil {
		t.Errorf("hosting CPU: %+v", s)
	}
	if s := got.Stacks[4]; s.CPU != nil || s.Frames == nil || s.Error == "" {
		t.Errorf("task without frames: %+v", s)
	}
	if f := got.Stacks[0].Frames[2]; f["interrupted"] != true || f["module"] != "mod" || f["sp"] != "0x2000" {
		t.Errorf("interrupted frame: %v", f)
	}
}

// TestOldRegisters: a CPU that may have run on since its last exit has the stack of that moment. It
// is not that of the task that runs now, if it is on another's.
func TestOldRegisters(t *testing.T) {
	for _, c := range []struct {
		sp       uint64
		doubtful bool
		want     string
	}{
		{0x8100, true, "[CPU 0: 5 frames, the registers are those of its last exit, and task 7 has run since] " +
			"[task 7: 2 frames, a guess from what is on its stack, where the innermost may be old: it runs on CPU 0 of the kernel, whose registers are not known]"},
		{0x4100, true, "[CPU 0: task 7: 5 frames]"},  // its own
		{0x100, true, "[CPU 0: task 7: 5 frames]"},   // nobody's: of an interrupt, say
		{0x8100, false, "[CPU 0: task 7: 5 frames]"}, // a switch of tasks that was not at its end
	} {
		m, from := bootedStacks()
		m.CPUs = m.CPUs[:1]
		m.CPUs[0].State, m.CPUs[0].Doubtful = machine.Parked, c.doubtful
		m.CPUs[0].Regs.Set("rsp", c.sp)
		from.tasks = from.tasks[:2]
		from.tasks[0].Stack, from.tasks[1].Stack = 0x4000, 0x8000
		from.frames[0x4000] = from.frames[0xffffffff81000104][3:]
		b := newBacktracer(m, from)
		if err := b.All(); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range b.Report().Stacks {
			text := ""
			if s.CPU != nil {
				text = fmt.Sprintf("CPU %d: ", *s.CPU)
			}
			if s.Task != nil {
				text += fmt.Sprintf("task %d: ", s.Task.PID)
			}
			text += fmt.Sprintf("%d frames", len(s.Frames))
			if s.Error != "" {
				text += ", " + s.Error
			}
			if s.Task == nil || s.Task.PID == 7 {
				got = append(got, "["+text+"]")
			}
		}
		if text := strings.Join(got, " "); text != c.want {
			t.Errorf("SP %#x, doubtful %v:\n%s, want\n%s", c.sp, c.doubtful, text, c.want)
		}
	}
}

// TestBacktraceOfTask: of a task that runs it is that of its CPU.
func TestBacktraceOfTask(t *testing.T) {
	m, from := bootedStacks()
	b := newBacktracer(m, from)
	for pid, want := range map[int]int{7: 5, 8: 3, 9: 0} {
		before := len(b.Report().Stacks)
		if err := b.Task(pid); err != nil {
			t.Fatal(err)
		}
		s := b.Report().Stacks[before]
		if len(s.Frames) != want || s.Task.PID != pid || (s.CPU != nil) != (pid == 7) {
			t.Errorf("%d: %+v", pid, s)
		}
	}
}

// TestBacktracesOfBrokenList: what could be read is shown, and what is not among that need
// not be missing.
func TestBacktracesOfBrokenList(t *testing.T) {
	m, from := bootedStacks()
	broken, unread := errors.New("the list is broken"), []linux.Problem{{What: "task 12", Err: mem.ErrFault}}
	for _, tt := range []struct {
		name     string
		problems []linux.Problem
		err      error
		count    int  // of problems that are said, with that of the stacks
		none     bool // it is sure that there is no such task
	}{
		{"whole", nil, nil, 1, true},
		{"an end that is not there", nil, broken, 2, false},
		{"a task that cannot be read", unread, nil, 2, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			from.unread, from.tasksErr = tt.problems, tt.err
			b := newBacktracer(m, from)
			if err := b.All(); err != nil {
				t.Fatal(err)
			}
			r := b.Report()
			if len(r.Stacks) != 5 || len(r.Problems) != tt.count {
				t.Errorf("%d stacks, problems %q", len(r.Stacks), r.Problems)
			}
			var none *NoTaskError
			err := b.Task(99)
			if errors.As(err, &none) != tt.none || errors.Is(err, broken) != (tt.err != nil) ||
				errors.Is(err, mem.ErrFault) != (tt.problems != nil) || !strings.Contains(err.Error(), "task 99") {
				t.Errorf("no such task: %v", err)
			}
		})
	}
	b := newBacktracer(&machine.Machine{Name: "vm0"}, &fakeStacks{tasksErr: broken})
	if err := b.All(); !errors.Is(err, broken) {
		t.Errorf("nothing at all: %v", err)
	}
}

func TestBacktracesText(t *testing.T) {
	cpu, size := 1, uint64(0x20)
	r := Backtraces{Machine: "l1", Problems: []string{"unwind table of m: not found"}, Stacks: []Stack{
		{CPU: &cpu, State: "running", Task: &TaskName{PID: 7, Comm: "sh"}, Frames: []StackFrame{
			{PC: 0xffffffff81000004, Symbol: "leaf", Offset: 4, Size: &size},
			{PC: 0xffffffff81000110, Symbol: "body", Offset: 0x10, Interrupted: true},
			{PC: 0xffffffffc0000010, Symbol: "f", Offset: 0x10, Size: &size, Module: "m", Guess: true},
			{PC: 0xffffffffd0000010},
			{PC: 0x401000, User: true},
		}},
		{State: "D", Task: &TaskName{PID: 9, Comm: "cat"}, Error: "no stack"},
	}}
	want := `l1 CPU 1, running task 7 sh
#0  0xffffffff81000004 leaf+0x4/0x20
#1  0xffffffff81000110 body+0x10, interrupted
#2  0xffffffffc0000010 ? f+0x10/0x20 [m]
#3  0xffffffffd0000010 no symbol
#4  0x0000000000401000 user mode

l1 task 9 cat, state D
#0  no stack
not sure: unwind table of m: not found
`
	var b strings.Builder
	r.Text(&b)
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}
