package report

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"nestdbg/internal/linux"
	"nestdbg/internal/mem"
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
// Command is the command line, null where there is none, as of threads of the kernel
// and of what has ended. CommandError says why there is no more of it.
type Task struct {
	PID          int    `json:"pid"`
	TGID         int    `json:"tgid"`
	PPID         int    `json:"ppid"`
	State        string `json:"state"`
	CPU          *int   `json:"cpu"`
	OnCPU        bool   `json:"on_cpu"`
	Kernel       bool   `json:"kernel"`
	Comm         Raw    `json:"comm"`
	Command      []Raw  `json:"command" nil:"unknown"`
	CommandError string `json:"command_error,omitempty"`
	Addr         Hex    `json:"addr"`
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
	type command struct {
		args []string
		err  error
	}
	commands := map[mem.Virt]command{} // by mm_struct, which all threads of a process have
	for i := range list {
		t := &list[i]
		if t.PID != t.TGID && !threads {
			continue
		}
		var c command
		if !t.Kernel { // which may borrow one
			var known bool
			if c, known = commands[t.MM]; !known {
				c.args, c.err = k.CommandLine(t)
				commands[t.MM] = c
			}
		}
		r.Tasks = append(r.Tasks, newTask(t, c.args, c.err))
	}
	slices.SortStableFunc(r.Tasks, func(a, b Task) int {
		return cmp.Or(cmp.Compare(a.TGID, b.TGID), cmp.Compare(a.PID, b.PID))
	})
	return r, nil
}

func newTask(t *linux.Task, command []string, err error) Task {
	out := Task{PID: t.PID, TGID: t.TGID, PPID: t.Parent, State: t.State, OnCPU: t.OnCPU,
		Kernel: t.Kernel, Comm: Raw(t.Comm), Addr: Hex(t.Addr)}
	for _, arg := range command {
		out.Command = append(out.Command, Raw(arg))
	}
	if err != nil {
		out.CommandError = err.Error()
	}
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
		cpu := "?"
		if t.CPU != nil {
			cpu = fmt.Sprint(*t.CPU)
		}
		fmt.Fprintf(w, "%7d%s %7d %s %3s %-16s %s\n", t.TGID, tid, t.PPID, t.State, cpu, printable(string(t.Comm)), t.command())
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "not read: %s\n", p)
	}
}

// command is the command line, or else the name in brackets, as ps shows it; and whether
// something of it is missing.
func (t *Task) command() string {
	if len(t.Command) == 0 {
		text := "[" + printable(string(t.Comm)) + "]"
		if t.CommandError != "" {
			text += " (arguments unreadable)"
		}
		return text
	}
	words := make([]string, 0, len(t.Command)+1)
	for _, arg := range t.Command {
		words = append(words, printable(string(arg)))
	}
	if t.CommandError != "" {
		words = append(words, "(cut)")
	}
	return strings.Join(words, " ")
}
