package session

import (
	"testing"

	"nestdbg/internal/linux"
)

// TestTaskText: gdb shows a thread's name as it is, so nothing in it may be for a terminal.
func TestTaskText(t *testing.T) {
	for comm, want := range map[string]string{
		"kworker/0:1": "kworker/0:1 (7)", "Web Content": "Web Content (7)", "é": "é (7)",
		"a\x1b[2J\n": `a\x1b[2J\n (7)`, "cut\xc3": `cut\xc3 (7)`,
	} {
		if got := taskText(&linux.Task{PID: 7, Comm: comm}); got != want {
			t.Errorf("%q: %s, want %s", comm, got, want)
		}
	}
}
