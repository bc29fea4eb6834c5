package linux

import (
	"errors"
	"fmt"
	"math/bits"

	"nestdbg/internal/mem"
)

// tasksMax bounds how many tasks are listed, and threads of one process.
const tasksMax = 1 << 18

// Task is one task of the kernel: a process, one of its threads, or a thread of
// the kernel itself.
type Task struct {
	Addr   mem.Virt // of its task_struct
	PID    int      // of the thread; what gettid says in the initial namespace
	TGID   int      // of the process
	Parent int      // process id of the real parent, -1 if it could not be read
	Comm   string   // bytes as the program chose them, without a NUL
	State  string   // one letter, as ps shows
	CPU    int      // that it runs or last ran on, -1 if unknown
	OnCPU  bool     // it runs now
	Kernel bool     // it is a thread of the kernel
	MM     mem.Virt // its mm_struct, 0 if none: a thread of the kernel, or one that has ended
	Stack  mem.Virt // lowest address of its kernel stack
	SP     mem.Virt // saved kernel stack pointer; means nothing while OnCPU
}

// taskShape is where task_struct keeps what we want.
type taskShape struct {
	shape                                          *shape
	tasks, pid, tgid, comm, state, exit, mm, stack Field
	parent, signal, threadNode, sp, cpu, onCPU     Field
	flags                                          Field
	hasCPU, hasOnCPU                               bool
	signalThreads                                  uint32 // offset of thread_head in signal_struct
	tgidOffset                                     uint32
}

func newTaskShape(t *Types) (*taskShape, error) {
	s := newShape(t, "task_struct")
	out := &taskShape{
		shape: s,
		tasks: s.need("tasks"), pid: s.need("pid"), tgid: s.need("tgid"), comm: s.need("comm"),
		state: s.need("__state", "state"), exit: s.need("exit_state"), // __state: Linux 5.14
		mm: s.need("mm"), stack: s.need("stack"), parent: s.need("real_parent"),
		signal: s.need("signal"), threadNode: s.need("thread_node"), sp: s.need("thread.sp"), flags: s.need("flags"),
	}
	out.cpu, out.hasCPU = s.want("thread_info.cpu", "cpu")
	out.onCPU, out.hasOnCPU = s.want("on_cpu")
	out.tgidOffset = out.tgid.Offset
	head, _, err := t.Offset("signal_struct", "thread_head")
	out.signalThreads = head
	return out, errors.Join(s.err, err)
}

// Task reads the task whose task_struct is at addr.
func (k *Kernel) Task(addr mem.Virt) (Task, error) {
	t, err := k.Types()
	if err != nil {
		return Task{}, err
	}
	s, err := newTaskShape(t)
	if err != nil {
		return Task{}, err
	}
	rec, err := s.shape.read(k.space, addr)
	if err != nil {
		return Task{}, err
	}
	return k.task(s, &rec), nil
}

// kernelThread is PF_KTHREAD of task_struct.flags, Linux 5.10 to 7.2 include/linux/sched.h.
const kernelThread = 0x00200000

// task interprets a task_struct.
func (k *Kernel) task(s *taskShape, rec *record) Task {
	t := Task{
		Addr: rec.addr, PID: int(rec.int(s.pid)), TGID: int(rec.int(s.tgid)), Parent: -1,
		Comm: string(untilNUL(rec.bytes(s.comm))), State: taskState(rec.uint(s.state), rec.uint(s.exit)), CPU: -1,
		MM: rec.virt(s.mm), Stack: rec.virt(s.stack), SP: rec.virt(s.sp),
	}
	// Not by the lack of an mm_struct: a process that has ended has none, and a thread of
	// the kernel may borrow one (Linux 6.1 kernel/kthread.c:kthread_use_mm).
	t.Kernel = rec.uint(s.flags)&kernelThread != 0
	if s.hasCPU {
		t.CPU = int(rec.int(s.cpu))
	}
	if s.hasOnCPU {
		t.OnCPU = rec.uint(s.onCPU) != 0
	}
	if parent, err := mem.VirtUint32(k.space, rec.virt(s.parent)+mem.Virt(s.tgidOffset)); err == nil {
		t.Parent = int(int32(parent))
	}
	return t
}

// taskState is the letter for a state, Linux 6.1 include/linux/sched.h:
// task_index_to_char and __task_state_index.
func taskState(state, exit uint64) string {
	const (
		letters = "RSDTtXZPI"
		report  = 0x7f  // the bits that are told apart
		idle    = 0x402 // TASK_UNINTERRUPTIBLE | TASK_NOLOAD
		rtLock  = 0x1000
	)
	switch both := (state | exit) & report; {
	case state&idle == idle:
		return "I"
	case both == 0 && state&rtLock != 0:
		return "D"
	default:
		return letters[bits.Len64(both):][:1]
	}
}

// Tasks lists every thread of every process, and the kernel's, but not the idle
// tasks of the CPUs. Problems are about single tasks; with an error the list may
// still hold those that were reached.
func (k *Kernel) Tasks() ([]Task, []Problem, error) {
	t, err := k.Types()
	if err != nil {
		return nil, nil, fmt.Errorf("tasks: %w", err)
	}
	s, err := newTaskShape(t)
	if err != nil {
		return nil, nil, fmt.Errorf("tasks: %w", err)
	}
	first, ok := k.lookupCore("init_task")
	if !ok {
		return nil, nil, fmt.Errorf("tasks: %w", k.missingSymbol("init_task", ""))
	}
	nodes, listErr := ring(k.space, first+mem.Virt(s.tasks.Offset), tasksMax)
	w := taskWalk{k: k, shape: s, seen: map[mem.Virt]bool{}}
	for _, node := range nodes {
		w.process(node - mem.Virt(s.tasks.Offset))
	}
	if listErr != nil {
		return w.list, w.problems, fmt.Errorf("tasks: %w", listErr)
	}
	return w.list, w.problems, nil
}

// taskWalk collects tasks, each once.
type taskWalk struct {
	k        *Kernel
	shape    *taskShape
	list     []Task
	problems []Problem
	seen     map[mem.Virt]bool
}

// process adds a process: its leader, then its other threads.
func (w *taskWalk) process(leader mem.Virt) {
	rec, ok := w.add(leader)
	if !ok {
		return
	}
	signal := rec.virt(w.shape.signal)
	if signal == 0 {
		return // released already
	}
	nodes, err := ring(w.k.space, signal+mem.Virt(w.shape.signalThreads), tasksMax)
	if err != nil {
		w.problems = append(w.problems, Problem{fmt.Sprintf("threads of task %#x", leader), err})
	}
	for _, node := range nodes {
		w.add(node - mem.Virt(w.shape.threadNode.Offset))
	}
}

func (w *taskWalk) add(addr mem.Virt) (record, bool) {
	if w.seen[addr] || len(w.list) >= tasksMax {
		return record{}, false
	}
	w.seen[addr] = true
	rec, err := w.shape.shape.read(w.k.space, addr)
	if err != nil {
		w.problems = append(w.problems, Problem{fmt.Sprintf("task %#x", addr), err})
		return record{}, false
	}
	w.list = append(w.list, w.k.task(w.shape, &rec))
	return rec, true
}

// UserRoot is the page-table root of a process, by its mm_struct.
func (k *Kernel) UserRoot(mm mem.Virt) (mem.Phys, error) {
	t, err := k.Types()
	if err != nil {
		return 0, err
	}
	s := newShape(t, "mm_struct")
	pgd := s.need("pgd")
	rec, err := s.read(k.space, mm)
	if err != nil {
		return 0, err
	}
	root, _, err := k.space.Translate(rec.uint(pgd))
	if err != nil {
		return 0, fmt.Errorf("page tables of mm_struct %#x: %w", mm, err)
	}
	return root, nil
}

// UserSpace is the address space of a process, by its mm_struct.
func (k *Kernel) UserSpace(mm mem.Virt) (AddressSpace, error) {
	root, err := k.UserRoot(mm)
	if err != nil {
		return nil, err
	}
	return k.src.Space(root)
}
