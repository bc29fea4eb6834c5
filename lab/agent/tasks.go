package agent

import (
	"bytes"
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
	// Comm is the name from /proc/PID/stat. For a worker of a workqueue the kernel
	// appends "-" or "+" and what it works on; task_struct.comm ends before that
	// (Linux 6.1 fs/proc/array.c:proc_task_name).
	Comm string
}

// String is the line that the request "tasks" answers with.
func (t Task) String() string {
	return fmt.Sprintf("%d %d %d %s %s", t.PID, t.TGID, t.PPID, t.State, t.Comm)
}

// ParseTasks reads the answer to the request "tasks".
func ParseTasks(answer []byte) ([]Task, error) {
	var out []Task
	for line := range strings.Lines(string(answer)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 5)
		if len(f) != 5 {
			return nil, fmt.Errorf("task line %q has %d fields, not 5", line, len(f))
		}
		t := Task{State: f[3], Comm: f[4]}
		for i, p := range []*int{&t.PID, &t.TGID, &t.PPID} {
			n, err := strconv.Atoi(f[i])
			if err != nil {
				return nil, fmt.Errorf("task line %q: %w", line, err)
			}
			*p = n
		}
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
			line, err := os.ReadFile(file)
			if err != nil {
				continue
			}
			t, err := parseStat(line)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			t.TGID = tgid
			out = append(out, t)
		}
	}
	return out, nil
}

// parseStat reads the start of a stat line: "PID (COMM) STATE PPID ...", where
// COMM may contain anything, parentheses too.
func parseStat(line []byte) (Task, error) {
	open, end := bytes.IndexByte(line, '('), bytes.LastIndexByte(line, ')')
	if open < 1 || end < open {
		return Task{}, fmt.Errorf("stat line %.80q has no name", line)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(line[:open])))
	rest := strings.Fields(string(line[end+1:]))
	if err != nil || len(rest) < 2 {
		return Task{}, fmt.Errorf("stat line %.80q is cut off", line)
	}
	ppid, err := strconv.Atoi(rest[1])
	if err != nil {
		return Task{}, fmt.Errorf("stat line %.80q: parent: %w", line, err)
	}
	return Task{PID: pid, PPID: ppid, State: rest[0], Comm: string(line[open+1 : end])}, nil
}
