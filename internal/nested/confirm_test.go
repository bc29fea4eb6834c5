package nested_test

import (
	"strings"
	"sync"
	"testing"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/nested"
	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/svm/svmtest"
)

// A guest that cannot go on because its hypervisor gave it no page for what it does is
// there, although its program counter leads nowhere.
func TestStuckInFault(t *testing.T) {
	lost := uint64(nestedtest.Text + 0x8000)
	for name, c := range map[string]struct {
		values svmtest.Values
		found  bool
	}{
		"the fault it is at":        {svmtest.Values{"EXITCODE": 0x400, "EXITINFO1": 1<<32 | 0x14, "EXITINFO2": 0x7000010}, true},
		"another address":           {svmtest.Values{"EXITCODE": 0x400, "EXITINFO1": 1<<32 | 0x14, "EXITINFO2": 0x7001010}, false},
		"another exit":              {svmtest.Values{"EXITCODE": 0x78, "EXITINFO1": 1<<32 | 0x14, "EXITINFO2": 0x7000010}, false},
		"tables emptied since":      {svmtest.Values{"EXITCODE": 0x400, "EXITINFO1": 1 << 33, "EXITINFO2": 0x10ff8}, false},
		"tables that are not there": {svmtest.Values{"EXITCODE": 0x400, "EXITINFO2": 0x7000010, "nCR3": 0x900000}, false},
	} {
		w := nestedtest.New()
		g := w.Guest()
		g.Tables.Map(lost, 0x7000000, 4096, g.Tables.Express(7))
		v := g.CPU(lost+0x10, stack)
		v.Park(lost+0x10, stack, c.values)
		if name == "tables emptied since" {
			w.RAM.Put(g.NPT.Root(), make([]byte, 4096))
		}
		tower := new(nested.Finder).Build(w.Machine(w.Host(0, text, stack)), scan)
		if (len(tower.Machines) == 2) != c.found {
			t.Errorf("%s: %d machines", name, len(tower.Machines))
		}
	}
}

// A guest that jumped to nowhere is there: the rest of it makes sense.
func TestNullCall(t *testing.T) {
	for name, c := range map[string]struct {
		values svmtest.Values
		found  bool
	}{
		"exception":            {svmtest.Values{"EXITCODE": 0x4e}, true},
		"shutdown":             {svmtest.Values{"EXITCODE": 0x7f}, true},
		"descriptor table":     {svmtest.Values{"IDTR base": text}, true},
		"interrupt":            {nil, false},
		"no stack":             {svmtest.Values{"EXITCODE": 0x4e, "RSP": 0x1000}, false},
		"tables emptied since": {svmtest.Values{"EXITCODE": 0x4e, "nCR3": 0x3ff000}, false},
	} {
		w := nestedtest.New()
		v := w.Guest().CPU(0, stack)
		v.Park(0, stack, c.values)
		tower := new(nested.Finder).Build(w.Machine(w.Host(0, text, stack)), scan)
		if (len(tower.Machines) == 2) != c.found {
			t.Errorf("%s: %d machines", name, len(tower.Machines))
		}
	}
}

// Of pages that tell of the same CPU one is in use at most: that which a CPU points at.
func TestCopies(t *testing.T) {
	w := nestedtest.New()
	v := w.Guest().CPU(text+0x40, stack)
	w.RAM.Put(w.Take(), read(t, w, v.Control)) // what a page was before it moved
	tower := new(nested.Finder).Build(w.Machine(w.Host(0, text, stack)), scan)
	check(t, tower, "l1.0 running on 0 at +0x0", "vm0.0 parked on -1 at +0x40")

	later := w.Take()
	w.RAM.Put(later, read(t, w, v.Control))
	device := w.Host(0, text, stack)
	device.Set("vm_vmcb", uint64(later))
	tower = new(nested.Finder).Build(w.Machine(device), scan)
	check(t, tower, "l1.0 running on 0 at +0x0", "vm0.0 parked on -1 at +0x40")
	if at := tower.Machines[1].CPUs[0].Control; at != later {
		t.Errorf("the CPU's own word is %#x, found at %#x", later, at)
	}
}

func read(t *testing.T, w *nestedtest.World, a mem.Phys) []byte {
	t.Helper()
	b := make([]byte, 4096)
	if _, err := w.RAM.ReadPhys(b, a); err != nil {
		t.Fatal(err)
	}
	return b
}

// unsliced is memory that can only be copied from, as QEMU's private memory.
type unsliced struct{ machine.PhysMemory }

func (unsliced) SlicePhys(mem.Phys, int) []byte { return nil }

func TestScanOfMemoryWithoutSlices(t *testing.T) {
	w := nestedtest.New()
	w.Guest().CPU(text+0x40, stack)
	m := w.Machine(w.Host(0, text, stack))
	m.Phys = unsliced{m.Phys}
	check(t, new(nested.Finder).Build(m, scan), "l1.0 running on 0 at +0x0", "vm0.0 parked on -1 at +0x40")
}

// A search that is told to stop does, and says how far it was.
func TestProgress(t *testing.T) {
	w := nestedtest.New()
	w.Guest().CPU(text+0x40, stack)
	var mu sync.Mutex
	var most, of uint64
	opt := scan
	opt.Progress = func(done, all uint64) bool {
		mu.Lock()
		defer mu.Unlock()
		most, of = max(most, done), all
		return true
	}
	if tower := new(nested.Finder).Build(w.Machine(w.Host(0, text, stack)), opt); len(tower.Machines) != 2 {
		t.Error(outline(tower))
	}
	if most != 5<<20 || of != 5<<20 {
		t.Errorf("%#x of %#x", most, of)
	}
	opt.Progress = func(uint64, uint64) bool { return false }
	if tower := new(nested.Finder).Build(w.Machine(w.Host(0, text, stack)), opt); tower == nil {
		t.Error("a search that ends early has no answer")
	}
}

// A page from random bytes, or a file full of the VMCBs of guests that are gone, has none.
func TestNoFalseGuests(t *testing.T) {
	w := nestedtest.New()
	seed := uint64(1)
	random := make([]byte, 4096)
	for range 300 {
		for i := range random {
			seed = seed*6364136223846793005 + 1442695040888963407
			random[i] = byte(seed >> 56)
		}
		w.RAM.Put(w.Take(), random)
	}
	for i := range uint64(100) { // roots and tables of guests that are gone: used for something else, or old VMCBs
		w.RAM.Put(w.Take(), svmtest.VMCB(svmtest.Values{"nCR3": 0x200000 + i<<13, "CR3": i << 12, "RIP": text + i<<4,
			"IOPM": 0x1000, "MSRPM": 0x4000}))
	}
	tower := new(nested.Finder).Build(w.Machine(w.Host(0, text, stack)), scan)
	if len(tower.Machines) != 1 {
		t.Errorf("found\n%s%s", outline(tower), strings.Join(tower.Machines[1].Evidence, "\n"))
	}
}
