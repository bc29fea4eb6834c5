package linux

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"nestdbg/internal/mem"
)

// eachGeneration runs a test on a fake of each generation of layouts.
func eachGeneration(t *testing.T, test func(t *testing.T, s *fakeSystem)) {
	for name, isNew := range map[string]bool{"6.14": true, "5.10": false} {
		t.Run(name, func(t *testing.T) { test(t, newFakeSystem(t, isNew)) })
	}
}

func TestModules(t *testing.T) {
	eachGeneration(t, func(t *testing.T, s *fakeSystem) {
		k := s.find()
		got, problems, err := k.Modules()
		if err != nil || len(problems) != 0 {
			t.Fatalf("%v, %v", problems, err)
		}
		var want []Module
		for i, name := range []string{"kvm", "virtio?net"} {
			text := mem.Virt(s.textOf[i].va)
			m := Module{Name: name, State: ModuleState(i), Addr: mem.Virt(s.modules[i].va), Base: text, Size: 0x2000,
				Regions: []Region{{"core", text, 0x2000}}, BuildID: strings.Repeat("00", 19) + "ee"}
			if s.isNew {
				m.Regions = []Region{{"text", text, 0x1000}, {"data", text + 0x1000, 0x1000}}
				m.BuildID = "010203" + strings.Repeat("00", 17)
				m.Use = []ModuleUse{{Counted: true, Refs: 3, Users: []string{"virtio?net"}}, {Counted: true, Permanent: true}}[i]
				m.Taints = []string{"OE<40>", ""}[i]
			}
			m.Sections = []Section{{".text", text}, {".note.gnu.build-id", 0}}
			m.Sections[1].Addr = got[i].Sections[1].Addr
			want = append(want, m)
		}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Module{})); diff != "" {
			t.Error(diff)
		}
	})
}

func TestModuleSymbols(t *testing.T) {
	eachGeneration(t, func(t *testing.T, s *fakeSystem) {
		k := s.find()
		text := s.textOf[0].va
		tests := []struct {
			at   uint64
			want string
			size uint64
		}{
			{text + 0x110, "kvm_init+0x10 [kvm]", 0x40},
			{text + 0x17f, "kvm_init+0x7f [kvm]", 0x40},
			{text + 0x180, "kvm_exit+0x0 [kvm]", 0x1000 - 0x180},
			{text, "", 0}, // nothing of the module is before it
			{fakeText, "_stext+0x0", 16},
			{fakeText - 1, "", 0},
		}
		for _, tt := range tests {
			p, ok := k.Symbolize(mem.Virt(tt.at))
			if ok != (tt.want != "") || (ok && (p.String() != tt.want || p.Size != tt.size)) {
				t.Errorf("%#x: got %v size %#x, %v; want %q size %#x", tt.at, p, p.Size, ok, tt.want, tt.size)
			}
		}
		if a, ok := k.Lookup("vm_list"); !ok || a != mem.Virt(s.vmListAt) {
			t.Errorf("vm_list is %#x, %v", a, ok)
		}
		if a, ok := k.Lookup("no_such_symbol"); ok {
			t.Errorf("no_such_symbol is %#x", a)
		}
	})
}

func TestModuleListBroken(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(s *fakeSystem)
		count int // modules still listed
		err   error
	}{
		{"loop that misses the head", func(s *fakeSystem) {
			s.poke(s.modules[1].at("list"), s.modules[0].at("list"))
		}, 2, ErrCorrupt},
		{"wild pointer", func(s *fakeSystem) { s.poke(s.modules[0].at("list"), 0xdead) }, 2, mem.ErrFault},
		{"node in a hole", func(s *fakeSystem) {
			s.poke(s.modules[0].at("list"), fakeDirect+fakeRAMSize-8)
		}, 2, mem.ErrFault},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newFakeSystem(t, true)
			k := s.find()
			tt.spoil(s)
			got, _, err := k.Modules()
			if !errors.Is(err, tt.err) || len(got) != tt.count {
				t.Errorf("%d modules, %v; want %d, %v", len(got), err, tt.count, tt.err)
			}
		})
	}
}

func TestModuleProblems(t *testing.T) {
	for name, spoil := range map[string]func(s *fakeSystem){
		"giant section count": func(s *fakeSystem) {
			at := object{f: s.fake, kind: "module_sect_attrs"}
			at.va = s.peek(s.modules[0].at("sect_attrs"))
			at.pa = mem.Phys(s.physOf(at.va))
			at.set("nsections", 0xffffffff)
		},
		"giant region": func(s *fakeSystem) { s.modules[0].set("core_layout.size", 0xffffffff) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newFakeSystem(t, false)
			k := s.find()
			spoil(s)
			got, problems, err := k.Modules()
			if err != nil || len(problems) != 1 || !errors.Is(problems[0].Err, ErrCorrupt) || len(got) == 0 {
				t.Errorf("%d modules, problems %v, %v", len(got), problems, err)
			}
		})
	}
}

// TestModuleUsersBroken: the rest of a module is there when the list of its users is not.
func TestModuleUsersBroken(t *testing.T) {
	for name, spoil := range map[string]func(s *fakeSystem){
		"list loops": func(s *fakeSystem) { s.poke(s.modules[0].at("source_list"), s.modules[0].at("list")) },
		"a user that is not there": func(s *fakeSystem) {
			use := s.peek(s.modules[0].at("source_list")) - uint64(s.types.offset("module_use", "source_list"))
			s.poke(use+uint64(s.types.offset("module_use", "source")), 0x4141414141414141)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newFakeSystem(t, true)
			k := s.find()
			spoil(s)
			got, problems, err := k.Modules()
			if err != nil || len(got) != 2 || len(problems) != 1 || problems[0].What != "users of kvm" || got[0].Use.Refs != 3 {
				t.Errorf("%+v, problems %v, %v", got, problems, err)
			}
		})
	}
}

// peek reads a word at a kernel address.
func (f *fake) peek(va uint64) uint64 {
	v, err := mem.Uint64(f.ram, mem.Phys(f.physOf(va)))
	if err != nil {
		f.t.Fatal(err)
	}
	return v
}

func TestModuleTypes(t *testing.T) {
	s := newFakeSystem(t, true)
	base := s.types.marshal(t)
	raw := splitBTF(base, "only_in_module", "member", typeID(t, base, "list_head"), 32, 64)
	copyAt := s.alloc(uint64(len(raw)), 8)
	copyAt.put(0, raw)
	b := s.make("btf").set("data", copyAt.va).set("data_size", uint64(len(raw))).text("name", "kvm")
	m := s.make("btf_module").set("btf", b.va).set("module", s.modules[0].va)
	s.link(s.symbols["btf_modules"], m.at("list"))
	k := s.find()
	types, err := k.ModuleTypes("kvm")
	if err != nil {
		t.Fatal(err)
	}
	if off, size, err := types.Offset("only_in_module", "member.prev"); err != nil || off != 16 || size != 8 {
		t.Errorf("offset %d, size %d, %v", off, size, err)
	}
	if _, _, err := types.Offset("task_struct", "pid"); err != nil {
		t.Errorf("the kernel's types through a module: %v", err)
	}
	if again, err := k.ModuleTypes("kvm"); err != nil || again != types {
		t.Errorf("types are not kept: %v", err)
	}
	if _, err := k.ModuleTypes("ext4"); !errors.Is(err, ErrNotFound) {
		t.Errorf("module without types: %v", err)
	}
	b.set("data_size", btfMax+1)
	if _, err := k.ModuleTypes("kvm"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("giant types: %v", err)
	}
}
