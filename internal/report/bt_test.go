package report

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

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

func TestTasksText(t *testing.T) {
	cpu := 1
	r := Tasks{Machine: "l1", threads: true, Tasks: []Task{
		{PID: 11, TGID: 10, PPID: 1, State: "S", CPU: &cpu, Comm: "worker", Command: []string{"/bin/sh", "-c", "x y"}},
		{PID: 2, TGID: 2, State: "I", Comm: "kthreadd", Kernel: true},
	}}
	want := `    PID    TID    PPID S CPU NAME             COMMAND
     10     11       1 S   1 worker           /bin/sh -c x y
      2      2       0 I   ? kthreadd         [kthreadd]
`
	var b strings.Builder
	r.Text(&b)
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}
