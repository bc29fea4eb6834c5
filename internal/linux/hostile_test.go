package linux

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"nestdbg/internal/mem"
)

// exercise asks a kernel everything; what it says is not looked at.
func exercise(k *Kernel, src Source) {
	k.Forget()
	modules, _, _ := k.Modules()
	for i := range modules {
		k.ModuleSymbols(&modules[i])
		k.ModuleTypes(modules[i].Name)
	}
	k.Symbolize(k.TextVA + 0x1234)
	for i := range modules {
		k.Symbolize(modules[i].Base + 0x105)
	}
	tasks, _, _ := k.Tasks()
	for i := range tasks {
		k.CommandLine(&tasks[i])
	}
	for cpu := range 3 {
		k.Current(cpu)
	}
	for _, regs := range src.CPUs {
		k.CurrentOf(regs)
	}
	k.KVMs()
	for _, pa := range []mem.Phys{0, 0x5000, 0x9000, 1 << 22, 1 << 40, ^mem.Phys(0)} {
		k.PageFree(pa)
	}
	for _, last := range []uint64{0xfff, 0x3fffff, 0x403fff} {
		k.PageUses([]mem.Range{{Last: last}, {First: ^uint64(0xfff), Last: ^uint64(0)}}, func(mem.Range, PageUse) {})
	}
}

// TestMutatedMemory flips bytes all over a machine and asks it everything: no
// panic, no endless loop, and no answer about the kernel's release but the true one.
func TestMutatedMemory(t *testing.T) {
	for _, isNew := range []bool{false, true} {
		s := newFakeSystem(t, isNew)
		describeUses(s)
		src := s.finish()
		whole := bytes.Clone(s.ram)
		for seed := range uint64(14) {
			r := rand.New(rand.NewPCG(seed, 1))
			copy(s.ram, whole)
			for range 1 << (seed % 14) {
				at := fakeHeap + r.Uint64N(uint64(s.heap)-fakeHeap)
				if r.Uint64N(3) == 0 {
					at = fakeImagePA + r.Uint64N(fakeTablesAt+8*pageSize)
				}
				s.ram[at] = byte(r.Uint32())
			}
			if seed%2 == 1 {
				src.CPUs = nil
			}
			k, err := Find(src)
			if (k == nil) == (err == nil) {
				t.Fatalf("seed %d: value %v and error %v", seed, k, err)
			}
			if err == nil {
				exercise(k, src)
			}
		}
	}
}

// FuzzMemory overwrites words of the structures of a running kernel: each 11
// bytes of the input are an offset in the heap and a value.
func FuzzMemory(f *testing.F) {
	type system struct {
		*fakeSystem
		k   *Kernel
		src Source
	}
	var systems []system
	for _, isNew := range []bool{false, true} {
		s := newFakeSystem(f, isNew)
		describeUses(s)
		src := s.finish()
		k, err := Find(src)
		if err != nil {
			f.Fatal(err)
		}
		exercise(k, src)
		systems = append(systems, system{s, k, src})
	}
	patch := func(at, v uint64) []byte {
		b := binary.LittleEndian.AppendUint32(nil, uint32(at-fakeHeap))[:3]
		return binary.LittleEndian.AppendUint64(b, v)
	}
	for _, s := range systems {
		list := s.modules[0].at("list")
		f.Add(patch(s.physOf(list), list))
		f.Add(patch(s.physOf(s.tasks[1].at("tasks")), s.tasks[1].at("tasks")))
		f.Add(patch(s.physOf(s.tasks[1].at("mm")), fakeText))
		f.Add(patch(s.physOf(s.vm.at("memslots[0]")), s.vm.va))
		f.Add(patch(s.physOf(s.vcpus[0].at("vmcb01.ptr")), ^uint64(0)-0xfff))
	}
	f.Fuzz(func(t *testing.T, patches []byte) {
		for _, s := range systems {
			heap := s.ram[fakeHeap:s.heap]
			saved := bytes.Clone(heap)
			for p := patches; len(p) >= 11; p = p[11:] {
				at := uint64(p[0]) | uint64(p[1])<<8 | uint64(p[2])<<16
				copy(heap[at%uint64(len(heap)):], p[3:11])
			}
			exercise(s.k, s.src)
			copy(heap, saved)
		}
	})
}
