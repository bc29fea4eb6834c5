package nested_test

import (
	"slices"
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/nested"
	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/svm/svmtest"
)

// dumped is what a dump has of a CPU: no hidden state, and of EFER what paging needs.
func dumped(r *arch.Registers) *arch.Registers {
	r = r.Clone()
	efer, _ := r.Get("efer")
	r.Set("efer_mode", efer)
	r.Forget("efer", "guest_mode", "halted", "vm_hsave", "vm_vmcb", "nested_cr3", "nested_pg_mode")
	return r
}

func buildDumped(w *nestedtest.World, cpus ...*arch.Registers) *machine.Tower {
	var f nested.Finder
	return f.Build(w.Machine(cpus...), nested.Options{Scan: true})
}

// The registers of a dump are of the layer that they fit: of a guest by its page
// tables behind the second stage, with the hypervisor's own state from its save area.
func TestDumpedGuest(t *testing.T) {
	w := nestedtest.New()
	g := w.Guest()
	v := g.CPU(nestedtest.Text+0x10, 0x1000)
	const entry, sp = nestedtest.Text + 0x333, 0x8000
	w.Save(0, v, entry, sp)
	tower := buildDumped(w, dumped(v.Running(0, nestedtest.Text+0x100, 0x2000)), dumped(w.Host(1, nestedtest.Text+0x200, 0x3000)))
	check(t, tower,
		"l1.0 hosting on 0 at +0x333",
		"l1.1 running on 1 at +0x200",
		"vm0.0 running on 0 at +0x100",
	)
	if len(tower.Problems) != 0 {
		t.Errorf("problems %q", tower.Problems)
	}
	if s := tower.Machines[1].CPUs[0].Source; !strings.Contains(s, "by their looks") {
		t.Errorf("the guest's registers are from %q", s)
	}
}

// Where it cannot be told, it is said.
func TestDumpedDoubt(t *testing.T) {
	for _, test := range []struct {
		name  string
		build func(w *nestedtest.World) []*arch.Registers
		want  string
	}{
		{"nobody's page tables", func(w *nestedtest.World) []*arch.Registers {
			r := dumped(w.Host(0, nestedtest.Text, 0x1000))
			r.Set("cr3", 0x7000)
			return []*arch.Registers{r}
		}, "whose they are is not known"},
		{"two guests with the same page tables", func(w *nestedtest.World) []*arch.Registers {
			w.Guest().CPU(nestedtest.Text, 0x1000)
			b := w.Guest().CPU(nestedtest.Text, 0x1000)
			w.Save(0, b, nestedtest.Text+0x333, 0x8000)
			return []*arch.Registers{dumped(b.Running(0, nestedtest.Text+0x100, 0x2000))}
		}, "its registers fit 2 virtual CPUs"},
		{"tables that fit the machine and a guest", func(w *nestedtest.World) []*arch.Registers {
			v := w.Guest().CPU(nestedtest.Text, 0x1000)
			r := dumped(w.Host(0, nestedtest.Text+0x100, 0x1000))
			// The guest has tables at the address of L1's own.
			cr3, _ := r.Get("cr3")
			from, _ := dumped(v.Running(0, 0, 0)).Get("cr3")
			page := make([]byte, 4096)
			if _, err := v.Guest.Memory.ReadPhys(page, 0x10000); err != nil || from != 0x10000 {
				panic("the guest's tables are elsewhere")
			}
			v.Guest.Write(mem.Phys(cr3), page)
			return []*arch.Registers{r}
		}, "fit this machine and 1 guests"},
		{"no save area", func(w *nestedtest.World) []*arch.Registers {
			v := w.Guest().CPU(nestedtest.Text, 0x1000)
			return []*arch.Registers{dumped(v.Running(0, nestedtest.Text+0x100, 0x2000))}
		}, "no host save area of an entry with the VMCB"},
		{"a save area of another entry", func(w *nestedtest.World) []*arch.Registers {
			v := w.Guest().CPU(nestedtest.Text, 0x1000)
			w.RAM.Put(w.HostSave(0), svmtest.HostSave(uint64(v.Control)+0x1000, svmtest.Values{"EFER": 0x1d01}))
			return []*arch.Registers{dumped(v.Running(0, nestedtest.Text+0x100, 0x2000))}
		}, "no host save area of an entry with the VMCB"},
	} {
		w := nestedtest.New()
		tower := buildDumped(w, test.build(w)...)
		if !slices.ContainsFunc(tower.Problems, func(p string) bool { return strings.Contains(p, test.want) }) {
			t.Errorf("%s: problems %q, want %q\n%s", test.name, tower.Problems, test.want, outline(tower))
		}
	}
}

// Of memory alone, without a hypervisor that is understood, guests are found in the
// mode in which they make sense. Its CPUs are not known.
func TestMemoryAlone(t *testing.T) {
	w := nestedtest.New()
	v := w.Guest().CPU(nestedtest.Text+0x10, 0x1000)
	v.Guest.Write(v.Guest.TextPhys(nestedtest.Text), []byte("text of the guest"))
	tower := buildDumped(w)
	check(t, tower, "vm0.0 parked on -1 at +0x10")
	if len(tower.Problems) != 1 || !strings.Contains(tower.Problems[0], "taken to be npt4") {
		t.Errorf("problems %q", tower.Problems)
	}
	space, err := tower.Machines[1].Space(tower.Machines[1].CPUs[0])
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 17)
	if _, err := space.ReadVirt(b, nestedtest.Text); err != nil || string(b) != "text of the guest" {
		t.Errorf("%q, %v", b, err)
	}
	// Of L1's own virtual memory nothing is made up.
	if s, err := tower.Machines[0].SpaceAt(uint64(w.Tables.Root())); err == nil {
		t.Errorf("L1 has an address space %v", s)
	}
}

// Where an entry left the state of its hypervisor in memory, that is what is known of
// the hypervisor's CPU, and its virtual memory can be read.
func TestMemoryAloneWithSave(t *testing.T) {
	w := nestedtest.New()
	v := w.Guest().CPU(nestedtest.Text+0x10, 0x1000)
	w.Save(0, v, nestedtest.Text+0x300, 0x9000)
	tower := buildDumped(w)
	l1 := tower.Machines[0]
	if len(l1.CPUs) != 1 || l1.CPUs[0].State != machine.Lost || !strings.Contains(l1.CPUs[0].Source, "of its last entry") {
		t.Fatalf("%s", outline(tower))
	}
	if pc, _ := l1.CPUs[0].Regs.PC(); pc != nestedtest.Text+0x300 || l1.CPUs[0].EntryPC != pc {
		t.Errorf("program counter %#x, entry %#x", pc, l1.CPUs[0].EntryPC)
	}
	if _, err := l1.Space(l1.CPUs[0]); err != nil {
		t.Error(err)
	}
	if c := tower.Machines[1].CPUs[0]; !c.Doubtful || !strings.Contains(c.Why, "perhaps entered again") {
		t.Errorf("the guest's CPU: %v, %q", c.Doubtful, c.Why)
	}
}

// A dump of a machine without guests has nothing to be unsure of.
func TestDumpedAlone(t *testing.T) {
	w := nestedtest.New()
	tower := buildDumped(w, dumped(w.Host(0, nestedtest.Text+0x100, 0x1000)))
	check(t, tower, "l1.0 running on 0 at +0x100")
	if len(tower.Problems) != 0 {
		t.Errorf("problems %q", tower.Problems)
	}
}

// Of an unknown hypervisor there is memory alone, and its only VMCB breaks a rule: what the
// person says gives the mode of its second stage all the same.
func TestHintInMemoryAlone(t *testing.T) {
	w := nestedtest.New()
	v := w.Guest().CPU(text, stack)
	v.Park(text+0x9000, stack, svmtest.Values{"EFER": 0xd01})
	if tower := new(nested.Finder).Build(w.Machine(), scan); len(tower.Machines) != 1 {
		t.Errorf("without a hint\n%s", outline(tower))
	}
	opt := scan
	opt.Hints = []nested.Hint{{Flag: "--vmcb", In: "l1", Control: "VMCB", At: v.Control}}
	tower := new(nested.Finder).Build(w.Machine(), opt)
	if len(tower.Machines) != 2 || tower.Machines[1].Second.Space.Root() != v.Guest.NPT.Root() || tower.Machines[1].Second.Kind != "npt4" {
		t.Errorf("%s%q", outline(tower), tower.Problems)
	}
}
