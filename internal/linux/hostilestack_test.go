package linux

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
)

// unwindAll unwinds from a CPU's registers and from a task, and checks what holds
// for every answer.
func unwindAll(t *testing.T, k *Kernel, stack object, regs *arch.Registers) {
	u := k.Unwinder()
	for range 2 {
		frames, err := u.CPU(regs)
		if len(frames) == 0 && err == nil || len(frames) > framesMax {
			t.Fatalf("%d frames, %v", len(frames), err)
		}
		for i := range frames {
			if frames[i].User && i < len(frames)-1 {
				t.Fatalf("frame %d of %d is in user mode", i, len(frames))
			}
			frames[i].Symbolize(k)
		}
		u.Task(&Task{PID: 1, Stack: mem.Virt(stack.va), SP: mem.Virt(stack.va + 0x100)})
		if frames, err := u.Lost(&Task{PID: 1, Stack: mem.Virt(stack.va)}); err == nil && len(frames) < lostLeast {
			t.Fatalf("a chain of %d frames", len(frames))
		}
	}
}

// TestMutatedStack flips bytes of unwind tables, stacks, modules and the log: no
// panic, no endless loop.
func TestMutatedStack(t *testing.T) {
	s, stack := newStackFake(t)
	regs := fakeStack(stack)
	src := s.finish()
	whole := bytes.Clone(s.ram)
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 2))
		copy(s.ram, whole)
		for range 1 << (seed % 8) {
			at := uint64(stack.pa) + r.Uint64N(0x400)
			switch r.Uint64N(3) {
			case 0:
				at = fakeImagePA + fakeDataAt + r.Uint64N(s.data-fakeDataAt)
			case 1:
				at = fakeHeap + r.Uint64N(uint64(s.heap)-fakeHeap)
			}
			s.ram[at] = byte(r.Uint32())
		}
		k, err := Find(src)
		if err != nil {
			continue
		}
		unwindAll(t, k, stack, regs)
	}
}

// FuzzUnwind overwrites words of a stack and registers: each 10 bytes of the input
// are a place and a value.
func FuzzUnwind(f *testing.F) {
	s, stack := newStackFake(f)
	regs := fakeStack(stack)
	k, err := Find(s.finish())
	if err != nil {
		f.Fatal(err)
	}
	patch := func(at uint16, v uint64) []byte {
		return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint16(nil, at), v)
	}
	f.Add(patch(0, fnLeaf+1))
	f.Add(patch(0x48, stack.va))
	f.Add(append(patch(0x50+17*8, 0x33), patch(pageSize+1, 0)...))
	content := s.ram[stack.pa:][:pageSize]
	saved := bytes.Clone(content)
	names := []string{"rip", "rsp", "rbp", "cs"}
	f.Fuzz(func(t *testing.T, patches []byte) {
		r := regs.Clone()
		for p := patches; len(p) >= 10; p = p[10:] {
			at, v := int(binary.LittleEndian.Uint16(p)), binary.LittleEndian.Uint64(p[2:])
			if at < pageSize {
				copy(content[at:], p[2:10])
			} else {
				r.Set(names[at%len(names)], v)
			}
		}
		unwindAll(t, k, stack, r)
		copy(content, saved)
	})
}
