package machine_test

import (
	"errors"
	"fmt"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
	"nestdbg/internal/paging"
	"nestdbg/internal/paging/pagingtest"
)

// newMachine has one CPU in 4-level paging whose tables map 0x1000 to 0x5000.
func newMachine() (*machine.Machine, *memtest.Memory, *pagingtest.Builder) {
	ram := memtest.NewMemory(mem.Range{First: 0, Last: 0xfffff})
	b := pagingtest.New("x86-4level", ram, pagingtest.NewFrames(mem.Range{First: 0x80000, Last: 0xfffff}, 0))
	b.Map(0x1000, 0x5000, 4096, b.Express(paging.Read))
	r := arch.NewRegisters(arch.X86)
	for name, v := range map[string]uint64{"cr0": 0x80000001, "cr3": uint64(b.Root()), "cr4": 0x20, "efer": 0xd00} {
		r.Set(name, v)
	}
	return &machine.Machine{Name: "l1", Level: 1, Arch: arch.X86, Phys: ram, CPUs: []*machine.CPU{{Regs: r}}}, ram, b
}

func TestSpace(t *testing.T) {
	m, ram, b := newMachine()
	ram.Put(0x5010, []byte("here"))
	space, err := m.Space(m.CPUs[0])
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4)
	if _, err := space.ReadVirt(p, 0x1010); err != nil || string(p) != "here" {
		t.Errorf("%q, %v", p, err)
	}
	if at, err := m.SpaceAt(uint64(b.Root()) | 0xfff); err != nil || at != space {
		t.Errorf("the same tables with a PCID are another space: %v", err)
	}
	m.Forget()
	if again, err := m.Space(m.CPUs[0]); err != nil || again == space {
		t.Errorf("after Forget: the same space, %v", err)
	}
}

// A register that is not known is said, never taken for zero.
func TestSpaceWithoutRegisters(t *testing.T) {
	for _, name := range []string{"cr0", "cr3", "cr4", "efer"} {
		m, _, b := newMachine()
		m.CPUs[0].Regs.Forget(name)
		if _, err := m.Space(m.CPUs[0]); !errors.Is(err, machine.ErrNoState) {
			t.Errorf("without %s: %v", name, err)
		}
		if _, err := m.SpaceAt(uint64(b.Root())); !errors.Is(err, machine.ErrNoState) {
			t.Errorf("without %s, at a root: %v", name, err)
		}
	}
	m, _, b := newMachine()
	m.CPUs[0].Regs.Set("cr0", 1) // no paging: the address is the physical address
	space, err := m.Space(m.CPUs[0])
	if err != nil {
		t.Fatal(err)
	}
	if pa, _, err := space.Translate(0x1234); pa != 0x1234 || err != nil {
		t.Errorf("%#x, %v", pa, err)
	}
	if _, err := m.SpaceAt(uint64(b.Root())); !errors.Is(err, machine.ErrNoState) {
		t.Errorf("tables of a machine without paging: %v", err)
	}
	other := *arch.X86
	other.Name = "other"
	m.Arch = &other
	if _, err := m.Space(m.CPUs[0]); err == nil {
		t.Error("an architecture that is not known")
	}
}

func TestNestedMemoryRanges(t *testing.T) {
	ram := memtest.NewMemory(mem.Range{First: 0, Last: 0xfffff})
	b := pagingtest.New("npt4", ram, pagingtest.NewFrames(mem.Range{First: 0x80000, Last: 0xfffff}, 0))
	for _, page := range []uint64{0x0, 0x1000, 0x5000, 0x100000000} {
		b.Map(page, 0x4000+mem.Phys(page&0xffff), 4096, b.Express(paging.Read))
	}
	b.Map(0x200000, 0, 0x200000, b.Express(paging.Read))
	n := machine.NewNestedMemory(paging.NewSpace("npt", paging.NPTFourLevel, ram, b.Root()))
	want := "[0x0-0x1fff 0x5000-0x5fff 0x200000-0x3fffff 0x100000000-0x100000fff]"
	if got := fmt.Sprint(n.PhysRanges()); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestTower(t *testing.T) {
	l1 := &machine.Machine{Name: "l1", CPUs: []*machine.CPU{{Index: 0, On: 0, State: machine.Hosting}, {Index: 1, On: 1}}}
	vm := &machine.Machine{Name: "vm0", Parent: l1, CPUs: []*machine.CPU{
		{Index: 0, On: 0, State: machine.Halted}, {Index: 3, On: -1, State: machine.Parked}}}
	tower := machine.Tower{Machines: []*machine.Machine{l1, vm}}
	if m, c := tower.At(0); m != vm || c != vm.CPUs[0] {
		t.Errorf("CPU 0 executes %v", m)
	}
	if m, c := tower.At(1); m != l1 || c.Index != 1 {
		t.Errorf("CPU 1 executes %v", m)
	}
	for _, none := range []int{-1, 2} {
		if m, c := tower.At(none); m != nil || c != nil {
			t.Errorf("CPU %d executes %v", none, m)
		}
	}
	if got := tower.Children(l1); len(got) != 1 || got[0] != vm || len(tower.Children(vm)) != 0 {
		t.Errorf("children %v", got)
	}
	if c, ok := vm.CPU(3); !ok || c != vm.CPUs[1] {
		t.Errorf("CPU 3 is %v", c)
	}
	if _, ok := vm.CPU(1); ok {
		t.Error("a CPU by its position")
	}
}
