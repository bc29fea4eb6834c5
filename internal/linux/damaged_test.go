package linux

import (
	"errors"
	"strings"
	"testing"

	"nestdbg/internal/orc"
)

// TestDamagedUnwindTable overwrites one entry of the kernel's table:
// a stack that does not lead there is as before, one that does ends there, and
// what is wrong is named.
func TestDamagedUnwindTable(t *testing.T) {
	for _, tt := range []struct {
		name   string
		entry  uint64 // which is overwritten
		frames int
		err    error
	}{
		{"one that is not needed", 5, 6, nil},
		{"one that is needed", 1, 2, orc.ErrUndefined},
	} {
		s, stack := newStackFake(t)
		regs := fakeStack(stack)
		s.poke16(s.symbols["__start_orc_unwind"]+6*tt.entry+4, 0xffff)
		u := s.find().Unwinder()
		got, err := u.CPU(regs)
		if len(got) != tt.frames || got[len(got)-1].Guess || !errors.Is(err, tt.err) {
			t.Errorf("%s: %+v, %v", tt.name, got, err)
		}
		if len(u.Problems) != 1 || u.Problems[0].String() != "unwind table: 1 of 9 entries are damaged: orc table corrupt" {
			t.Errorf("%s: problems %v", tt.name, u.Problems)
		}
	}
}

// TestDamageIsNamed damages one thing at a time and asks for what is not there: the
// answer is not that it is not, but what could not be read. What is there is found.
func TestDamageIsNamed(t *testing.T) {
	const wild = 0xffff900000000000
	find := func(expr string) func(*Kernel) error {
		return func(k *Kernel) error { _, err := k.Expressions(ExprContext{}).Evaluate(expr); return err }
	}
	lookup := func(k *Kernel) error {
		_, problems := k.LookupAll("nothing")
		return errors.New(Unread(problems))
	}
	backtrace := func(k *Kernel) error {
		u := k.Unwinder()
		u.CPU(cpuAt(fakeDirect+0x800000, fakeDirect, 0))
		if modules, _, _ := k.Modules(); len(modules) > 0 {
			u.CPU(cpuAt(uint64(modules[0].Base)+4, fakeDirect, 0))
		}
		return errors.New(Unread(u.Problems))
	}
	symbols := func(s *fakeSystem) {
		table := s.kallsyms()
		at := s.physOf(table.Offsets + 4*300)
		copy(s.ram[at:at+4], s.ram[at+4*300:])
	}
	types := func(s *fakeSystem) { s.poke16(fakeText+fakeBTFAt+12, s.peek16(fakeText+fakeBTFAt+12)-4) }
	modules := func(s *fakeSystem) { s.poke(s.modules[0].at("list"), wild) }
	for _, tt := range []struct {
		name  string
		spoil func(*fakeSystem)
		ask   map[string]func(*Kernel) error
		want  string
		fine  string // an expression
	}{
		{"symbols", symbols, map[string]func(*Kernel) error{"print": find("nothing"), "sym": lookup, "bt": backtrace},
			"addresses are damaged", "init_task.pid"},
		{"types", types, map[string]func(*Kernel) error{"type": find("(struct nothing *)0"), "typedef": find("(nothing)0")},
			"types of the kernel and its modules to their end", "init_task.pid"},
		{"modules", modules, map[string]func(*Kernel) error{"print": find("nothing"), "sym": lookup, "bt": backtrace,
			"type": find("(struct nothing *)0"), "module": find(`module("nothing")`)},
			"is not mapped", `module("kvm")->state`},
		{"a module", func(s *fakeSystem) { s.modules[0].set("mem[0].size", regionMax+1) },
			map[string]func(*Kernel) error{"print": find("nothing"), "sym": lookup, "bt": backtrace, "module": find(`module("kvm")`)},
			"region text of \"kvm\"", `module("virtio?net")->state`},
		{"symbols of a module", func(s *fakeSystem) { s.modules[0].set("kallsyms", wild) },
			map[string]func(*Kernel) error{"print": find("nothing"), "sym": lookup, "bt": backtrace},
			"symbols of kvm", "init_task.pid"},
		{"types of modules", func(s *fakeSystem) { s.poke(s.symbols["btf_modules"], wild) },
			map[string]func(*Kernel) error{"type": find("(struct nothing *)0")}, "is not mapped", "sizeof(struct kvm)"},
		{"a task", func(s *fakeSystem) { s.tasks[1].set("signal", wild) },
			map[string]func(*Kernel) error{"task": find("task(101)")}, "is not mapped", "task(100)->pid"},
	} {
		s := newFakeSystem(t, true)
		src := s.finish()
		tt.spoil(s)
		k, err := Find(src)
		if err != nil {
			t.Fatal(err)
		}
		for name, ask := range tt.ask {
			if err := ask(k); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s, %s: %v, want %q", tt.name, name, err, tt.want)
			}
		}
		if err := find(tt.fine)(k); err != nil {
			t.Errorf("%s: %s: %v", tt.name, tt.fine, err)
		}
	}
}
