package report

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nestdbg/internal/linux"
)

func TestTasksText(t *testing.T) {
	r := Tasks{Machine: "l1", threads: true, Problems: []string{"task 13: cannot be read"}}
	fault := errors.New("not mapped")
	for _, x := range []struct {
		task    linux.Task
		command []string
		err     error
	}{
		{linux.Task{PID: 11, TGID: 10, Parent: 1, State: "S", CPU: 1, Comm: "worker"}, []string{"/bin/sh", "-c", "x y"}, nil},
		{linux.Task{PID: 2, TGID: 2, State: "I", CPU: -1, Comm: "kthreadd", Kernel: true}, nil, nil},
		{linux.Task{PID: 12, TGID: 12, State: "S", Comm: "a\x1b[2J\xc3"}, []string{"a\nb\xff", "é", "", "z"}, nil},
		{linux.Task{PID: 13, TGID: 13, State: "S", Comm: "half"}, []string{"half", "of"}, fault},
		{linux.Task{PID: 14, TGID: 14, State: "S", Comm: "none"}, nil, fault},
	} {
		r.Tasks = append(r.Tasks, newTask(&x.task, x.command, x.err))
	}
	want := `    PID    TID    PPID S CPU NAME             COMMAND
     10     11       1 S   1 worker           /bin/sh -c x y
      2      2       0 I   ? kthreadd         [kthreadd]
     12     12       0 S   0 a\x1b[2J\xc3     a\x0ab\xff é  z
     13     13       0 S   0 half             half of (cut)
     14     14       0 S   0 none             [none] (arguments unreadable)
not read: task 13: cannot be read
`
	var b strings.Builder
	r.Text(&b)
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
	for i, want := range []string{`["/bin/sh","-c","x y"] "worker" ""`, `null "kthreadd" ""`,
		`["a\nb\udcff","é","","z"] "a\u001b[2J\udcc3" ""`, `["half","of"] "half" "not mapped"`, `null "none" "not mapped"`} {
		x := &r.Tasks[i]
		var parts []string
		for _, v := range []any{x.Command, x.Comm, x.CommandError} {
			b, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			parts = append(parts, string(b))
		}
		if got := strings.Join(parts, " "); got != want {
			t.Errorf("task %d: %s, want %s", x.PID, got, want)
		}
	}
}
