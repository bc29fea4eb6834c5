package session

import (
	"fmt"
	"strconv"

	"nestdbg/internal/arch"
	"nestdbg/internal/gdbserver"
	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
)

// taskThread is what a task's thread number is above its PID, so that a person can
// read the one from the other. CPU numbers stay far below it.
const taskThread = 10_000_000

// taskThreads shows the tasks of machines as threads. Tasks that run are not among
// them: their registers are those of the CPUs.
type taskThreads struct {
	on    map[string]bool      // by machine name
	stops map[string]*taskStop // by machine name
}

// taskStop is the tasks of a machine at one stop.
type taskStop struct {
	tower   *machine.Tower // of that stop
	kernel  *linux.Kernel
	threads []gdbserver.Thread
	byID    map[int]*taskState
	onCPU   map[int]linux.Task // by index of the machine's CPU, where it is known
}

type taskState struct {
	task   linux.Task
	regs   *arch.Registers // nil until somebody asked
	memory *CPUMemory      // nil until somebody asked
}

// ShowTasks makes every task of m a thread that can be looked at, from now on or
// no longer, and returns how many there are now.
func (d *Debugger) ShowTasks(m *machine.Machine, on bool) (count int, problems []linux.Problem, err error) {
	delete(d.tasks.on, m.Name)
	delete(d.tasks.stops, m.Name)
	if !on {
		return 0, nil, nil
	}
	s, problems, err := d.listTasks(m)
	if err != nil {
		return 0, problems, err
	}
	d.tasks.on[m.Name], d.tasks.stops[m.Name] = true, s
	return len(s.threads), problems, nil
}

// ShowsTasks says whether the tasks of m are threads.
func (d *Debugger) ShowsTasks(m *machine.Machine) bool { return d.tasks.on[m.Name] }

// taskStop is the tasks of m at this stop; nil if they are not wanted, or if the
// kernel does not tell any more.
func (d *Debugger) taskStop(m *machine.Machine) *taskStop {
	if !d.tasks.on[m.Name] {
		return nil
	}
	if s := d.tasks.stops[m.Name]; s != nil && s.tower == d.Tower() {
		return s
	}
	s, problems, err := d.listTasks(m)
	for _, p := range problems {
		d.log.Info("task threads", "machine", m.Name, "problem", p)
	}
	if err != nil {
		d.log.Warn("task threads", "machine", m.Name, "error", err)
		s = &taskStop{tower: d.Tower()}
	}
	d.tasks.stops[m.Name] = s
	return s
}

// listTasks makes threads of the tasks of m that run on none of its CPUs.
func (d *Debugger) listTasks(m *machine.Machine) (*taskStop, []linux.Problem, error) {
	k, err := d.Kernel(m)
	if err != nil {
		return nil, nil, err
	}
	tasks, problems, err := k.Tasks()
	switch {
	case err != nil && len(tasks) == 0:
		return nil, problems, err
	case err != nil:
		problems = append(problems, linux.Problem{What: "the list of tasks ends early", Err: err})
	}
	s := &taskStop{tower: d.Tower(), kernel: k, byID: make(map[int]*taskState), onCPU: make(map[int]linux.Task)}
	running := make(map[uint64]bool)
	for _, c := range m.CPUs {
		if t, err := k.TaskOn(c.Regs); err == nil {
			s.onCPU[c.Index] = t
			running[uint64(t.Addr)] = true
		}
	}
	for _, t := range tasks {
		id := taskThread + t.PID
		if t.PID <= 0 || running[uint64(t.Addr)] || s.byID[id] != nil {
			continue // PID 0 is the CPUs' own, and what is there twice is on its way out
		}
		s.byID[id] = &taskState{task: t}
		s.threads = append(s.threads, gdbserver.Thread{ID: id, Name: taskText(&t), Extra: taskDoing(&t), Core: -1, Inert: true})
	}
	return s, problems, nil
}

// of names the task that a CPU runs, for "info threads".
func (s *taskStop) of(c *machine.CPU) string {
	if s == nil {
		return ""
	}
	if t, ok := s.onCPU[c.Index]; ok {
		return ", task " + taskText(&t)
	}
	return ""
}

// taskText names a task for gdb, which shows it as it is: without what a terminal obeys.
func taskText(t *linux.Task) string {
	name := strconv.Quote(t.Comm)
	return fmt.Sprintf("%s (%d)", name[1:len(name)-1], t.PID)
}

// taskDoing says in a few words what a task does, for "info threads".
func taskDoing(t *linux.Task) string {
	last := ""
	if t.CPU >= 0 {
		last = fmt.Sprintf(", last on CPU %d", t.CPU)
	}
	switch {
	case t.OnCPU:
		return "being switched to or from" + last + "; registers not known"
	case t.Stack == 0:
		return fmt.Sprintf("state %s, it has ended and has no stack", t.State)
	}
	return fmt.Sprintf("state %s%s", t.State, last)
}

// task finds a task by gdb's numbers.
func (d *Debugger) task(pid, tid int) (*machine.Machine, *taskStop, *taskState) {
	if tid < taskThread {
		return nil, nil, nil
	}
	for _, m := range d.Tower().Machines {
		if d.Number(m) != pid {
			continue
		}
		if s := d.taskStop(m); s != nil && s.byID[tid] != nil {
			return m, s, s.byID[tid]
		}
	}
	return nil, nil, nil
}

// TaskThread is the task that is a thread, by gdb's numbers; false if it is no task's.
func (d *Debugger) TaskThread(pid, tid int) (linux.Task, bool) {
	if _, _, t := d.task(pid, tid); t != nil {
		return t.task, true
	}
	return linux.Task{}, false
}

// registersOf are the saved registers of a task; none where they are not known.
func (d *Debugger) registersOf(m *machine.Machine, s *taskStop, t *taskState) *arch.Registers {
	if t.regs != nil {
		return t.regs
	}
	t.regs = arch.NewRegisters(m.Arch)
	if t.task.OnCPU {
		return t.regs
	}
	regs, err := s.kernel.TaskRegisters(&t.task)
	if err != nil {
		d.log.Info("registers of a task", "machine", m.Name, "task", t.task.PID, "error", err)
		return t.regs
	}
	t.regs = regs
	return regs
}

// memoryOf is the virtual memory of a task: its own where it has any, and the
// kernel's.
func (d *Debugger) memoryOf(m *machine.Machine, s *taskStop, t *taskState) *CPUMemory {
	if t.memory != nil {
		return t.memory
	}
	v := &CPUMemory{name: fmt.Sprintf("virtual memory of task %d of %s", t.task.PID, m.Name)}
	if t.task.MM != 0 {
		own, err := s.kernel.UserSpace(t.task.MM)
		if err == nil {
			v.spaces = append(v.spaces, own)
		} else {
			d.log.Info("memory of a task", "machine", m.Name, "task", t.task.PID, "error", err)
		}
	}
	v.spaces = append(v.spaces, s.kernel.Space())
	t.memory = v
	return v
}
