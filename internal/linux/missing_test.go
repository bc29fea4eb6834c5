package linux

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nestdbg/internal/mem"
	"nestdbg/internal/printk"
)

// TestMissing asks kernels everything that were built without something: what does
// not need it is answered, and the rest says what is missing and which option of the
// build would give it.
func TestMissing(t *testing.T) {
	questions := []struct {
		name string
		ask  func(k *Kernel) error
	}{
		{"types", func(k *Kernel) error { _, err := k.Types(); return err }},
		{"symbols", func(k *Kernel) error { _, err := k.Symbols(); return err }},
		{"log", func(k *Kernel) error {
			l, err := k.Log()
			if err == nil {
				_, err = l.Read()
			}
			return err
		}},
		{"modules", func(k *Kernel) error { _, _, err := k.Modules(); return err }},
		{"tasks", func(k *Kernel) error { _, _, err := k.Tasks(); return err }},
		{"guests", func(k *Kernel) error { _, _, err := k.KVMs(); return err }},
		{"per-CPU", func(k *Kernel) error { _, err := k.PerCPU(0, "current_task"); return err }},
		{"info", func(k *Kernel) error {
			if k.VMCoreInfo != nil {
				return nil
			}
			return errors.New(strings.Join(k.Problems, "; "))
		}},
	}
	const types, symbols, variables, info = "CONFIG_DEBUG_INFO_BTF gives", "CONFIG_KALLSYMS gives", "CONFIG_KALLSYMS_ALL gives", "CONFIG_VMCORE_INFO ("
	for _, tt := range []struct {
		without string
		options []string // one of them is named
		lost    string   // questions that cannot be answered
		both    string   // questions that one of two missing things would answer
	}{
		{"", nil, "", ""},
		{"types", []string{types}, "types modules tasks guests", ""},
		{"symbols", []string{symbols}, "symbols modules tasks guests per-CPU", ""},
		{"variables", []string{variables}, "modules tasks guests per-CPU", ""},
		{"info", []string{info}, "info", ""},
		{"types info", []string{types, info}, "types modules tasks guests info", "log"},
		{"symbols info", []string{symbols, info}, "symbols modules tasks guests per-CPU info", "log"},
		{"variables info", []string{variables, info}, "modules tasks guests per-CPU info", "log"},
		{"types symbols", []string{types, symbols}, "types symbols modules tasks guests per-CPU", ""},
		{"types symbols info", []string{types, symbols, info}, "types symbols log modules tasks guests per-CPU info", ""},
	} {
		t.Run("without "+tt.without, func(t *testing.T) {
			k := newMissingFake(t, tt.without).find()
			if k.Release != "6.1.0-fake" || k.TextVA != fakeText || k.BuildID == "" {
				t.Errorf("found %s at %#x, build id %s", k.Release, k.TextVA, k.BuildID)
			}
			lost := strings.Fields(tt.lost)
			for _, q := range questions {
				err := q.ask(k)
				both := slices.Contains(strings.Fields(tt.both), q.name)
				want := both || slices.Contains(lost, q.name)
				named := slices.DeleteFunc(slices.Clone(tt.options), func(o string) bool { return !strings.Contains(fmt.Sprint(err), o) })
				switch {
				case !want && err != nil:
					t.Errorf("%s: %v", q.name, err)
				case want && err == nil:
					t.Errorf("%s: an answer, without what it takes", q.name)
				case want && (len(named) == 0 || both && len(named) != len(tt.options)):
					t.Errorf("%s: %q does not name %v", q.name, err, tt.options)
				case want && q.name != "info" && !errors.Is(err, ErrNotFound):
					t.Errorf("%s: %v is no ErrNotFound", q.name, err)
				}
			}
			t.Logf("%d questions without an answer", len(lost))
		})
	}
}

// newMissingFake is a system with a log that VMCOREINFO describes, as every kernel's
// does.
func newMissingFake(t *testing.T, without string) *fakeSystem {
	s := &fakeSystem{fake: newFake(t, fakeNew+fakeLogTypes[strings.Index(fakeLogTypes, "\n")+1:]), isNew: true}
	s.addModules()
	s.addTasks()
	s.addKVM()
	s.addCPUs()
	s.addPages()
	addRing(s.fake, "one", "two")
	s.info["SYMBOL(prb)"] = hexText(s.symbols["prb"])
	printk.LayoutFrom(func(key string) (uint64, bool) { // all that it asks for
		what, arg, _ := strings.Cut(strings.TrimSuffix(key, ")"), "(")
		v := uint64(0)
		if name, member, ok := strings.Cut(arg, "."); ok && what == "OFFSET" {
			v = uint64(s.types.offset(name, member))
		} else {
			v = uint64(s.types.size(arg))
		}
		s.info[key] = fmt.Sprint(v)
		return v, true
	})
	s.without = without
	return s
}

// TestMissingUnwindTable follows frame pointers in a kernel without unwind tables, and
// calls what it finds guesses.
func TestMissingUnwindTable(t *testing.T) {
	s, stack := newStackFake(t)
	for _, name := range []string{"__start_orc_unwind_ip", "__stop_orc_unwind_ip", "__start_orc_unwind", "__stop_orc_unwind"} {
		delete(s.symbols, name)
	}
	stack.put64(0x40, stack.va+0x80).put64(0x48, fnFrame+0x10)
	stack.put64(0x80, 0).put64(0x88, fnBody+8)
	u := s.find().Unwinder()
	got, err := u.CPU(cpuAt(fnLeaf+4, stack.va, stack.va+0x40))
	want := []Frame{
		{PC: fnLeaf + 4, SP: mem.Virt(stack.va), Exact: true},
		{PC: fnFrame + 0x10, SP: mem.Virt(stack.va + 0x50), Guess: true},
		{PC: fnBody + 8, SP: mem.Virt(stack.va + 0x90), Guess: true},
	}
	if diff := cmp.Diff(want, got); diff != "" || err == nil {
		t.Errorf("%s, %v", diff, err)
	}
	if len(u.Problems) != 1 || !strings.Contains(u.Problems[0].What+u.Problems[0].Err.Error(), optionUnwind) {
		t.Errorf("problems %v", u.Problems)
	}
}

// holedRAM lacks one page, as the memory of a guest can.
type holedRAM struct {
	fakeRAM
	page mem.Phys
}

func (m holedRAM) ReadPhys(p []byte, a mem.Phys) (int, error) {
	switch {
	case a >= m.page+pageSize || a+mem.Phys(len(p)) <= m.page:
		return m.fakeRAM.ReadPhys(p, a)
	case a >= m.page:
		return 0, &mem.FaultError{Space: "holed", Addr: uint64(a)}
	}
	n, _ := m.fakeRAM.ReadPhys(p[:m.page-a], a)
	return n, &mem.FaultError{Space: "holed", Addr: uint64(m.page)}
}

func (m holedRAM) SlicePhys(a mem.Phys, limit int) []byte {
	switch {
	case a >= m.page+pageSize:
		return m.fakeRAM.SlicePhys(a, limit)
	case a >= m.page:
		return nil
	}
	return m.fakeRAM.SlicePhys(a, int(min(uint64(limit), uint64(m.page-a))))
}

// TestTypesWithHole does not take a page that cannot be read for zeros, neither where
// the types are found by their symbols nor where they are searched.
func TestTypesWithHole(t *testing.T) {
	for _, without := range []string{"", "variables"} {
		var types strings.Builder // more than a page of them
		for i := range 200 {
			fmt.Fprintf(&types, "struct a_structure_with_a_long_name_%d { int x; }\n", i)
		}
		s := newFake(t, types.String())
		s.without = without
		src := s.finish()
		src.Phys = holedRAM{s.ram, fakeImagePA + fakeBTFAt + pageSize}
		src.Space = fakeSpaces(src.Phys)
		k, err := Find(src)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Types(); !errors.Is(err, mem.ErrFault) || errors.Is(err, ErrCorrupt) {
			t.Errorf("without %q: %v", without, err)
		}
	}
}
