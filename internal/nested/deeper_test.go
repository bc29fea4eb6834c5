package nested

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/paging"
	"nestdbg/internal/paging/pagingtest"
	"nestdbg/internal/svm/svmtest"
	"nestdbg/internal/vmx/vmxtest"
)

const (
	deepText  = uint64(nestedtest.Text)
	deepStack = deepText + 0x3f00
	deepSave  = 0x150000 // L2's host save area, into which L2 executes VMSAVE
)

// deepWorld is L1, L2 in it and L3 in that, each with one CPU and nokaslr.
type deepWorld struct {
	*nestedtest.World
	l2, l3      *nestedtest.Guest
	own, merged *nestedtest.VCPU // L2's VMCB and the merged one, in L1
	made        *nestedtest.VCPU // L3's, in L2
	says        said             // what L1's hypervisor says of L2's CPU
	saysL2      said             // what L2's says of L3's
	finder      *Finder
}

// said is a hypervisor's word, one for each time that it is asked; the last stays.
type said []linux.ControlBlock

func (s *said) Read() (linux.ControlBlock, error) {
	c := (*s)[0]
	if len(*s) > 1 {
		*s = (*s)[1:]
	}
	return c, nil
}

// newDeepWorld has L2 behind its VMRUN, at +0x203, and L3 at +0x30 by the merged block
// and at +0x31 by the one that L2 made. The finder has seen both before.
func newDeepWorld() *deepWorld {
	w := &deepWorld{World: nestedtest.New()}
	w.l2 = w.Guest()
	w.l3 = w.l2.Guest()
	w.own = w.l2.CPU(deepText+0x203, deepStack)
	w.own.Park(deepText+0x203, deepStack, svmtest.Values{"RAX": 0x77, "FS base": 0x3333, "LSTAR": 0x4444})
	w.made = w.l3.CPU(deepText+0x31, deepStack)
	w.merged = w.made.Merged(w.own, deepText+0x30, deepStack, svmtest.Values{"EXITCODE": 0x78, "FS base": 0x9999})
	w.Save(0, w.merged, deepText+0x103, deepStack)
	w.l2.Write(deepSave, svmtest.Page(svmtest.Values{"TR base": 0xfffffe0000003000, "FS base": 0x6666, "LSTAR": 0x7777}))
	for i, g := range []*nestedtest.Guest{w.l2, w.l3} {
		g.Write(g.TextPhys(deepText+0x10), fmt.Appendf(nil, "here is L%d", i+2))
	}
	w.finder = &Finder{count: map[string]int{"l1": 1, "vm0": 1}, known: []*identity{
		{name: "vm0", parent: "l1", controls: map[mem.Phys]int{w.own.Control: 0}, again: map[mem.Phys]controlReader{w.own.Control: &w.says}},
		{name: "vm0.vm0", parent: "vm0", controls: map[mem.Phys]int{w.made.Control: 0}, again: map[mem.Phys]controlReader{w.made.Control: &w.saysL2}},
	}}
	w.saysL2 = said{{Kind: "vmcb", Phys: w.made.Control, Current: w.made.Control}}
	return w
}

// word is what the hypervisor says while L2 is in L3.
func (w *deepWorld) word() linux.ControlBlock {
	return linux.ControlBlock{Kind: "vmcb", Phys: w.own.Control, Current: w.merged.Control, Merged: w.merged.Control,
		Inner: w.made.Control, LastInner: w.made.Control, HostSave: deepSave}
}

// outside is what it says while L2 is not.
func (w *deepWorld) outside() linux.ControlBlock {
	c := w.word()
	c.Current, c.Inner = c.Phys, 0
	return c
}

// inL3 is the device state of L1's CPU while it executes L3.
func (w *deepWorld) inL3(pc uint64) *arch.Registers {
	r := w.merged.Running(0, pc, deepStack)
	r.Set("cr3", uint64(w.l3.Tables.Root()))
	r.Set("nested_cr3", uint64(w.Take())) // the combined second stage, which is nobody's own
	r.Set("rbx", 0xb3)
	r.Set("fs_base", 0x5555)
	return r
}

func (w *deepWorld) build(r *arch.Registers) *machine.Tower {
	return w.finder.Build(w.Machine(r), Options{})
}

// deepOutline is a tower in one line per CPU.
func deepOutline(t *machine.Tower) string {
	var b strings.Builder
	for _, m := range t.Machines {
		for _, c := range m.CPUs {
			fmt.Fprintf(&b, "%s %s on %d", m.Name, c.State, c.On)
			if pc, ok := c.Regs.PC(); ok {
				fmt.Fprintf(&b, " at +%#x", pc-deepText)
			}
			b.WriteString("; ")
		}
	}
	return b.String()
}

func TestGuestOfGuestByWord(t *testing.T) {
	for _, c := range []struct {
		name    string
		device  func(w *deepWorld) *arch.Registers
		says    func(w *deepWorld) said
		want    string
		problem string
	}{
		{"a CPU executes L3", func(w *deepWorld) *arch.Registers { return w.inL3(deepText + 0x38) },
			func(w *deepWorld) said { return said{w.word()} },
			"l1 hosting on 0 at +0x103; vm0 hosting on 0 at +0x203; vm0.vm0 running on 0 at +0x38; ", ""},
		{"L1 handles an exit of L3", func(w *deepWorld) *arch.Registers { return w.Host(0, deepText+0x300, deepStack) },
			func(w *deepWorld) said { return said{w.word()} },
			"l1 running on 0 at +0x300; vm0 hosting on -1 at +0x203; vm0.vm0 parked on -1 at +0x30; ", ""},
		{"L1 is about to enter L3 for the first time", func(w *deepWorld) *arch.Registers { return w.Host(0, deepText+0x300, deepStack) },
			func(w *deepWorld) said { c := w.word(); c.Pending = true; return said{c} },
			"l1 running on 0 at +0x300; vm0 hosting on -1 at +0x203; vm0.vm0 parked on -1 at +0x31; ", ""},
		{"L2 handles an exit of L3", func(w *deepWorld) *arch.Registers { return w.own.Running(0, deepText+0x240, deepStack) },
			func(w *deepWorld) said { return said{w.outside()} },
			"l1 hosting on 0 at +0x103; vm0 running on 0 at +0x240; vm0.vm0 parked on -1 at +0x31; ", ""},
		{"L2 is left, and L1's CPU has entered the merged block last", func(w *deepWorld) *arch.Registers {
			r := w.Host(0, deepText+0x300, deepStack)
			r.Set("vm_vmcb", uint64(w.merged.Control))
			return r
		}, func(w *deepWorld) said { return said{w.outside()} },
			"l1 running on 0 at +0x300; vm0 parked on -1 at +0x203; vm0.vm0 parked on -1 at +0x31; ", ""},
		{"L1 is half through the exit from L3 to L2", func(w *deepWorld) *arch.Registers { return w.Host(0, deepText+0x300, deepStack) },
			func(w *deepWorld) said { c := w.word(); c.Inner = 0; return said{c} },
			"l1 running on 0 at +0x300; vm0 parked on -1 at +0x203; vm0.vm0 parked on -1 at +0x31; ", ""},
		// A machine that runs: the words are of a later moment than the CPUs.
		{"L3 was left since", func(w *deepWorld) *arch.Registers { return w.inL3(deepText + 0x38) },
			func(w *deepWorld) said { return said{w.outside()} },
			"l1 hosting on 0 at +0x103; vm0 hosting on 0; vm0.vm0 running on 0 at +0x38; ", ""},
		{"L3 was entered since", func(w *deepWorld) *arch.Registers { return w.own.Running(0, deepText+0x240, deepStack) },
			func(w *deepWorld) said { return said{w.word()} },
			"l1 hosting on 0 at +0x103; vm0 running on 0 at +0x240; vm0.vm0 parked on -1 at +0x31; ", ""},
		{"L3 was left between two words", func(w *deepWorld) *arch.Registers { return w.Host(0, deepText+0x300, deepStack) },
			func(w *deepWorld) said { return said{w.word(), w.outside()} },
			"l1 running on 0 at +0x300; vm0 parked on -1 at +0x203; vm0.vm0 parked on -1 at +0x31; ", ""},
		// What cannot be.
		{"whose L3 it is is not known", func(w *deepWorld) *arch.Registers { return w.inL3(deepText + 0x38) },
			func(w *deepWorld) said { c := w.outside(); c.LastInner = 0; return said{c} },
			"l1 hosting on 0 at +0x103; vm0 hosting on 0; vm0.vm0 parked on -1 at +0x31; ", "CPU 0 executes a guest of a guest, and whose is not known"},
		{"L3's block is outside L2's memory", func(w *deepWorld) *arch.Registers { return w.inL3(deepText + 0x38) },
			func(w *deepWorld) said { c := w.word(); c.Inner = 0x7fffff000; return said{c} },
			"l1 hosting on 0 at +0x103; vm0 hosting on 0 at +0x203; vm0.vm0 parked on -1 at +0x31; ", "CPU 0 of vm0 is in a guest of its own"},
		{"the merged block is none", func(w *deepWorld) *arch.Registers { return w.Host(0, deepText+0x300, deepStack) },
			func(w *deepWorld) said {
				c := w.word()
				c.Current, c.Merged = 0x9000, 0x9000
				return said{c}
			},
			"l1 running on 0 at +0x300; vm0 parked on -1 at +0x203; vm0.vm0 parked on -1 at +0x31; ", "the merged control block at 0x9000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newDeepWorld()
			w.says = c.says(w)
			tower := w.build(c.device(w))
			if got := deepOutline(tower); got != c.want {
				t.Errorf("got  %s\nwant %s\nproblems %q", got, c.want, tower.Problems)
			}
			if p := strings.Join(tower.Problems, "; "); !strings.Contains(p, c.problem) || (p == "") != (c.problem == "") {
				t.Errorf("problems %q, want %q", p, c.problem)
			}
		})
	}
}

// Whose registers are whose while a CPU executes L3, and while it has left it.
func TestGuestOfGuestRegisters(t *testing.T) {
	w := newDeepWorld()
	w.says = said{w.word()}
	running := w.build(w.inL3(deepText + 0x38))
	parked := w.build(w.Host(0, deepText+0x300, deepStack))
	w.says = said{w.outside()}
	left := w.build(w.inL3(deepText + 0x38))
	w.says = said{w.word()}
	w.says[0].HostSave = 0
	unsaved := w.build(w.inL3(deepText + 0x38))
	for _, c := range []struct {
		tower   *machine.Tower
		machine int
		reg     string
		value   uint64
		known   bool
	}{
		{running, 2, "rbx", 0xb3, true},
		{running, 2, "fs_base", 0x5555, true},
		{running, 2, "guest_mode", 0, false},
		{running, 1, "rsp", deepStack, true},
		{running, 1, "rax", 0x77, true},
		{running, 1, "cr3", uint64(w.l2.Tables.Root()), true},
		{running, 1, "rbx", 0, false},         // in no memory
		{running, 1, "fs_base", 0x6666, true}, // those in its VMCB are L3's: the hypervisor loads them from there
		{running, 1, "lstar", 0x7777, true},
		{unsaved, 1, "fs_base", 0, false},
		{unsaved, 1, "lstar", 0, false},
		{unsaved, 1, "rip", deepText + 0x203, true},
		{left, 1, "fs_base", 0, false}, // of a later moment
		{left, 1, "rip", 0, false},
		{running, 1, "vm_vmcb", 0, false},
		{parked, 2, "cr3", uint64(w.l3.Tables.Root()), true},
		{parked, 2, "fs_base", 0x3333, true}, // and leaves them there
		{parked, 2, "lstar", 0x4444, true},
		{parked, 2, "rbx", 0, false}, // in KVM, which was not asked
		{parked, 1, "fs_base", 0x6666, true},
	} {
		m := c.tower.Machines[c.machine]
		if got, ok := m.CPUs[0].Regs.Get(c.reg); got != c.value || ok != c.known {
			t.Errorf("%s, %s: %s is %#x, %v; want %#x, %v", m.Name, m.CPUs[0].State, c.reg, got, ok, c.value, c.known)
		}
	}
}

// What else hangs on which machine a CPU is in.
func TestGuestOfGuestPlaces(t *testing.T) {
	w := newDeepWorld()
	w.says = said{w.word()}
	running := w.build(w.inL3(deepText + 0x38))
	parked := w.build(w.Host(0, deepText+0x300, deepStack))
	if m, cpu := running.At(0); m != running.Machines[2] || cpu != m.CPUs[0] {
		t.Errorf("CPU 0 executes %v", m)
	}
	if m, _ := parked.Guest(parked.Machines[1].CPUs[0]); m != parked.Machines[2] {
		t.Errorf("L2 is in %v", m)
	}
	for _, tower := range []*machine.Tower{running, parked} {
		l1, l2, l3 := tower.Machines[0], tower.Machines[1], tower.Machines[2]
		if host, at := ExecutedBy(l3, l3.CPUs[0]); host != l1 || at != w.merged.Control || l3.CPUs[0].Control != w.made.Control {
			t.Errorf("L3 is executed by %s with %#x, its own block is at %#x", host.Name, at, l3.CPUs[0].Control)
		}
		if l2.CPUs[0].Control != w.own.Control || l2.CPUs[0].Merged != w.merged.Control {
			t.Errorf("L2's block is at %#x, the merged one at %#x", l2.CPUs[0].Control, l2.CPUs[0].Merged)
		}
		if got := l3.Second.Space.Root(); got != w.l3.NPT.Root() {
			t.Errorf("L3's second stage is at %#x, L2 made it at %#x", got, w.l3.NPT.Root())
		}
		for i, m := range []*machine.Machine{l2, l3} {
			space, err := m.Space(m.CPUs[0])
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 10)
			if _, err := space.ReadVirt(b, mem.Virt(deepText+0x10)); err != nil || string(b) != fmt.Sprintf("here is L%d", i+2) {
				t.Errorf("%s: %q, %v", m.Name, b, err)
			}
		}
		watched := NewDeliveries(l1, nil, tower).Blocks()
		if len(watched) != 2 || watched[0] != min(w.own.Control, w.merged.Control) || watched[1] != max(w.own.Control, w.merged.Control) {
			t.Errorf("events are awaited in %#x, want %#x and %#x", watched, w.own.Control, w.merged.Control)
		}
	}
	landing, err := Land(parked.Machines[2], parked.Machines[2].CPUs[0])
	if err != nil || landing.PC != deepText+0x30 {
		t.Errorf("L3 continues at %#x, %v", landing.PC, err)
	}
}

// The rule holds at every level: L2 merges for L3 what L1 merges again.
func TestGuestOfGuestOfGuestByWord(t *testing.T) {
	w := newDeepWorld()
	l4 := w.l3.Guest()
	made := l4.CPU(deepText+0x41, deepStack) // in L3
	// L2 runs L4 for L3 with a merged block in its own memory, which L1 merges with L2's.
	w.made.Park(deepText+0x303, deepStack, nil)
	between := made.Merged(w.made, deepText+0x42, deepStack, nil)
	w.merged.Park(deepText+0x43, deepStack, svmtest.Values{"CR3": uint64(l4.Tables.Root()), "nCR3": uint64(w.Take())})
	word := w.word()
	word.Inner = between.Control
	w.says = said{word}
	w.saysL2 = said{{Kind: "vmcb", Phys: w.made.Control, Current: between.Control, Merged: between.Control, Inner: made.Control}}

	device := w.inL3(deepText + 0x48)
	device.Set("cr3", uint64(l4.Tables.Root()))
	tower := w.build(device)
	if got, want := deepOutline(tower), "l1 hosting on 0 at +0x103; vm0 hosting on 0 at +0x203; "+
		"vm0.vm0 hosting on 0 at +0x303; vm0.vm0.vm0 running on 0 at +0x48; "; got != want || len(tower.Problems) > 0 {
		t.Errorf("got  %s\nwant %s\nproblems %q", got, want, tower.Problems)
	}
	tower = w.build(w.Host(0, deepText+0x300, deepStack))
	if got, want := deepOutline(tower), "l1 running on 0 at +0x300; vm0 hosting on -1 at +0x203; "+
		"vm0.vm0 hosting on -1 at +0x303; vm0.vm0.vm0 parked on -1 at +0x43; "; got != want || len(tower.Problems) > 0 {
		t.Errorf("got  %s\nwant %s\nproblems %q", got, want, tower.Problems)
	}
	l4th := tower.Machines[3]
	if host, at := ExecutedBy(l4th, l4th.CPUs[0]); host != tower.Machines[0] || at != w.merged.Control {
		t.Errorf("L4 is executed by %s with %#x", host.Name, at)
	}
}

// combined gives the merged block a second stage that leads where those of L3 and L2 lead
// together, as a hypervisor does.
func (w *deepWorld) combined(values svmtest.Values) *pagingtest.Builder {
	b := pagingtest.New("npt4", w.RAM, pagingtest.NewFrames(mem.Range{First: 0x180000, Last: 0x1bffff}, 0))
	for _, pages := range []mem.Range{{First: 0x10000, Last: 0x17fff}, {First: 0x40000, Last: 0x43fff}} {
		for a := pages.First; a < pages.Last; a += 0x1000 {
			middle, _, ok := w.l3.NPT.Lookup(a)
			if !ok {
				continue
			}
			at, _, _ := w.l2.NPT.Lookup(uint64(middle))
			b.Map(a, at, 4096, b.Express(paging.Read|paging.Write|paging.Exec))
		}
	}
	all := svmtest.Values{"CR3": uint64(w.l3.Tables.Root()), "nCR3": uint64(b.Root()), "EXITCODE": 0x78}
	maps.Copy(all, values)
	w.merged.Park(deepText+0x30, deepStack, all)
	return b
}

// Where nobody says which block is merged, its second stage does, and L3 is no guest of L1.
func TestGuestOfGuestByContent(t *testing.T) {
	const running = "l1 hosting on 0 at +0x103; vm0 hosting on 0 at +0x203; vm0.vm0 running on 0 at +0x38; "
	const parked = "l1 running on 0 at +0x300; vm0 parked on -1 at +0x203; vm0.vm0 parked on -1 at +0x31; "
	for name, c := range map[string]struct {
		spoil  func(w *deepWorld, b *pagingtest.Builder)
		inside bool
		want   string
	}{
		"a CPU executes L3": {nil, true, running},
		"L1 runs":           {nil, false, parked},
		"a page was changed": {func(_ *deepWorld, b *pagingtest.Builder) {
			b.Edit(0x4_3000, 1, func(e uint64) uint64 { return e ^ 0x1000 })
		}, false, "l1 running on 0 at +0x300; vm0 parked on -1 at +0x203; vm1 parked on -1 at +0x30; "},
		"another guest's tables": {func(w *deepWorld, _ *pagingtest.Builder) {
			other := w.Guest()
			w.merged.Park(deepText+0x30, deepStack, svmtest.Values{"CR3": uint64(other.Tables.Root()), "nCR3": uint64(other.NPT.Root())})
		}, false, "l1 running on 0 at +0x300; vm0 parked on -1 at +0x203; vm1 parked on -1 at +0x30; "},
		"L2 sees L1's memory": {func(w *deepWorld, _ *pagingtest.Builder) {
			for a := uint64(0x200000); a < 0x400000; a += 0x1000 { // where it is, its tables and control blocks included
				w.l2.NPT.Map(a, mem.Phys(a), 4096, w.l2.NPT.Express(7))
			}
		}, false, parked},
	} {
		w := newDeepWorld()
		w.finder = &Finder{}
		w.own.Park(deepText+0x203, deepStack, svmtest.Values{"EXITCODE": 0x80})
		b := w.combined(nil)
		if c.spoil != nil {
			c.spoil(w, b)
		}
		device := func() *arch.Registers {
			if !c.inside {
				return w.Host(0, deepText+0x300, deepStack)
			}
			r := w.inL3(deepText + 0x38)
			r.Set("nested_cr3", uint64(b.Root()))
			return r
		}
		full := w.finder.Build(w.Machine(device()), Options{Scan: true})
		if got := deepOutline(full); got != c.want || len(full.Problems) > 0 {
			t.Errorf("%s:\ngot  %s\nwant %s\nproblems %q", name, got, c.want, full.Problems)
			continue
		}
		// A look that does not search knows it from before.
		if got := deepOutline(w.finder.Build(w.Machine(device()), Options{})); got != c.want {
			t.Errorf("%s: a glance\ngot  %s\nwant %s", name, got, c.want)
		}
		if !strings.Contains(c.want, "vm0.vm0") {
			continue
		}
		all, _ := Find(full, Options{Scan: true})
		for _, x := range all {
			if x.In == "l1" && x.At == w.merged.Control && (x.Machine == "" || x.Machine == "vm1") {
				t.Errorf("%s: the merged block is %s of %q", name, x.State, x.Machine)
			}
		}
	}
}

// deepVMX is deepWorld under VMX: L2 has made a VMCS for L3, and what is in it is in L1's
// memory, as KVM keeps it; L2's own page has a header only.
type deepVMX struct {
	*nestedtest.World
	l2, l3            *nestedtest.Guest
	own, merged, made mem.Phys
	page              []byte // at merged
	says              said
	finder            *Finder
}

func newDeepVMX() *deepVMX {
	w := &deepVMX{World: nestedtest.New(), made: 0x151000}
	w.l2 = w.EPTGuest()
	w.l3 = w.l2.EPTGuest()
	kept := w.Take()
	w.own, w.merged = w.Take(), w.Take()
	w.RAM.Put(w.own, w.l2.VMCS(vmxtest.KVM, deepText+0x203, deepText+0x300, nil))
	w.page = w.l2.VMCS(vmxtest.KVM, deepText+0x30, deepText+0x300, vmxtest.Values{
		"guest CR3": uint64(w.l3.Tables.Root()), "EPT pointer": uint64(w.Take()) | 0x5e})
	w.RAM.Put(w.merged, w.page)
	w.RAM.Put(kept, w.l3.VMCS(vmxtest.KVM, deepText+0x31, deepText+0x240, vmxtest.Values{"host CR3": uint64(w.l2.Tables.Root())}))
	w.l2.Write(w.made, vmxtest.Page(vmxtest.KVM, nil))
	w.says = said{{Kind: "vmcs", Phys: w.own, Current: w.merged, Merged: w.merged, Inner: w.made, LastInner: w.made, Kept: kept}}
	w.finder = &Finder{count: map[string]int{"l1": 1}, known: []*identity{
		{name: "vm0", parent: "l1", controls: map[mem.Phys]int{w.own: 0}, again: map[mem.Phys]controlReader{w.own: &w.says}},
	}}
	for i, g := range []*nestedtest.Guest{w.l2, w.l3} {
		g.Write(g.TextPhys(deepText+0x10), fmt.Appendf(nil, "here is L%d", i+2))
	}
	return w
}

// host is L1's CPU while it executes L1.
func (w *deepVMX) host() *arch.Registers { return w.Host(0, deepText+0x300, deepStack) }

func TestGuestOfGuestVMX(t *testing.T) {
	const inside = "l1 hosting on 0 at +0x300; vm0 hosting on 0 at +0x203; vm0.vm0 running on 0 at +0x38; "
	for _, c := range []struct {
		name          string
		device        func(w *deepVMX) *arch.Registers
		says          func(c *linux.ControlBlock)
		want, problem string
		parked        string // what the first CPU of vm0 is parked for
	}{
		{"a CPU executes L3", func(w *deepVMX) *arch.Registers {
			r := w.l2.UnderVMX(true, w.merged, w.page, deepText+0x38)
			r.Set("cr3", uint64(w.l3.Tables.Root()))
			return r
		}, func(*linux.ControlBlock) {}, inside, "", ""},
		{"L1 handles an exit of L3", (*deepVMX).host, func(*linux.ControlBlock) {},
			"l1 running on 0 at +0x300; vm0 hosting on -1 at +0x203; vm0.vm0 parked on -1 at +0x30; ", "", ""},
		{"L1 is about to enter L3 for the first time", (*deepVMX).host, func(c *linux.ControlBlock) { c.Pending = true },
			"l1 running on 0 at +0x300; vm0 hosting on -1 at +0x203; vm0.vm0 parked on -1 at +0x31; ", "", ""},
		{"L2 is left, and has a VMCS that is current", (*deepVMX).host, func(c *linux.ControlBlock) { c.Current, c.Inner = c.Phys, 0 },
			"l1 running on 0 at +0x300; vm0 parked on -1 at +0x203; vm0.vm0 parked on -1 at +0x31; ", "", "EPT violation"},
		{"KVM's types do not tell, and L1 runs", (*deepVMX).host, func(c *linux.ControlBlock) {
			*c = linux.ControlBlock{Kind: c.Kind, Phys: c.Phys, Current: c.Merged, Merged: c.Merged, Untold: true}
		}, "l1 running on 0 at +0x300; vm0 parked on -1 at +0x203; ", "", "a guest of its own, of which its hypervisor's types say nothing"},
		{"KVM's types do not tell, and a CPU executes L3", func(w *deepVMX) *arch.Registers {
			return w.l2.UnderVMX(true, w.merged, w.page, deepText+0x38)
		}, func(c *linux.ControlBlock) {
			*c = linux.ControlBlock{Kind: c.Kind, Phys: c.Phys, Current: c.Merged, Merged: c.Merged, Untold: true}
		}, "l1 hosting on 0 at +0x300; vm0 hosting on 0; ", "executes a guest of a guest, and whose is not known", ""},
	} {
		w := newDeepVMX()
		c.says(&w.says[0])
		tower := w.finder.Build(w.Machine(c.device(w)), Options{})
		if got := deepOutline(tower); got != c.want {
			t.Errorf("%s:\ngot  %s\nwant %s\nproblems %q", c.name, got, c.want, tower.Problems)
			continue
		}
		if p := strings.Join(tower.Problems, "; "); !strings.Contains(p, c.problem) || (p == "") != (c.problem == "") {
			t.Errorf("%s: problems %q, want %q", c.name, p, c.problem)
		}
		if why := tower.Machines[1].CPUs[0].Why; c.parked != "" && why != c.parked {
			t.Errorf("%s: parked for %q", c.name, why)
		}
		for i, m := range tower.Machines[1:] {
			if _, known := m.CPUs[0].Regs.PC(); !known {
				continue
			}
			space, err := m.Space(m.CPUs[0])
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			b := make([]byte, 10)
			if _, err := space.ReadVirt(b, mem.Virt(deepText+0x10)); err != nil || string(b) != fmt.Sprintf("here is L%d", i+2) {
				t.Errorf("%s: %s: %q, %v", c.name, m.Name, b, err)
			}
			if d, err := Describe(m, m.CPUs[0]); err != nil || d.Exit != "EPT violation" {
				t.Errorf("%s: control block of %s: %+v, %v", c.name, m.Name, d, err)
			}
		}
	}
}
