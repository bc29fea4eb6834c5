package linux

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
)

// Where the fake has the per-CPU variables of interrupt stacks.
const (
	fakeInUse = 0x80
	fakeTop   = 0x88
)

// leftFake is a fake whose CPU 1 was interrupted in the kernel: its handler returns into a
// function that switches stacks, called by the interrupt's entry.
func leftFake(t testing.TB) (s *fakeSystem, task, irq object) {
	s, task = newStackFake(t)
	s.symbols["hardirq_stack_inuse"], s.symbols["hardirq_stack_ptr"] = fakeInUse, fakeTop
	s.variable("__cpu_online_mask", 8).put64(0, 1)
	s.variable("panic_cpu", 4).put(0, []byte{0, 0, 0, 0})
	s.variable("crash_notes", 8).put64(0, fakeNote)
	s.symbols["fake_handler"] = fnNone
	irq = s.alloc(pageSize, pageSize)
	top := irq.va + pageSize - 8
	s.percpu[1].put64(fakeInUse, 1).put64(fakeTop, top)
	irq.put64(pageSize-16, fnSwitch+0x10).put64(pageSize-8, task.va+0x100)
	task.put64(0x100, fnInterrupt+5)
	pushRegs(task, 0x108, 0x2222, fnBody+8, 0x10, task.va+0x200)
	task.put64(0x210, fnStart+1)
	return s, task, irq
}

// userRegs makes the stack of the task on CPU 1, with registers of user mode at its end.
func userRegs(s *fakeSystem, padding uint64) {
	stack := s.alloc(lostStack, pageSize)
	s.tasks[2].set("stack", stack.va)
	pushRegs(stack, lostStack-21*8-padding, 0x3333, fakeUser, 0x33, 0x7ffc00000000)
}

// fakeNote is where the notes are among per-CPU data.
const fakeNote = 0x400

// note makes a kernel's own note of a CPU's registers.
func note(s *fakeSystem, cpu int, name string) {
	at := s.percpu[cpu].shift(fakeNote)
	at.put(0, []byte{5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0})
	at.put(12, []byte(name))
	pushRegs(at, 20+uint64(s.types.offset("elf_prstatus", "pr_reg")), 0x4444, fnLeaf+4, 0x10, s.percpu[cpu].va)
}

func TestLeftRegisters(t *testing.T) {
	for _, tt := range []struct {
		name string
		cpu  int
		fill func(s *fakeSystem, task, irq object)
		pc   uint64 // 0: none
		want string // in the source or the error
	}{
		{"interrupted in the kernel", 1, nil, fnBody + 8, "registers that fake_handler interrupted; the CPU has done no more than that since, and is offline"},
		{"and not stopped", 1, func(s *fakeSystem, _, _ object) { s.poke(s.symbols["__cpu_online_mask"], 3) }, fnBody + 8, "no more than that since"},
		{"no interrupt", 0, nil, 0, "not in use"},
		{"no return address", 1, func(_ *fakeSystem, _, irq object) { irq.put64(pageSize-16, fnLeaf+0x20) }, 0, "is no return address"},
		{"no stack", 1, func(s *fakeSystem, _, _ object) { s.percpu[1].put64(fakeTop, 0x1000) }, 0, "return address"},
		{"nothing was interrupted", 1, func(_ *fakeSystem, task, _ object) { task.put64(0x100, fnStart+1) }, 0, "nothing was"},
		{"stopped in user mode", 1, func(s *fakeSystem, _, _ object) { s.percpu[1].put64(fakeInUse, 0); userRegs(s, 0) }, fakeUser, "user mode with which task 101 "},
		{"the same with padding", 1, func(s *fakeSystem, _, _ object) { s.percpu[1].put64(fakeInUse, 0); userRegs(s, 16) }, fakeUser, "user mode"},
		{"in user mode or not", 1, func(s *fakeSystem, _, _ object) {
			s.percpu[1].put64(fakeInUse, 0)
			s.poke(s.symbols["__cpu_online_mask"], 3)
			userRegs(s, 0)
		}, 0, "was not stopped"},
		{"it panics itself", 1, func(s *fakeSystem, _, _ object) {
			s.percpu[1].put64(fakeInUse, 0)
			s.poke(s.symbols["panic_cpu"], 1)
			userRegs(s, 0)
		}, 0, "was not stopped"},
		{"noted for a dump", 0, func(s *fakeSystem, _, _ object) { note(s, 0, "CORE") }, fnLeaf + 4, "noted for its own dump"},
		{"before all else", 1, func(s *fakeSystem, _, _ object) { note(s, 1, "CORE") }, fnLeaf + 4, "noted for its own dump"},
		{"no note", 0, func(s *fakeSystem, _, _ object) { note(s, 0, "FOO") }, 0, "empty"},
		{"no such CPU", 7, nil, 0, "cpu 7 of 2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, task, irq := leftFake(t)
			k := s.find()
			if _, err := k.Symbols(); err != nil { // the fake has them where its code would be
				t.Fatal(err)
			}
			s.call(fnNone, fnSwitch+0x10)
			if tt.fill != nil {
				tt.fill(s, task, irq)
			}
			regs, source, err := k.LeftRegisters(tt.cpu)
			if tt.pc == 0 {
				if err == nil || regs != nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v, %q, %v", regs, source, err)
				}
				return
			}
			if err != nil || !strings.Contains(source, tt.want) {
				t.Fatalf("%q, %v", source, err)
			}
			if strings.Contains(source, "offline") != (strings.Contains(tt.want, "offline") || tt.pc == fakeUser) {
				t.Errorf("%q", source)
			}
			pc, _ := regs.PC()
			if sp, ok := regs.SP(); pc != tt.pc || !ok || tt.pc == fnBody+8 && sp != task.va+0x200 {
				t.Errorf("pc %#x, sp %#x", pc, sp)
			}
			frames, err := k.Unwinder().CPU(regs)
			if err != nil || len(frames) == 0 || frames[0].Guess || tt.pc == fnBody+8 && (len(frames) != 2 || frames[1].Guess) {
				t.Errorf("%+v, %v", frames, err)
			}
		})
	}
}

// Without what tells there are no registers, whatever the rest says.
func TestLeftRegistersMissing(t *testing.T) {
	for _, name := range []string{"hardirq_stack_inuse", "hardirq_stack_ptr"} {
		s, _, _ := leftFake(t)
		delete(s.symbols, name)
		k := s.find()
		if regs, _, err := k.LeftRegisters(1); regs != nil || !errors.Is(err, ErrNotFound) {
			t.Errorf("without %s: %v, %v", name, regs, err)
		}
	}
}

// TestMutatedLeft flips bytes of stacks and of per-CPU data: registers or an error, and no
// panic and no endless loop.
func TestMutatedLeft(t *testing.T) {
	s, task, irq := leftFake(t)
	src := s.finish()
	whole := bytes.Clone(s.ram)
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 3))
		copy(s.ram, whole)
		s.call(fnNone, fnSwitch+0x10)
		for range 1 << (seed % 6) {
			at := []uint64{uint64(task.pa) + 0xf0 + r.Uint64N(0x180), uint64(irq.pa) + pageSize - 16 + r.Uint64N(16), uint64(s.percpu[1].pa) + r.Uint64N(0xa0)}
			s.ram[at[r.IntN(len(at))]] ^= 1 << r.IntN(8)
		}
		k, err := Find(src)
		if err != nil {
			t.Fatal(err)
		}
		if regs, source, err := k.LeftRegisters(1); (regs == nil) != (err != nil) || (source == "") != (err != nil) {
			t.Fatalf("%v, %q, %v", regs, source, err)
		}
	}
}
