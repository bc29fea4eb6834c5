package symfile

import (
	"bytes"
	"errors"
	"testing"

	cilium "github.com/cilium/ebpf/btf"

	"nestdbg/internal/arch"
	"nestdbg/internal/btf"
	"nestdbg/internal/mem"
)

const text = 0xffffffff81000000

// TestFunctions has one function of each fate: known, without a size, known twice
// under one name, two prototypes, no symbol, a symbol that is data, an alias.
func TestFunctions(t *testing.T) {
	integer := &cilium.Int{Name: "int", Size: 4, Encoding: cilium.Signed}
	one := &cilium.FuncProto{Return: integer, Params: []cilium.FuncParam{
		{Name: "fd", Type: integer}, {Type: integer}}}
	two := &cilium.FuncProto{Return: &cilium.Void{}, Params: []cilium.FuncParam{{Name: "fmt",
		Type: &cilium.Pointer{Target: integer}}, {Type: &cilium.Void{}}}}
	fn := func(name string, proto *cilium.FuncProto) cilium.Type {
		return &cilium.Func{Name: name, Type: proto, Linkage: cilium.StaticFunc}
	}
	raw, _ := marshal(t, fn("close", one), fn("printk", two), fn("twice", one), fn("either", one),
		fn("either", two), fn("inlined", one), fn("data", one), fn("alias", one), fn("alias", one))
	symbols := []Symbol{
		{Name: "printk", Addr: text + 0x40, Code: true},
		{Name: "close", Addr: text, Size: 0x3a, Code: true, Local: true},
		{Name: "alias", Addr: text, Size: 0x3a, Code: true},
		{Name: "twice", Addr: text + 0x100, Size: 8, Code: true},
		{Name: "twice", Addr: text + 0x200, Size: 8, Code: true},
		{Name: "either", Addr: text + 0x300, Size: 8, Code: true},
		{Name: "data", Addr: text + 0x300, Size: 8},
	}
	f := &File{Arch: arch.X86, Sections: testSections,
		Units: []Unit{{Name: "kernel", BTF: raw, Symbols: symbols}}}
	checkEntries(t, f,
		"unit kernel",
		"int close at 0xffffffff81000000+0x3a external false", "  int fd", "  int",
		"void printk at 0xffffffff81000040+0xc0 external true", "  *int fmt", "  ...",
		"int alias at 0xffffffff81000000+0x3a external true", "  int fd", "  int",
	)
	checkGDB(t, f,
		"ptype printk", "type = void (int *, ...)\n",
		"whatis close", "type = int (int, int)\n",
		"print printk", "$1 = {void (int *, ...)} 0xffffffff81000040 <printk>\n",
		"info symbol 0xffffffff81000201", "twice + 1 in section .text\n",
		"print twice", "$2 = {<text variable, no debug info>} 0xffffffff81000200 <twice>\n",
		"info address close", `Symbol "close" is a function at address 0xffffffff81000000.`+"\n",
		"info scope printk", "Scope for printk:\nSymbol fmt is multi-location:\n"+
			"  Range 0xffffffff81000040-0xffffffff81000041: a variable in $rdi\n, length 8.\n",
		"break printk", "Breakpoint 1 at 0xffffffff81000040\n",
	)
}

// TestBTFVariables: BTF has the types of variables by name and by section, the symbols
// their addresses. Per-CPU ones lie in [0x18100, 0x181ff].
func TestBTFVariables(t *testing.T) {
	integer := &cilium.Int{Name: "int", Size: 4, Encoding: cilium.Signed}
	rq := &cilium.Struct{Name: "rq", Size: 4, Members: []cilium.Member{{Name: "nr_running", Type: integer}}}
	section := func(name string, typ cilium.Type, variables ...string) *cilium.Datasec {
		d := &cilium.Datasec{Name: name}
		for _, v := range variables {
			d.Vars = append(d.Vars, cilium.VarSecinfo{Type: &cilium.Var{Name: v, Type: typ}, Size: 4})
		}
		return d
	}
	raw, ids := marshal(t, section(".data..percpu", rq, "runqueues", "gone", "known", "elsewhere", "twice", "twice", "both", "each"),
		section(".data", integer, "plain", "each2", "inside"), integer)
	f := &File{Arch: arch.X86, Sections: testSections, Units: []Unit{{Name: "kernel", BTF: raw, PerCPU: &mem.Range{First: 0x18100, Last: 0x181ff},
		Variables: []Variable{{Name: "known", Addr: 0x40, Type: btf.ID(ids[integer])}},
		Symbols: []Symbol{{Name: "runqueues", Addr: 0x18100, Local: true}, {Name: "known", Addr: 0x18140},
			{Name: "gone", Addr: text, Code: true},
			{Name: "elsewhere", Addr: text + 0x1100}, {Name: "inside", Addr: 0x18180}, // the section is another
			{Name: "twice", Addr: 0x18110},                                            // two variables
			{Name: "both", Addr: 0x18120}, {Name: "both", Addr: 0x18128, Local: true}, // two symbols
			{Name: "each", Addr: 0x18130}, {Name: "each", Addr: text + 0x1200, Local: true},
			{Name: "plain", Addr: text + 0x1300}}}}}
	checkEntries(t, f, "unit kernel", "struct rq {nr_running int@0}",
		"int known at 034000000000000000 external true",
		"struct rq runqueues at 030081010000000000 external false",
		"struct rq each at 033081010000000000 external true",
		"int plain at 0300130081ffffffff external true")
	// A per-CPU symbol is a number, and no name for an address.
	checkGDB(t, f, "print &runqueues.nr_running", "$1 = (int *) 0x18100\n",
		"print &twice", "$2 = (<variable (not text or data), no debug info> *) 0x18110\n",
		"info symbol 0x18110", "No symbol matches 0x18110.\n", "print (void *)0x18110", "$3 = (void *) 0x18110\n")
}

// TestVariables: types that the caller knows, those that BTF has not among them.
func TestVariables(t *testing.T) {
	integer := &cilium.Int{Name: "int", Size: 4, Encoding: cilium.Signed}
	char := &cilium.Int{Name: "char", Size: 1, Encoding: cilium.Signed}
	raw, ids := marshal(t, integer, char)
	at := func(name string, v Variable) Variable {
		v.Name, v.Addr, v.Type = name, text+0x1000, btf.ID(ids[integer])
		return v
	}
	none := at("none", Variable{Pointer: true})
	none.Type = 99
	void := at("nothing", Variable{Pointer: true})
	void.Type = 0
	f := &File{Arch: arch.X86, Sections: testSections, Units: []Unit{{Name: "kernel", BTF: raw, Variables: []Variable{
		at("value", Variable{}), at("pointer", Variable{Pointer: true}), at("array", Variable{Array: true, Count: 3}),
		at("open", Variable{Array: true}), void, none}}}}
	checkProblems(t, "variables", f, "variable at 0xffffffff81001000 of type 99: not described")
	checkGDB(t, f, "whatis value", "type = int\n", "whatis pointer", "type = int *\n", "whatis array", "type = int [3]\n",
		"whatis open", "type = int []\n", "whatis nothing", "type = void *\n", "whatis &array[1]", "type = int *\n")
}

// kernelAndModule is a kernel with three structures, and a module that uses one
// by value, one by pointer and one not at all.
func kernelAndModule() (kernel, module *rawBTF) {
	k := new(rawBTF)
	integer := k.add("int", btf.Int, 0, 4, 1<<24|32)
	list := k.add("list", btf.Struct, 1, 8, k.name("next"), integer+2, 0)
	k.add("", btf.Ptr, 0, list)
	task := k.add("task", btf.Struct, 1, 4, k.name("pid"), integer, 0)
	k.add("unused", btf.Struct, 1, 4, k.name("x"), integer, 0)
	inner := k.add("", btf.Struct, 1, 8, k.name("owner"), k.lastID+2, 0)
	k.add("", btf.Ptr, 0, task)
	u64 := k.add("outer", btf.Typedef, 0, inner)
	proto := k.add("", btf.FuncProto, 1, integer, k.name("t"), k.lastID-1)

	m := k.split()
	m.add("vcpu", btf.Struct, 3, 24, m.name("list"), list, 0, m.name("outer"), u64, 64,
		m.name("kvm"), m.lastID+2, 128)
	m.add("", btf.Ptr, 0, m.lastID+2)
	m.add("kvm", btf.Struct, 1, 4, k.strings.u32At(0), integer, 0) // a member without a name
	m.add("run", btf.Func, 0, proto)
	return k, m
}

var moduleSymbols = []Symbol{{Name: "run", Addr: 0xffffffffc0000000, Size: 9, Code: true}}

func TestModuleInOneFile(t *testing.T) {
	kernel, module := kernelAndModule()
	checkEntries(t, &File{Arch: arch.X86, Units: []Unit{{Name: "vmlinux", BTF: kernel.bytes()},
		{Name: "kvm", BTF: module.bytes(), Symbols: moduleSymbols}}},
		"unit vmlinux",
		"struct list {next *struct list@0}",
		"struct task {pid int@0}",
		"struct unused {x int@0}",
		"struct {owner *struct task@0}",
		"typedef outer struct {owner *struct task@0}",
		"unit kvm",
		"struct vcpu {list struct list@0; outer outer@8; kvm *struct kvm@16}",
		"struct kvm { int@0}",
		"int run at 0xffffffffc0000000+0x9 external true", "  *struct task t",
	)
}

// TestModuleByItself: what the module needs of the kernel by value is there, the
// rest is declared, or left out.
func TestModuleByItself(t *testing.T) {
	kernel, module := kernelAndModule()
	checkEntries(t, &File{Arch: arch.X86, Base: base(t, kernel.bytes()), Units: []Unit{{Name: "kvm", BTF: module.bytes(),
		Symbols: moduleSymbols}}},
		"unit kernel",
		"struct list {next *struct list@0}",
		"struct task /*incomplete*/",
		"struct {owner *struct task@0}",
		"typedef outer struct {owner *struct task@0}",
		"unit kvm",
		"struct vcpu {list struct list@0; outer outer@8; kvm *struct kvm@16}",
		"struct kvm { int@0}",
		"int run at 0xffffffffc0000000+0x9 external true", "  *struct task t",
	)
}

// TestModuleAsLibrary: gdb completes the module's declarations from the kernel's file.
func TestModuleAsLibrary(t *testing.T) {
	kernel, module := kernelAndModule()
	dir := t.TempDir()
	writeTo(t, &File{Arch: arch.X86, Sections: testSections,
		Units: []Unit{{Name: "vmlinux", BTF: kernel.bytes()}}}, dir+"/vmlinux")
	writeTo(t, &File{Arch: arch.X86, Base: base(t, kernel.bytes()), Sections: []Section{{Name: ".text",
		First: 0xffffffffc0000000, Size: 0x1000, Exec: true}},
		Units: []Unit{{Name: "kvm", BTF: module.bytes()}}}, dir+"/kvm")
	got := runGDB(t, "symbol-file "+dir+"/vmlinux", "add-symbol-file -o 0 "+dir+"/kvm",
		"whatis ((struct vcpu*)0)->outer.owner->pid")
	want := "add symbol table from file \"" + dir + "/kvm\" with all sections offset by 0x0\ntype = int\n"
	if got != want {
		t.Errorf("gdb says %q, want %q", got, want)
	}
}

// base reads BTF that must be sound.
func base(t *testing.T, btf []byte) *Base {
	t.Helper()
	b, problems, err := NewBase(btf)
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	return b
}

// TestBase: a base serves several files, and is refused if it is not whole.
func TestBase(t *testing.T) {
	kernel, module := kernelAndModule()
	shared := base(t, kernel.bytes())
	var first bytes.Buffer
	for range 2 {
		var b bytes.Buffer
		f := File{Arch: arch.X86, Base: shared, Units: []Unit{{Name: "m", BTF: module.bytes()}}}
		if problems, err := f.Write(&b); err != nil || len(problems) > 0 {
			t.Fatal(problems, err)
		}
		if first.Len() > 0 && !bytes.Equal(b.Bytes(), first.Bytes()) {
			t.Error("the second file differs from the first")
		}
		first = b
	}
	kernel.add("later", 25, 0, 0)
	if _, _, err := NewBase(kernel.bytes()); !errors.Is(err, btf.ErrUnsupported) {
		t.Errorf("a kind that does not exist: %v", err)
	}
	if _, _, err := NewBase([]byte("?")); !errors.Is(err, btf.ErrCorrupt) {
		t.Errorf("no BTF: %v", err)
	}
}

func TestUnitsLeftOut(t *testing.T) {
	kernel, module := kernelAndModule()
	for _, c := range []struct {
		name  string
		file  File
		wants []string
	}{
		{"no BTF", File{Units: []Unit{{Name: "a", Variables: []Variable{{Name: "x"}}}}},
			[]string{"variables of a without BTF: left out"}},
		{"no kernel", File{Units: []Unit{{Name: "a"}, {Name: "b", BTF: module.bytes()}}},
			[]string{"BTF of b continues one that is not there: left out"}},
		{"broken kernel", File{Units: []Unit{
			{Name: "a", BTF: kernel.bytes()[:30]}, {Name: "b", BTF: module.bytes()}}},
			[]string{"BTF of a: corrupt BTF: types at 0x18 of 0xa8 bytes pass the end at 0x1e",
				"BTF of b continues one that is not there: left out"}},
		{"broken module", File{Base: base(t, kernel.bytes()),
			Units: []Unit{{Name: "b", BTF: []byte("no BTF at all, but long enough")}}},
			[]string{"BTF of b: BTF not supported: magic 0x6f6e version 32"}},
		{"variable", File{Units: []Unit{{Name: "a", BTF: kernel.bytes(),
			Variables: []Variable{{Name: "x", Addr: 16, Type: 99}}}}},
			[]string{"variable at 0x10 of type 99: not described"}},
		{"function", File{Units: []Unit{{Name: "a", BTF: kernel.bytes()}, {Name: "kvm", BTF: module.bytes(),
			Symbols: []Symbol{{Name: "run", Code: true}}}}},
			[]string{`function "run" of 0x0 bytes, BTF kind 13: not described`}},
	} {
		c.file.Arch = arch.X86
		checkProblems(t, c.name, &c.file, c.wants...)
	}
}

// checkProblems compares what is left out of a file; the rest must be sound.
func checkProblems(t *testing.T, name string, f *File, wants ...string) {
	t.Helper()
	e, problems := write(t, f)
	if e.Section(".debug_info") != nil {
		mustEntries(t, e)
	}
	for i := range max(len(problems), len(wants)) {
		switch {
		case i >= len(problems):
			t.Errorf("%s: %q is missing", name, wants[i])
		case i >= len(wants):
			t.Errorf("%s: unexpected %q", name, problems[i])
		case problems[i].String() != wants[i]:
			t.Errorf("%s: %q, want %q", name, problems[i], wants[i])
		}
	}
}
