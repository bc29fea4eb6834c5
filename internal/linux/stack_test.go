package linux

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
	"nestdbg/internal/orc"
)

// Functions of the fake kernel, each with one unwind entry of version 1.
const (
	fnLeaf      = fakeText + 0x1000 // called; the return address is at rsp
	fnFrame     = fakeText + 0x1100 // called; keeps a frame in rbp
	fnInterrupt = fakeText + 0x1200 // a pt_regs is at rsp
	fnBody      = fakeText + 0x1300 // called; the return address is at rsp+16
	fnStart     = fakeText + 0x1400 // the end of the stack
	fnNone      = fakeText + 0x1500 // no way to unwind
	fnEntry     = fakeText + 0x1600 // an interrupt frame is at rsp+8
	fnSwitch    = fakeText + 0x1680 // its stack pointer is where rsp leads, the return address is there
	fnEnd       = fakeText + 0x1700
)

// fakeEntry is one unwind entry as the kernel stores it.
type fakeEntry struct {
	start  uint64
	sp, bp int16
	flags  uint16
}

var fakeEntries = []fakeEntry{
	{fnLeaf, 8, 0, 0x005}, {fnFrame, 16, -16, 0x014}, {fnInterrupt, 0, 0, 0x105},
	{fnBody, 24, 0, 0x005}, {fnStart, 0, 0, 0x400}, {fnNone, 0, 0, 0}, {fnEntry, 8, 0, 0x205}, {fnSwitch, 8, 0, 0x009},
	{fnEnd, 0, 0, 0x400},
}

// orcBytes are the two arrays of a table; the first will stand at ipAt.
func orcBytes(entries []fakeEntry, ipAt uint64) (ip, unwind []byte) {
	for i, e := range entries {
		ip = binary.LittleEndian.AppendUint32(ip, uint32(e.start-ipAt-uint64(4*i)))
		unwind = binary.LittleEndian.AppendUint16(unwind, uint16(e.sp))
		unwind = binary.LittleEndian.AppendUint16(unwind, uint16(e.bp))
		unwind = binary.LittleEndian.AppendUint16(unwind, e.flags)
	}
	return ip, unwind
}

// newStackFake is a fake system with unwind tables, and a stack.
func newStackFake(t testing.TB) (*fakeSystem, object) {
	const arch = "struct mod_arch_specific { u32 num_orcs; ptr orc_unwind_ip; ptr orc_unwind; }\n" +
		"struct inactive_task_frame { long r15; ptr ret_addr; long bp; }\n" +
		"struct elf_prstatus { char head[72]; long pr_reg[27]; }\n"
	types := strings.Replace(fakeNew, "ptr kallsyms; ptr sect_attrs; }", "ptr kallsyms; mod_arch_specific arch; ptr sect_attrs; }", 1)
	s := &fakeSystem{fake: newFake(t, arch+types), isNew: true}
	s.addModules()
	s.addTasks()
	s.addCPUs()
	ipAt := s.variable("__start_orc_unwind_ip", uint64(4*len(fakeEntries)))
	ip, unwind := orcBytes(fakeEntries, ipAt.va)
	ipAt.put(0, ip)
	entries := s.variable("__start_orc_unwind", uint64(len(unwind)))
	entries.put(0, unwind)
	s.symbols["__stop_orc_unwind_ip"] = ipAt.va + uint64(len(ip))
	s.symbols["__stop_orc_unwind"] = entries.va + uint64(len(unwind))
	s.symbols["_etext"] = fakeText + 0x2000

	text := s.textOf[0].va // of kvm: one function like fnLeaf
	moduleEntries := []fakeEntry{{text + 0x100, 8, 0, 0x005}, {text + 0x200, 0, 0, 0x400}}
	moduleIP := s.alloc(64, 8)
	ip, unwind = orcBytes(moduleEntries, moduleIP.va)
	moduleIP.put(0, ip)
	moduleUnwind := s.alloc(64, 8)
	moduleUnwind.put(0, unwind)
	s.modules[0].set("arch.num_orcs", 2).set("arch.orc_unwind_ip", moduleIP.va).set("arch.orc_unwind", moduleUnwind.va)
	return s, s.alloc(pageSize, pageSize)
}

// pushRegs writes the end of a struct pt_regs at an offset of a stack: rbp and the
// interrupt frame. Their places are those of Linux arch/x86/include/asm/ptrace.h.
func pushRegs(stack object, off, bp, ip, cs, sp uint64) {
	stack.put64(off+4*8, bp).put64(off+16*8, ip).put64(off+17*8, cs).put64(off+19*8, sp)
}

func cpuAt(ip, sp, bp uint64) *arch.Registers {
	r := arch.NewRegisters(arch.X86)
	for name, v := range map[string]uint64{"rip": ip, "rsp": sp, "rbp": bp, "cs": 0x10} {
		r.Set(name, v)
	}
	return r
}

const fakeUser = 0x7f0012345678

// fakeStack fills a stack: a leaf, called by a function with a frame, called by an
// interrupt's entry; the interrupted function is on another part of the stack,
// called by the entry from user mode.
func fakeStack(stack object) *arch.Registers {
	stack.put64(0, fnFrame+0x10)
	stack.put64(0x40, 0x1111).put64(0x48, fnInterrupt+5)
	pushRegs(stack, 0x50, 0x2222, fnBody+8, 0x10, stack.va+0x200)
	stack.put64(0x210, fnInterrupt+9)
	pushRegs(stack, 0x218, 0x3333, fakeUser, 0x33, 0x7ffc00000000)
	return cpuAt(fnLeaf+4, stack.va, stack.va+0x40)
}

func TestUnwindCPU(t *testing.T) {
	s, stack := newStackFake(t)
	regs := fakeStack(stack)
	u := s.find().Unwinder()
	got, err := u.CPU(regs)
	at := func(off uint64) mem.Virt { return mem.Virt(stack.va + off) }
	want := []Frame{
		{PC: fnLeaf + 4, SP: at(0), Exact: true},
		{PC: fnFrame + 0x10, SP: at(8)},
		{PC: fnInterrupt + 5, SP: at(0x50)},
		{PC: fnBody + 8, SP: at(0x200), Exact: true},
		{PC: fnInterrupt + 9, SP: at(0x218)},
		{PC: fakeUser, SP: 0x7ffc00000000, Exact: true, User: true},
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil || len(u.Problems) > 0 {
		t.Errorf("%s, %v, %v", diff, err, u.Problems)
	}
}

// TestUnwindImpossible: what an entry leads to is no frame unless it can be one. Registers
// that were interrupted have a code segment that fits their program counter, and a
// function returns to the kernel.
func TestUnwindImpossible(t *testing.T) {
	const selector, junk = 0x10, 0x31722b33
	for name, c := range map[string]struct {
		ip, cs uint64
		fine   bool
	}{
		"kernel":                    {fnBody + 8, selector, true},
		"user mode":                 {fakeUser, 0x33, true},
		"a null call":               {0, selector, true},
		"no code segment":           {fnBody + 8, 0, false},
		"a code segment of 32 bits": {fnBody + 8, junk, false},
		"ring 1":                    {fnBody + 8, 0x11, false},
		"user code in the kernel":   {fnBody + 8, 0x33, false},
		"kernel code at a user's":   {fakeUser, selector, false},
	} {
		s, stack := newStackFake(t)
		pushRegs(stack, 0, 0x1111, c.ip, c.cs, stack.va+0x200)
		stack.put64(0x200, fnStart+1).put64(0x210, fnStart+1)
		got, err := s.find().Unwinder().CPU(cpuAt(fnInterrupt+5, stack.va, 0))
		if (len(got) > 1) != c.fine || errors.Is(err, ErrCorrupt) == c.fine {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	s, stack := newStackFake(t)
	stack.put64(0, junk)
	if got, err := s.find().Unwinder().CPU(cpuAt(fnLeaf+4, stack.va, 0)); len(got) != 1 || !errors.Is(err, ErrCorrupt) {
		t.Errorf("a return address in user space: %+v, %v", got, err)
	}
}

// A stack without a chain of calls to its end gives no frames, and a jump is one of the
// whole instruction.
func TestLost(t *testing.T) {
	s, stack := newStackFake(t)
	fakeStack(stack) // its return addresses stand behind no call
	u := s.find().Unwinder()
	for _, task := range []Task{{PID: 7, Stack: mem.Virt(stack.va)}, {PID: 8}, {PID: 9, Stack: 0xffffc90000dead00}} {
		if frames, err := u.Lost(&task); err == nil || frames != nil {
			t.Errorf("task %d: %v, %v", task.PID, frames, err)
		}
	}
	for _, test := range []struct {
		code []byte
		want uint64
	}{{[]byte{0xe9, 0xfb, 0xff, 0xff, 0xff}, 0x1000}, {[]byte{0xe9, 0, 1, 0, 0}, 0x1105}, {[]byte{0xe8, 0, 1, 0, 0}, 0}} {
		if got, ok := x86JumpAt(test.code, 0x1000); got != test.want || ok != (test.want != 0) {
			t.Errorf("% x: %#x, %v", test.code, got, ok)
		}
	}
}

func TestUnwindTask(t *testing.T) {
	s, stack := newStackFake(t)
	module := s.textOf[0].va
	// The frame that switching away left, then a function of a module, then the start.
	frame := stack.shift(0x100)
	frame.kind = "inactive_task_frame"
	frame.set("ret_addr", fnLeaf+4).set("bp", 0x4444)
	frame.put64(24, module+0x110).put64(32, fnStart+1)
	k := s.find()
	task := Task{PID: 7, Stack: mem.Virt(stack.va), SP: mem.Virt(frame.va)}
	got, err := k.Unwinder().Task(&task)
	want := []Frame{
		{PC: fnLeaf + 4, SP: mem.Virt(frame.va + 24)},
		{PC: mem.Virt(module + 0x110), SP: mem.Virt(frame.va + 32)},
		{PC: fnStart + 1, SP: mem.Virt(frame.va + 40)},
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%s, %v", diff, err)
	}
	if p, ok := got[1].Symbolize(k); !ok || p.Name != "kvm_init" || p.Offset != 0x10 || p.Module != "kvm" {
		t.Errorf("%+v", p)
	}
	for _, tt := range []struct {
		name string
		task Task
		want error
	}{
		{"ended", Task{SP: task.SP}, ErrNotFound},
		{"stack pointer elsewhere", Task{Stack: task.Stack, SP: task.Stack + stackMax}, ErrCorrupt},
		{"stack not there", Task{Stack: 0xffffc90000000000, SP: 0xffffc90000000100}, mem.ErrFault},
	} {
		if got, err := k.Unwinder().Task(&tt.task); !errors.Is(err, tt.want) || len(got) > 0 {
			t.Errorf("%s: %v, %v", tt.name, got, err)
		}
	}
}

// TestUnwindBroken lets stacks end before they should: the frames up to there are
// returned, with the reason.
func TestUnwindBroken(t *testing.T) {
	const runtimeCode = fakeDirect + 0x800000
	for _, tt := range []struct {
		name   string
		spoil  func(s *fakeSystem, stack object, regs *arch.Registers)
		frames int
		guess  int // frames that are guesses
		want   error
	}{
		{"whole", func(*fakeSystem, object, *arch.Registers) {}, 6, 0, nil},
		{"no pc", func(_ *fakeSystem, _ object, r *arch.Registers) { r.Forget("rip") }, 0, 0, ErrNotFound},
		{"no rsp", func(_ *fakeSystem, _ object, r *arch.Registers) { r.Forget("rsp") }, 1, 0, orc.ErrUndefined},
		{"no rbp where it is needed", func(_ *fakeSystem, _ object, r *arch.Registers) { r.Forget("rbp") }, 2, 0, orc.ErrUndefined},
		{"user mode", func(_ *fakeSystem, _ object, r *arch.Registers) { r.Set("cs", 0x33) }, 1, 0, nil},
		{"user mode by address", func(_ *fakeSystem, _ object, r *arch.Registers) {
			r.Forget("cs")
			r.Set("rip", fakeUser)
		}, 1, 0, nil},
		{"wild rsp", func(_ *fakeSystem, _ object, r *arch.Registers) { r.Set("rsp", 0x8000000000000000) }, 1, 0, mem.ErrFault},
		{"call through null", func(_ *fakeSystem, stack object, r *arch.Registers) { r.Set("rip", 0) }, 6, 0, nil},
		{"no unwind data", func(_ *fakeSystem, stack object, _ *arch.Registers) { stack.put64(0, fnNone+1) }, 2, 0, orc.ErrUndefined},
		{"end", func(_ *fakeSystem, stack object, _ *arch.Registers) { stack.put64(0, fnStart+1) }, 2, 0, nil},
		{"a thunk where the table says end", func(s *fakeSystem, _ object, r *arch.Registers) {
			s.symbols["__indirect_thunk_start"], s.symbols["__indirect_thunk_end"] = fnStart, fnStart+0x20
			r.Set("rip", fnStart)
		}, 6, 0, nil},
		{"behind the thunks", func(s *fakeSystem, _ object, r *arch.Registers) {
			s.symbols["__indirect_thunk_start"], s.symbols["__indirect_thunk_end"] = fnStart, fnStart+0x20
			r.Set("rip", fnStart+0x20)
		}, 1, 0, nil},
		{"no end", func(_ *fakeSystem, stack object, _ *arch.Registers) {
			for off := uint64(0); off < pageSize; off += 8 {
				stack.put64(off, fnLeaf+1)
			}
		}, framesMax, 0, ErrCorrupt},
		{"a loop", func(_ *fakeSystem, stack object, _ *arch.Registers) {
			pushRegs(stack, 0x50, stack.va+0x40, fnLeaf+4, 0x10, stack.va)
		}, 4, 0, ErrCorrupt},
		{"code made at run time", func(_ *fakeSystem, stack object, _ *arch.Registers) { stack.put64(0, runtimeCode) }, 6, 4, nil},
		{"code made at run time, no frame", func(_ *fakeSystem, stack object, r *arch.Registers) {
			stack.put64(0, runtimeCode)
			r.Set("rbp", stack.va+0x800)
		}, 2, 0, orc.ErrEndOfStack},
		{"code made at run time, wild frame", func(_ *fakeSystem, stack object, r *arch.Registers) {
			stack.put64(0, runtimeCode)
			stack.put64(0x48, runtimeCode+0x1000)
		}, 2, 0, ErrNotFound},
		{"no table", func(s *fakeSystem, _ object, r *arch.Registers) {
			delete(s.symbols, "__start_orc_unwind")
			r.Set("rip", fnFrame)
		}, 2, 1, mem.ErrFault},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, stack := newStackFake(t)
			regs := fakeStack(stack)
			tt.spoil(s, stack, regs)
			got, err := s.find().Unwinder().CPU(regs)
			guess := 0
			for _, f := range got {
				if f.Guess {
					guess++
				}
			}
			if len(got) != tt.frames || guess != tt.guess || !errors.Is(err, tt.want) {
				t.Errorf("%d frames, %d guesses, %v; want %d, %d, %v\n%+v", len(got), guess, err, tt.frames, tt.guess, tt.want, got)
			}
		})
	}
}

func TestTaskOfStack(t *testing.T) {
	s := newFakeSystem(t, true)
	k := s.find()
	if task, err := k.TaskOfStack(0xffffc90000003f00 + 101<<16); err != nil || task.PID != 101 {
		t.Errorf("%+v, %v", task, err)
	}
	if _, err := k.TaskOfStack(fakeText); !errors.Is(err, ErrNotFound) {
		t.Errorf("text: %v", err)
	}
}
