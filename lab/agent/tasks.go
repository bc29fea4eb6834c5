package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Task is one thread, as the machine's own kernel describes it.
type Task struct {
	PID, TGID, PPID int
	State           string // one letter, as in /proc/PID/stat
	CPU             int    // that it runs or last ran on
	// Switches is how often it was switched away from, so far as is known before the rest
	// was: a thread that has as many later ran all the time, or slept.
	Switches uint64
	// Comm is the name from /proc/PID/stat. For a worker of a workqueue the kernel
	// appends "-" or "+" and what it works on; task_struct.comm ends before that
	// (Linux 6.1 fs/proc/array.c:proc_task_name).
	Comm string
}

// String is the line that the request "tasks" answers with.
func (t Task) String() string {
	return fmt.Sprintf("%d %d %d %d %d %s %s", t.PID, t.TGID, t.PPID, t.CPU, t.Switches, t.State, t.Comm)
}

// ParseTasks reads the answer to the request "tasks".
func ParseTasks(answer []byte) ([]Task, error) {
	var out []Task
	for line := range strings.Lines(string(answer)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 7)
		if len(f) != 7 {
			return nil, fmt.Errorf("task line %q has %d fields, not 7", line, len(f))
		}
		t := Task{State: f[5], Comm: f[6]}
		var err error
		for i, p := range []*int{&t.PID, &t.TGID, &t.PPID, &t.CPU} {
			n, e := strconv.Atoi(f[i])
			err = errors.Join(err, e)
			*p = n
		}
		n, e := strconv.ParseUint(f[4], 10, 64)
		if err := errors.Join(err, e); err != nil {
			return nil, fmt.Errorf("task line %q: %w", line, err)
		}
		t.Switches = n
		out = append(out, t)
	}
	return out, nil
}

// listTasks reads every thread from /proc, in the order of thread groups.
func listTasks() ([]Task, error) {
	groups, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []Task
	for _, g := range groups {
		tgid, err := strconv.Atoi(g.Name())
		if err != nil {
			continue // not a process
		}
		// Threads come and go while we look: what is gone is left out.
		stats, _ := filepath.Glob("/proc/" + g.Name() + "/task/*/stat")
		for _, file := range stats {
			status, err1 := os.ReadFile(strings.TrimSuffix(file, "stat") + "status")
			line, err2 := os.ReadFile(file)
			if errors.Join(err1, err2) != nil {
				continue
			}
			t, err := parseStat(line)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			t.TGID, t.Switches = tgid, switches(status)
			out = append(out, t)
		}
	}
	return out, nil
}

// switches adds up "voluntary_ctxt_switches:\tN" and the other kind.
func switches(status []byte) (sum uint64) {
	for line := range bytes.Lines(status) {
		if name, text, _ := bytes.Cut(line, []byte(":")); bytes.HasSuffix(name, []byte("voluntary_ctxt_switches")) {
			n, _ := strconv.ParseUint(string(bytes.TrimSpace(text)), 10, 64)
			sum += n
		}
	}
	return sum
}

// commands are lines "PID ARGUMENTS", those of /proc/PID/cmdline in hexadecimal, of
// every process that has any.
func commands() ([]byte, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var out []byte
	for _, file := range files {
		if b, err := os.ReadFile(file); err == nil && len(b) > 0 {
			out = fmt.Appendf(out, "%s %x\n", filepath.Base(filepath.Dir(file)), b)
		}
	}
	return out, nil
}

// statFields is how many fields of a stat line there are from STATE to the CPU, which is
// the 39th of all (proc(5)).
const statFields = 37

// parseStat reads the start of a stat line: "PID (COMM) STATE PPID ...", where
// COMM may contain anything, parentheses too, and the CPU.
func parseStat(line []byte) (Task, error) {
	open, end := bytes.IndexByte(line, '('), bytes.LastIndexByte(line, ')')
	if open < 1 || end < open {
		return Task{}, fmt.Errorf("stat line %.80q has no name", line)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(line[:open])))
	rest := strings.Fields(string(line[end+1:]))
	if err != nil || len(rest) < statFields {
		return Task{}, fmt.Errorf("stat line %.80q is cut off", line)
	}
	ppid, err1 := strconv.Atoi(rest[1])
	cpu, err2 := strconv.Atoi(rest[statFields-1])
	if err := errors.Join(err1, err2); err != nil {
		return Task{}, fmt.Errorf("stat line %.80q: %w", line, err)
	}
	return Task{PID: pid, PPID: ppid, CPU: cpu, State: rest[0], Comm: string(line[open+1 : end])}, nil
}
