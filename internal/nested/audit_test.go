package nested_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
	"nestdbg/internal/nested"
	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/paging"
	"nestdbg/internal/paging/pagingtest"
	"nestdbg/internal/svm/svmtest"
)

// built is a machine whose second stage a test builds.
type built struct {
	*machine.Machine
	npt *pagingtest.Builder
}

// inside makes a machine in another, with tables in its memory.
func inside(name string, parent *machine.Machine, tables pagingtest.Memory, at mem.Range) built {
	b := pagingtest.New("npt4", tables, pagingtest.NewFrames(at, 0))
	m := &machine.Machine{Name: name, Level: parent.Level + 1, Parent: parent, Arch: arch.X86}
	m.Second = &machine.SecondStage{Kind: "npt4", Space: paging.NewSpace("second stage of "+name, paging.NPTFourLevel, parent.Phys, b.Root())}
	m.Phys = machine.NewNestedMemory(m.Second.Space)
	return built{m, b}
}

// writer is memory through a second stage that a test may write.
type writer struct {
	machine.PhysMemory
	m   *machine.Machine
	ram *memtest.Memory
}

func (w writer) WritePhys(p []byte, a mem.Phys) (int, error) {
	at, _, err := w.m.Second.Space.Translate(uint64(a))
	if err != nil {
		return 0, err
	}
	w.ram.Put(at, p)
	return len(p), nil
}

const (
	r  = paging.Read
	rw = paging.Read | paging.Write
	rx = paging.Read | paging.Exec
)

func says(a *nested.Audit) string {
	var b strings.Builder
	for _, s := range a.Shared {
		fmt.Fprintf(&b, "%s %s in %s: %#x", s.A.Name, s.B.Name, s.Ancestor.Name, s.Bytes)
		for _, o := range s.Overlaps {
			if s.A != s.B {
				fmt.Fprintf(&b, " [%v %#x %v, %#x %v]", o.Range, o.A.Addr, o.A.Perm, o.B.Addr, o.B.Perm)
			}
		}
		b.WriteString("\n")
	}
	for _, e := range a.Exposed {
		fmt.Fprintf(&b, "%s: %s of %s: %v at %#x %v\n", e.Machine.Name, e.What, e.Of.Name, e.Range, e.Addr, e.Perm)
	}
	for _, l := range a.Loose {
		fmt.Fprintf(&b, "%s: %#x loose %v\n", l.Machine.Name, l.Bytes, l.Ranges)
	}
	return b.String()
}

// TestAudit has two machines and one in the first of them: pages shared on purpose, tables
// mapped by mistake, and at every stage other addresses.
func TestAudit(t *testing.T) {
	ram := memtest.NewMemory(mem.Range{First: 0, Last: 0xff_ffff})
	l1 := &machine.Machine{Name: "l1", Level: 1, Arch: arch.X86, Phys: ram}
	a := inside("a", l1, ram, mem.Range{First: 0xf0_0000, Last: 0xf0_ffff})
	b := inside("b", l1, ram, mem.Range{First: 0xf1_0000, Last: 0xf1_ffff})
	for i := range mem.Phys(16) { // a: 64 KiB, backwards
		a.npt.Map(uint64(i)<<12, 0x20_0000+(15-i)<<12, 4096, rw)
	}
	b.npt.Map(0x40_0000, 0x40_0000, 2<<20, rw|rx)
	b.npt.Map(0x5000, 0x20_3000, 4096, r)  // page 12 of a
	b.npt.Map(0x6000, 0x20_4000, 4096, rx) // page 11 of a: neighbours below, not here and there
	b.npt.Map(0x7000, a.npt.Table(0, 1), 4096, rw)
	c := inside("a.c", a.Machine, writer{a.Phys, a.Machine, ram}, mem.Range{First: 0x0000, Last: 0x3fff})
	c.npt.Map(0x9000, 0xb000, 4096, rw) // 0x204000 of l1, which b has as well
	c.npt.Map(0xa000, 0xf000, 4096, rw|rx)
	c.npt.Map(0xc000, c.npt.Root(), 4096, r)
	t1 := &machine.Tower{Machines: []*machine.Machine{l1, a.Machine, b.Machine, c.Machine}}
	got := says(nested.NewAudit(t1, map[*machine.Machine][]nested.Critical{
		l1: {{Range: mem.Range{First: 0x41_0800, Last: 0x41_17ff}, What: "image"}},
	}))
	want := `a a in l1: 0x10000
a b in l1: 0x2000 [0x203000-0x203fff 0xc000 rw--, 0x5000 r---] [0x204000-0x204fff 0xb000 rw--, 0x6000 r-x-]
a a.c in a: 0x3000
b b in l1: 0x203000
b a.c in l1: 0x1000 [0x204000-0x204fff 0x6000 r-x-, 0x9000 rw--]
a.c a.c in a: 0x3000
a.c: root of the second stage of a.c of a: 0x0-0xfff at 0xc000 r---
b: image of l1: 0x410800-0x4117ff at 0x410800 rwx-
b: second stage of a of l1: 0xf03000-0xf03fff at 0x7000 rw--
b: 0x200000 loose [0x400000-0x5fffff]
a.c: 0x1000 loose [0xa000-0xafff]
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// The pages of VMCBs, host save areas and page tables, each mapped into a guest in turn.
func TestAuditCritical(t *testing.T) {
	for _, c := range []struct {
		what string
		page func(w *nestedtest.World, v *nestedtest.VCPU) mem.Phys
	}{
		{"", func(w *nestedtest.World, _ *nestedtest.VCPU) mem.Phys { return w.Take() }},
		{"VMCB of vm0 CPU 0", func(_ *nestedtest.World, v *nestedtest.VCPU) mem.Phys { return v.Control }},
		{"host save area of l1", func(w *nestedtest.World, _ *nestedtest.VCPU) mem.Phys { return w.HostSave(0) }},
		{"root of the page tables of l1", func(w *nestedtest.World, _ *nestedtest.VCPU) mem.Phys { return w.Tables.Root() }},
		{"page tables of l1", func(w *nestedtest.World, _ *nestedtest.VCPU) mem.Phys { return w.Tables.Table(text, 1) }},
		{"root of the second stage of vm0", func(_ *nestedtest.World, v *nestedtest.VCPU) mem.Phys { return v.Guest.NPT.Root() }},
		{"second stage of vm0", func(_ *nestedtest.World, v *nestedtest.VCPU) mem.Phys { return v.Guest.NPT.Table(0, 1) }},
		{"MSR permission map of vm0 CPU 0", func(*nestedtest.World, *nestedtest.VCPU) mem.Phys { return 0x19d5b000 & 0x3fffff }},
	} {
		w := nestedtest.New()
		v := w.Guest().CPU(text, stack)
		v.Park(text, stack, map[string]uint64{"MSRPM": 0x15a000, "IOPM": 0x165c000})
		w.Save(0, v, text+0x103, stack)
		page := c.page(w, v)
		v.Guest.NPT.Map(0x10_0000, page, 4096, rw)
		for state, device := range map[string]*arch.Registers{"running": v.Running(0, text, stack), "parked": w.Host(0, text+0x200, stack)} {
			tower := new(nested.Finder).Build(w.Machine(device), scan)
			audit := nested.NewAudit(tower, nil)
			var got []string
			for _, e := range audit.Exposed {
				got = append(got, e.What)
				if e.First != uint64(page) || e.Addr != 0x10_0000 || e.Perm != rw {
					t.Errorf("%s, %s: %+v", c.what, state, e)
				}
			}
			want := []string{c.what}
			if c.what == "" {
				want = nil
			} else if c.what == "host save area of l1" && state == "parked" {
				want[0] += " CPU 0"
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q; problems %q", state, got, want, audit.Problems)
			}
		}
	}
}

// The permission maps are the hypervisor's where they are in use, and so is what a virtual
// interrupt controller is made of.
func TestAuditParts(t *testing.T) {
	const avic = 1<<31 | 0x03000200
	for _, c := range []struct {
		values svmtest.Values
		want   []string
	}{
		{svmtest.Values{"IOPM": 0x15a000, "MSRPM": 0x1000000}, []string{"I/O permission map of vm0 CPU 0"}},
		{svmtest.Values{"IOPM": 0x158000, "MSRPM": 0x159000}, []string{"I/O permission map of vm0 CPU 0", "MSR permission map of vm0 CPU 0"}},
		{svmtest.Values{"IOPM": 0x15a000, "MSRPM": 0x15a000, "intercepts 3": 0xa54c8027}, nil},
		{svmtest.Values{"AVIC backing page": 0x15a000}, nil},
		{svmtest.Values{"AVIC backing page": 0x15a000, "V_INTR": avic}, []string{"AVIC backing page of vm0 CPU 0"}},
		{svmtest.Values{"AVIC logical table": 0x15a000, "V_INTR": avic}, []string{"AVIC logical table of vm0 CPU 0"}},
		{svmtest.Values{"AVIC physical table": 0x15a0ff, "V_INTR": avic}, []string{"AVIC physical table of vm0 CPU 0"}},
	} {
		w := nestedtest.New()
		v := w.Guest().CPU(text, stack)
		v.Park(text, stack, c.values)
		v.Guest.NPT.Map(0x10_0000, 0x15a000, 4096, rw)
		var got []string
		for _, e := range nested.NewAudit(new(nested.Finder).Build(w.Machine(w.Host(0, text+0x200, stack)), scan), nil).Exposed {
			got = append(got, e.What)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%#x: %q, want %q", c.values, got, c.want)
		}
	}
}
