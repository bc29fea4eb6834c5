package report

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"nestdbg/internal/linux"
)

// Tasks are the tasks of a kernel.
type Tasks struct {
	Machine  string   `json:"machine"`
	Tasks    []Task   `json:"tasks"`
	Problems []string `json:"problems,omitempty"`

	threads bool
}

// Task is one task. PID is the thread's number, TGID the process's; State is one
// letter, as ps shows. CPU is the one it runs or last ran on, null if not known.
// Command is the command line, null where it could not be read and for threads of
// the kernel.
type Task struct {
	PID     int      `json:"pid"`
	TGID    int      `json:"tgid"`
	PPID    int      `json:"ppid"`
	State   string   `json:"state"`
	CPU     *int     `json:"cpu"`
	OnCPU   bool     `json:"on_cpu"`
	Kernel  bool     `json:"kernel"`
	Comm    string   `json:"comm"`
	Command []string `json:"command" nil:"unknown"`
	Addr    Hex      `json:"addr"`
}

// NewTasks reports on the tasks of a machine's kernel, or with threads on every
// thread of every process.
func NewTasks(machine string, k *linux.Kernel, threads bool) (*Tasks, error) {
	list, problems, err := k.Tasks()
	if err != nil && len(list) == 0 {
		return nil, err
	}
	r := &Tasks{Machine: machine, threads: threads}
	if err != nil {
		r.Problems = append(r.Problems, err.Error())
	}
	for _, p := range problems {
		r.Problems = append(r.Problems, p.String())
	}
	commands := map[int][]string{} // by process
	for i := range list {
		t := &list[i]
		if t.PID != t.TGID && !threads {
			continue
		}
		command, known := commands[t.TGID]
		if !known {
			command, _ = k.CommandLine(t) // its pages may be anywhere; then there is the name
			commands[t.TGID] = command
		}
		r.Tasks = append(r.Tasks, newTask(t, command))
	}
	slices.SortStableFunc(r.Tasks, func(a, b Task) int {
		return cmp.Or(cmp.Compare(a.TGID, b.TGID), cmp.Compare(a.PID, b.PID))
	})
	return r, nil
}

func newTask(t *linux.Task, command []string) Task {
	out := Task{PID: t.PID, TGID: t.TGID, PPID: t.Parent, State: t.State, OnCPU: t.OnCPU,
		Kernel: t.Kernel, Comm: t.Comm, Command: command, Addr: Hex(t.Addr)}
	if t.CPU >= 0 {
		cpu := t.CPU
		out.CPU = &cpu
	}
	return out
}

// Text implements Report.
func (r *Tasks) Text(w io.Writer) {
	tid := ""
	if r.threads {
		tid = "    TID"
	}
	fmt.Fprintf(w, "%7s%s %7s S CPU %-16s %s\n", "PID", tid, "PPID", "NAME", "COMMAND")
	for _, t := range r.Tasks {
		if r.threads {
			tid = fmt.Sprintf(" %6d", t.PID)
		}
		name := printable(t.Comm) // whatever a guest's program called itself
		cpu, command := "?", "["+name+"]"
		if t.CPU != nil {
			cpu = fmt.Sprint(*t.CPU)
		}
		if len(t.Command) > 0 {
			command = printable(strings.Join(t.Command, " "))
		}
		fmt.Fprintf(w, "%7d%s %7d %s %3s %-16s %s\n", t.TGID, tid, t.PPID, t.State, cpu, name, command)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "not read: %s\n", p)
	}
}
