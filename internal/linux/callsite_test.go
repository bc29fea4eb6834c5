package linux

import (
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nestdbg/internal/mem"
)

func TestX86CallBefore(t *testing.T) {
	const returns = 0xffffffff81001000
	for _, tt := range []struct {
		name   string
		code   []byte
		target uint64
		ok     bool
	}{
		{"direct", []byte{0x90, 0x90, 0xe8, 0xfb, 0xef, 0xff, 0xff}, returns - 0x1005, true},
		{"register", []byte{0x90, 0x90, 0x90, 0x90, 0x90, 0xff, 0xd0}, 0, true},
		{"memory", []byte{0x90, 0x90, 0x90, 0x90, 0x90, 0xff, 0x10}, 0, true},
		{"memory, 8-bit displacement", []byte{0x90, 0x90, 0x90, 0x90, 0xff, 0x50, 0x18}, 0, true},
		{"memory, 32-bit displacement", []byte{0x90, 0xff, 0x90, 0x18, 0x01, 0x00, 0x00}, 0, true},
		{"relative to rip", []byte{0x90, 0xff, 0x15, 0x18, 0x01, 0x00, 0x00}, 0, true},
		{"table", []byte{0xff, 0x14, 0xc5, 0x00, 0x10, 0x00, 0x82}, 0x0, false},
		{"index and displacement", []byte{0xff, 0x94, 0xc3, 0x18, 0x01, 0x00, 0x00}, 0, true},
		{"jump", []byte{0x90, 0x90, 0x90, 0x90, 0x90, 0xff, 0xe0}, 0, false},
		{"push", []byte{0x90, 0x90, 0x90, 0x90, 0x90, 0xff, 0xf0}, 0, false},
		{"no code", nil, 0, false},
	} {
		if target, ok := x86CallBefore(tt.code, returns); target != tt.target || ok != tt.ok {
			t.Errorf("%s: %#x, %v", tt.name, target, ok)
		}
	}
}

// call writes a call of target that returns to an address of the fake's text.
func (s *fakeSystem) call(target, returns uint64) {
	code := binary.LittleEndian.AppendUint32([]byte{0xe8}, uint32(target-returns))
	copy(s.ram[s.physOf(returns-5):], code)
}

// TestUnwindByCallSite goes on where the tables do not: by the return address of a
// call of the function, which is no guess, and otherwise of any call, which is one.
func TestUnwindByCallSite(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fill  func(s *fakeSystem, stack object)
		ip    uint64
		bp    bool
		want  []Frame // SP relative to the stack
		fails bool
	}{
		{name: "no data, own call", ip: fnNone, bp: true, fill: func(s *fakeSystem, stack object) {
			s.call(fnLeaf, fnFrame+0x20) // left on the stack by an earlier call
			s.call(fnNone, fnBody+0x20)
			stack.put64(0x08, fnFrame+0x20).put64(0x10, fnBody+0x20)
			stack.put64(0x18+0x10, fnStart+1)
		}, want: []Frame{{PC: fnNone, SP: 0, Exact: true}, {PC: fnBody + 0x20, SP: 0x18}, {PC: fnStart + 1, SP: 0x30}}},
		{name: "no data, another's call", ip: fnNone, bp: true, fill: func(s *fakeSystem, stack object) {
			s.call(fnLeaf, fnBody+0x20)
			stack.put64(0x10, fnBody+0x20).put64(0x28, fnStart+1)
		}, want: []Frame{{PC: fnNone, SP: 0, Exact: true}, {PC: fnBody + 0x20, SP: 0x18, Guess: true},
			{PC: fnStart + 1, SP: 0x30, Guess: true}}},
		// The caller has a frame pointer too, which the callee saved where its entry says.
		{name: "frame pointer not known", ip: fnFrame + 0x30, fill: func(s *fakeSystem, stack object) {
			s.call(fnFrame, fnFrame+0x60)
			stack.put64(0x18, stack.va+0x80).put64(0x20, fnFrame+0x60)
			stack.put64(0x80, 0).put64(0x88, fnStart+1)
		}, want: []Frame{{PC: fnFrame + 0x30, SP: 0, Exact: true}, {PC: fnFrame + 0x60, SP: 0x28}, {PC: fnStart + 1, SP: 0x90}}},
		{name: "nothing there", ip: fnNone, bp: true, fails: true, fill: func(s *fakeSystem, stack object) {
			stack.put64(0x10, fnBody+0x20) // no call in front of it
		}, want: []Frame{{PC: fnNone, SP: 0, Exact: true}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, stack := newStackFake(t)
			s.symbols["fn_none"], s.symbols["fn_frame"] = fnNone, fnFrame
			k := s.find()
			if _, err := k.Symbols(); err != nil { // the fake has them where its code would be
				t.Fatal(err)
			}
			tt.fill(s, stack)
			regs := cpuAt(tt.ip, stack.va, stack.va+0x700)
			if !tt.bp {
				regs.Forget("rbp")
			}
			got, err := k.Unwinder().CPU(regs)
			for i := range got {
				got[i].SP -= mem.Virt(stack.va)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || (err != nil) != tt.fails {
				t.Errorf("%s, %v", diff, err)
			}
		})
	}
}

// TestUnwindSavedRegisters: the function that entry code calls pushes registers into its
// caller's frame and jumps to another. Seen from there the caller's entry is wrong, and what
// it leads to could pass: the registers of user mode have numbers of its code segment.
func TestUnwindSavedRegisters(t *testing.T) {
	for _, tt := range []struct {
		name    string
		ip      uint64
		returns uint64 // where on the stack the return address is
		ipAt    uint64 // and the interrupt frame
	}{
		{"in the function that is called", fnLeaf, 0, 0x10},
		{"in one that it jumped to", fnBody + 4, 0x10, 0x18 + 16*8},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, stack := newStackFake(t)
			s.symbols["fn_leaf"], s.symbols["fn_body"] = fnLeaf, fnBody
			k := s.find()
			if _, err := k.Symbols(); err != nil { // the fake has them where its code would be
				t.Fatal(err)
			}
			s.call(fnLeaf, fnEntry+0x20)
			stack.put64(tt.returns, fnEntry+0x20)
			stack.put64(0x20, 0x1234).put64(0x28, 0x33) // as if they were an address and a code segment
			stack.put64(tt.ipAt, fakeUser).put64(tt.ipAt+8, 0x33).put64(tt.ipAt+24, 0x7ffc00000000)
			got, err := k.Unwinder().CPU(cpuAt(tt.ip, stack.va, 0))
			want := []Frame{{PC: mem.Virt(tt.ip), SP: mem.Virt(stack.va), Exact: true},
				{PC: fnEntry + 0x20, SP: mem.Virt(stack.va + tt.returns + 8)},
				{PC: fakeUser, SP: 0x7ffc00000000, Exact: true, User: true}}
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Errorf("%s, %v", diff, err)
			}
		})
	}
}

// TestUnwindByRegister: a function that has its return address in a register meanwhile.
func TestUnwindByRegister(t *testing.T) {
	for _, tt := range []struct {
		name          string
		target        uint64 // of the call in front of what is in the register
		there, caller uint64
	}{
		{"a null pointer in its place", fnLeaf, 0, fnFrame + 0x20},
		{"a number", fnLeaf, 0x5d9cd3, fnFrame + 0x20},
		{"an address of the kernel", fnLeaf, fnBody + 0x40, fnFrame + 0x20},
		{"a return address", fnLeaf, fnBody + 0x20, fnBody + 0x20},
		{"the register is of another call", fnNone, fnBody + 0x40, fnBody + 0x40},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, stack := newStackFake(t)
			s.symbols["fn_leaf"] = fnLeaf
			k := s.find()
			if _, err := k.Symbols(); err != nil { // the fake has them where its code would be
				t.Fatal(err)
			}
			s.call(tt.target, fnFrame+0x20)
			s.call(fnNone, fnBody+0x20)
			copy(s.ram[s.physOf(fnBody+0x40-7):], make([]byte, 7)) // no call
			stack.put64(0, tt.there)
			regs := cpuAt(fnLeaf+4, stack.va, 0)
			regs.Set("rsi", fnFrame+0x20)
			got, _ := k.Unwinder().CPU(regs) // what is behind the caller is not there
			if len(got) < 2 || got[1].PC != mem.Virt(tt.caller) || got[1].SP != mem.Virt(stack.va+8) {
				t.Errorf("%+v, want a caller at %#x", got, tt.caller)
			}
		})
	}
}
