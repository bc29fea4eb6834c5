package linux

import (
	"errors"
	"testing"

	"nestdbg/internal/mem"
)

// TestTaskRegisters: what switching away saved is known, and nothing else is.
func TestTaskRegisters(t *testing.T) {
	s, stack := newStackFake(t)
	frame := stack.shift(0x100)
	frame.kind = "inactive_task_frame"
	frame.set("r15", 0x1515).set("ret_addr", fnLeaf+4).set("bp", 0x4444)
	k := s.find()
	task := Task{PID: 7, Stack: mem.Virt(stack.va), SP: mem.Virt(frame.va)}
	regs, err := k.TaskRegisters(&task)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]uint64{"rip": fnLeaf + 4, "rsp": frame.va + 24, "rbp": 0x4444, "r15": 0x1515}
	for i, r := range k.Arch().Regs {
		v, ok := regs.Get(r.Name)
		if w, saved := want[r.Name]; ok != saved || v != w || regs.Known(i) != saved {
			t.Errorf("%s is %#x, %v; want %#x, %v", r.Name, v, ok, w, saved)
		}
	}
	for _, tt := range []struct {
		name string
		task Task
		want error
	}{
		{"ended", Task{SP: task.SP}, ErrNotFound},
		{"stack pointer elsewhere", Task{Stack: task.Stack, SP: task.Stack - 8}, ErrCorrupt},
		{"stack not there", Task{Stack: 0xffffc90000000000, SP: 0xffffc90000000100}, mem.ErrFault},
	} {
		if regs, err := k.TaskRegisters(&tt.task); !errors.Is(err, tt.want) || regs != nil {
			t.Errorf("%s: %v, %v", tt.name, regs, err)
		}
	}
}

// TestUnwindNewTask: a task that has not run yet begins with the first instruction
// of a function, so its frame is that function's and not of the one before.
func TestUnwindNewTask(t *testing.T) {
	s, stack := newStackFake(t)
	s.symbols["fake_interrupt"] = fnInterrupt
	frame := stack.shift(0x100)
	frame.kind = "inactive_task_frame"
	frame.set("ret_addr", fnInterrupt)
	pushRegs(stack.shift(0x118), 0, 0, fakeUser, 0x33, 0x7ffc00000000)
	k := s.find()
	got, err := k.Unwinder().Task(&Task{PID: 7, Stack: mem.Virt(stack.va), SP: mem.Virt(frame.va)})
	if err != nil || len(got) != 2 || !got[0].Exact || !got[1].User {
		t.Fatalf("%+v, %v", got, err)
	}
	if p, ok := got[0].Symbolize(k); !ok || p.Name != "fake_interrupt" || p.Offset != 0 {
		t.Errorf("%+v", p)
	}
}
