package report

import (
	"fmt"
	"io"

	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
)

// Current are the tasks that a machine's CPUs run.
type Current struct {
	Machine string       `json:"machine"`
	CPUs    []CurrentCPU `json:"cpus"`
}

// CurrentCPU is what one CPU runs. Task is null where it is not known; Error says
// why.
type CurrentCPU struct {
	CPU   int       `json:"cpu"`
	State string    `json:"state"`
	Task  *TaskName `json:"task"`
	Error string    `json:"error,omitempty"`
}

// NewCurrent reports on CPUs of a machine that runs a kernel.
func NewCurrent(m *machine.Machine, cpus []*machine.CPU, k *linux.Kernel) *Current {
	r := &Current{Machine: m.Name, CPUs: []CurrentCPU{}}
	for _, c := range cpus {
		out := CurrentCPU{CPU: c.Index, State: c.State.String()}
		if t, err := k.TaskOn(c.Regs); err == nil {
			out.Task = taskName(&t)
		} else {
			out.Error = err.Error()
		}
		r.CPUs = append(r.CPUs, out)
	}
	return r
}

// Text implements Report.
func (r *Current) Text(w io.Writer) {
	for _, c := range r.CPUs {
		fmt.Fprintf(w, "%s CPU %d, %s: ", r.Machine, c.CPU, c.State)
		if c.Task == nil {
			fmt.Fprintf(w, "task not known: %s\n", c.Error)
			continue
		}
		fmt.Fprintf(w, "(struct task_struct *) %s, pid %d, %s\n", c.Task.Addr, c.Task.PID, printable(string(c.Task.Comm)))
	}
}
