package linux

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	ciliumbtf "github.com/cilium/ebpf/btf"

	"nestdbg/internal/arch"
	"nestdbg/internal/btf"
	"nestdbg/internal/cexpr"
	"nestdbg/internal/mem"
)

// exprText is a value in one line: its type and bits, or its address.
func exprText(v cexpr.Value) string {
	if v.Type == nil {
		return fmt.Sprintf("? @%#x", v.Addr)
	}
	bits, err := v.Bits()
	if err != nil {
		return fmt.Sprintf("%s @%#x", cexpr.TypeName(v.Type), v.Addr)
	}
	return fmt.Sprintf("%s %#x", cexpr.TypeName(v.Type), bits)
}

func TestExpressions(t *testing.T) { eachGeneration(t, checkExpressions) }

func checkExpressions(t *testing.T, s *fakeSystem) {
	k := s.find()
	regs := arch.NewRegisters(arch.X86)
	regs.Set("gs_base", s.percpu[1].va)
	regs.Set("rip", 0x1234)
	env := k.Expressions(ExprContext{CPU: func() (ExprCPU, error) { return ExprCPU{Regs: regs}, nil }})
	init, leader, vcpu := s.tasks[0], s.tasks[1], s.tasks[2]
	for expr, want := range map[string]string{
		"init_task.comm[0]":         "char 0x73",
		"&init_task":                fmt.Sprintf("struct task_struct * %#x", init.va),
		"init_task.tasks.next":      fmt.Sprintf("void * %#x", leader.at("tasks")),
		"task(101)":                 fmt.Sprintf("struct task_struct * %#x", vcpu.va),
		"task(101)->pid":            "int 0x65",
		"$lx_task_by_pid(100).tgid": "int 0x64",
		"current(0)":                fmt.Sprintf("struct task_struct * %#x", init.va),
		"current()":                 fmt.Sprintf("struct task_struct * %#x", vcpu.va),
		"$lx_current().pid":         "int 0x65",
		`module("kvm")->state`:      "int 0x0",
		`&module("kvm")->list`:      fmt.Sprintf("struct list_head * %#x", s.modules[0].at("list")),
		"vm_list.next":              fmt.Sprintf("void * %#x", s.vm.at("vm_list")),
		"container_of(vm_list.next, struct kvm, vm_list)->userspace_pid": "int 0x65",
		"modules":                               fmt.Sprintf("struct list_head @%#x", s.symbols["modules"]),
		"$rip":                                  "unsigned long 0x1234",
		"__per_cpu_offset[1]":                   fmt.Sprintf("unsigned long %#x", s.percpu[1].va),
		"linux_banner[0]":                       "char 0x4c",
		"sizeof(struct list_head)":              "unsigned long 0x10",
		"btf_modules":                           fmt.Sprintf("? @%#x", s.symbols["btf_modules"]),
		"*(ptr *)&btf_modules == 0":             "",
		"*(void **)&btf_modules != 0":           "int 0x1",
		"(unsigned long)nr_cpu_ids":             "unsigned long 0x2",
		"((struct task_struct *)task(100))->mm": fmt.Sprintf("void * %#x", s.peek(leader.at("mm"))),
	} {
		r, err := env.Evaluate(expr)
		switch {
		case want == "" && err == nil:
			t.Errorf("%s: %s", expr, exprText(r.Value))
		case want == "":
		case err != nil:
			t.Errorf("%s: %v", expr, err)
		case exprText(r.Value) != want:
			t.Errorf("%s: %s, want %s", expr, exprText(r.Value), want)
		}
	}
	r, err := env.Evaluate("init_task.comm")
	if err != nil || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "init_task is assumed to be struct task_struct") {
		t.Errorf("%q, %v", r.Notes, err)
	}
	for expr, want := range map[string]string{
		"btf_modules + 1": "type of btf_modules is not known", "task(4711)": "no task 4711", "current(2)": "no CPU 2",
		`module("none")`: "no module", "module(1)": `module("kvm")`, `task("x")`: "has to be a number", "$rbx": "not known", "per_cpu(modules, 0)": "not per-CPU",
		"current(1, 2)": "one CPU at most", "task(-1)": "no task", "init_task.nothing": "no member", "nothing": "no symbol",
	} {
		_, err := env.Evaluate(expr)
		var e *cexpr.Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", expr, err, want)
		}
	}
	if _, err := env.Evaluate("((struct task_struct *)16)->pid + 1"); !errors.Is(err, mem.ErrFault) {
		t.Error(err)
	}
	r, err = k.Expressions(ExprContext{Task: mem.Virt(leader.va)}).Evaluate("current()->pid")
	if err != nil || exprText(r.Value) != "int 0x64" {
		t.Errorf("%s, %v", exprText(r.Value), err)
	}
	if _, err := k.Expressions(ExprContext{}).Evaluate("current()"); err == nil || !strings.Contains(err.Error(), "current(CPU)") {
		t.Error(err)
	}
}

// ones is memory in which every byte is 1, below an address.
type ones struct{ end mem.Virt }

func (o ones) ReadVirt(p []byte, a mem.Virt) (int, error) {
	n := 0
	for ; n < len(p) && a < o.end; n, a = n+1, a+1 {
		p[n] = 1
	}
	if n < len(p) {
		return n, &mem.FaultError{Space: "a process", Addr: uint64(a), Err: mem.ErrFault}
	}
	return n, nil
}

// A CPU is asked for once, and only by what the kernel alone cannot answer.
func TestExpressionsAskForACPU(t *testing.T) {
	s := newFakeSystem(t, true)
	k := s.find()
	regs := arch.NewRegisters(arch.X86)
	regs.Set("gs_base", s.percpu[1].va)
	regs.Set("rip", 0x1000)
	for expr, want := range map[string]int{
		"init_task.comm[0]": 0, "current(0)->pid": 0, "task(101)->pid": 0, "__per_cpu_offset[1]": 0,
		"current()->pid": 1, "$rip + $rip": 1, "*(int *)0x1000": 1, "*(int *)0x1000 + *(int *)$rip + current()->pid": 1,
	} {
		asked := 0
		env := k.Expressions(ExprContext{CPU: func() (ExprCPU, error) {
			asked++
			return ExprCPU{Regs: regs, Memory: ones{0x2000}}, nil
		}})
		r, err := env.Evaluate(expr)
		if err != nil {
			t.Errorf("%s: %v", expr, err)
			continue
		}
		if _, err := r.Value.Bits(); err != nil || asked != want {
			t.Errorf("%s: asked %d times, want %d; %v", expr, asked, want, err)
		}
	}
	gone := errors.New("the machine is gone")
	env := k.Expressions(ExprContext{CPU: func() (ExprCPU, error) { return ExprCPU{}, gone }})
	for _, expr := range []string{"$rip", "current()", "*(int *)0x1000 + 1"} {
		if _, err := env.Evaluate(expr); !errors.Is(err, gone) {
			t.Errorf("%s: %v", expr, err)
		}
	}
}

// TestTypedVariables: what expressions assume of the made-up kernel's variables is
// what a symbol file gets.
func TestTypedVariables(t *testing.T) {
	s := newFakeSystem(t, true)
	s.symbols["phys_base"] = s.symbols["modules"] + 8 // no room for modules before it
	s.symbols["high_memory"] = s.variable("next_to_jiffies", 16).va + 8
	k := s.find()
	types, err := k.Types()
	if err != nil {
		t.Fatal(err)
	}
	table, err := k.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	typer, err := k.NewVariableTyper()
	if err != nil {
		t.Fatal(err)
	}
	for sym := range table.All() {
		typer.Add(sym)
	}
	got := typer.Variables()
	name := func(v TypedVariable) string {
		typ, _ := types.spec.Type(v.Type)
		text := string(types.spec.Text(typ.Name))
		if v.Pointer {
			text += " *"
		}
		if v.Array {
			text += fmt.Sprintf(" [%d]", v.Count)
		}
		return text
	}
	said := map[string]string{}
	for _, v := range got {
		said[v.Name] = name(v)
		if want, ok := k.Lookup(v.Name); !ok || v.Addr != uint64(want) {
			t.Errorf("%s at %#x, not at %#x", v.Name, v.Addr, want)
		}
	}
	for variable, want := range map[string]string{
		"init_task": "task_struct", "modules": "", "high_memory": " *", "linux_banner": "char [",
		"__per_cpu_offset": "", "no_such": "", // the made-up kernel calls its unsigned long "long"
	} {
		if !strings.HasPrefix(said[variable], want) || (want == "") != (said[variable] == "") {
			t.Errorf("%s is %q, want %q; all: %v", variable, said[variable], want, said)
		}
	}
}

// A type that has no room before the next symbol is not assumed.
func TestExpressionsAssumeWhatFits(t *testing.T) {
	s := newFakeSystem(t, true)
	s.symbols["in_the_middle"] = s.symbols["init_task"] + 8
	r, err := s.find().Expressions(ExprContext{}).Evaluate("init_task")
	if err != nil || r.Value.Type != nil || len(r.Notes) != 0 {
		t.Errorf("%s, %q, %v", exprText(r.Value), r.Notes, err)
	}
}

// Several static variables of one name: it is not chosen for the person.
func TestExpressionsAmbiguous(t *testing.T) {
	k := newFakeSystem(t, true).find()
	table, err := k.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for sym := range table.All() {
		seen[sym.Name]++
	}
	twice := ""
	for name, n := range seen {
		list, _ := k.LookupAll(name)
		if n > 1 && !slices.ContainsFunc(list, func(sym Symbol) bool { return sym.Type < 'a' }) {
			twice = name
		}
	}
	if twice == "" {
		t.Fatal("the made-up kernel has no two symbols of one name")
	}
	_, err = k.Expressions(ExprContext{}).Evaluate("&'" + twice + "'")
	if err == nil || !strings.Contains(err.Error(), "symbols are called "+twice+": 0x") {
		t.Errorf("%s: %v", twice, err)
	}
}

// A kernel without BTF still has symbols, and says what would give it types.
func TestExpressionsWithoutBTF(t *testing.T) {
	s := newFakeSystem(t, true)
	k := s.find()
	env := k.Expressions(ExprContext{})
	env.Types = noTypes{whyNoTypes(fmt.Errorf("no BTF in the image: %w", ErrNotFound))}
	env.Symbols.(*exprSymbols).types = nil
	r, err := env.Evaluate("&init_task")
	if want := fmt.Sprintf("void * %#x", s.tasks[0].va); err != nil || exprText(r.Value) != want {
		t.Errorf("%s, %v, want %s", exprText(r.Value), err, want)
	}
	if r, err = env.Evaluate("(int)nr_cpu_ids + 1"); err != nil || exprText(r.Value) != "int 0x3" {
		t.Errorf("%s, %v", exprText(r.Value), err)
	}
	for _, expr := range []string{"(struct task_struct *)0", "sizeof(struct page)", "task(100)"} {
		if _, err := env.Evaluate(expr); err == nil || !strings.Contains(err.Error(), "CONFIG_DEBUG_INFO_BTF") {
			t.Errorf("%s: %v", expr, err)
		}
	}
	whole := k.Expressions(ExprContext{})
	if _, _, err := whole.FindType("vcpu_vmx"); err == nil || !strings.Contains(err.Error(), "CONFIG_DEBUG_INFO_BTF_MODULES") {
		t.Errorf("a type that a module may have, whose types are not known: %v", err)
	}
	if _, _, err := env.FindType("page"); err == nil || !strings.Contains(err.Error(), "CONFIG_DEBUG_INFO_BTF") {
		t.Error(err)
	}
}

// TestTypesOfModules: a type of the kernel's hides that of a module, which a note says if
// it is another, and the module's name in front finds it.
func TestTypesOfModules(t *testing.T) {
	s := newFakeSystem(t, true)
	base := s.types.marshal(t)
	nodes := []uint64{s.symbols["btf_modules"]}
	for _, m := range []struct {
		name, structure, member string
		size, bit               uint32
	}{{"kvm", "upid", "odd", 64, 32}, {"virtio?net", "atomic_t", "counter", 4, 0}} {
		raw := splitBTF(base, m.structure, m.member, typeID(t, base, "int"), m.size, m.bit)
		data := s.alloc(uint64(len(raw)), 8)
		data.put(0, raw)
		b := s.make("btf").set("data", data.va).set("data_size", uint64(len(raw))).text("name", strings.Replace(m.name, "?", "\x07", 1))
		nodes = append(nodes, s.make("btf_module").set("btf", b.va).at("list"))
	}
	s.link(nodes...)
	env := s.find().Expressions(ExprContext{})
	for expr, want := range map[string]string{
		"sizeof(struct upid)":                      "unsigned long 0x10 struct upid is that of the kernel; another is struct kvm::upid",
		"sizeof(struct kvm::upid)":                 "unsigned long 0x40",
		"&((struct kvm::upid *)0)->odd":            "int * 0x4",
		"&((struct upid *)0)->ns":                  "void ** 0x8 struct upid is that of the kernel; another is struct kvm::upid",
		"sizeof(struct atomic_t)":                  "unsigned long 0x4", // that of the module looks the same
		"sizeof(struct pid)":                       "unsigned long 0x18",
		"(unsigned long)&((struct pid *)0)->count": "unsigned long 0x0",
	} {
		r, err := env.Evaluate(expr)
		if got := strings.TrimSpace(exprText(r.Value) + " " + strings.Join(r.Notes, "; ")); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", expr, got, err, want)
		}
	}
	for _, expr := range []string{"sizeof(struct kvm::pid)", "sizeof(struct nomodule::upid)"} {
		if _, err := env.Evaluate(expr); !errors.Is(err, cexpr.ErrNotFound) {
			t.Errorf("%s: %v", expr, err)
		}
	}
	if list, note, err := env.FindType("kvm::upid"); err != nil || len(list) != 1 || note != "" {
		t.Errorf("%d types, %q, %v", len(list), note, err)
	}
}

// exprSample has the kinds of BTF that the fake kernel's types lack.
func exprSample(t testing.TB) []byte {
	t.Helper()
	char := &ciliumbtf.Int{Name: "char", Size: 1, Encoding: ciliumbtf.Signed}
	boolean := &ciliumbtf.Int{Name: "_Bool", Size: 1, Encoding: ciliumbtf.Bool}
	long := &ciliumbtf.Int{Name: "long unsigned int", Size: 8}
	integer := &ciliumbtf.Int{Name: "int", Size: 4, Encoding: ciliumbtf.Signed}
	full := &ciliumbtf.Struct{Name: "full", Size: 4, Members: []ciliumbtf.Member{{Name: "x", Type: integer}}}
	mode := &ciliumbtf.Enum{Name: "mode", Size: 4, Values: []ciliumbtf.EnumValue{{Name: "ONE", Value: 1}, {Name: "HIGH", Value: 0x80000000}}}
	below := &ciliumbtf.Enum{Name: "below", Size: 4, Signed: true, Values: []ciliumbtf.EnumValue{{Name: "MINUS", Value: ^uint64(0)}, {Name: "PLUS", Value: 1}}}
	wide := &ciliumbtf.Enum{Name: "wide", Size: 8, Values: []ciliumbtf.EnumValue{{Name: "BIT40", Value: 1 << 40}}}
	constChar := &ciliumbtf.Pointer{Target: &ciliumbtf.Const{Type: char}}
	proto := &ciliumbtf.FuncProto{Return: integer, Params: []ciliumbtf.FuncParam{{Name: "f", Type: &ciliumbtf.Pointer{Target: full}}, {Type: &ciliumbtf.Void{}}}}
	holder := &ciliumbtf.Struct{Name: "holder", Size: 40, Members: []ciliumbtf.Member{
		{Name: "opaque", Type: &ciliumbtf.Pointer{Target: &ciliumbtf.Fwd{Name: "full"}}},
		{Name: "text", Type: &ciliumbtf.Restrict{Type: constChar}, Offset: 64}, {Name: "on", Type: boolean, Offset: 128},
		{Name: "low", Type: integer, Offset: 160, BitfieldSize: 5}, {Name: "rest", Type: long, Offset: 165, BitfieldSize: 30},
		{Name: "none", Type: &ciliumbtf.Pointer{Target: &ciliumbtf.Fwd{Name: "nowhere", Kind: ciliumbtf.FwdUnion}}, Offset: 256}}}
	b, err := ciliumbtf.NewBuilder([]ciliumbtf.Type{holder, full, mode, below, wide,
		&ciliumbtf.Func{Name: "run", Type: proto, Linkage: ciliumbtf.GlobalFunc},
		&ciliumbtf.Typedef{Name: "tagged", Type: &ciliumbtf.TypeTag{Value: "user", Type: &ciliumbtf.Volatile{Type: long}}},
		&ciliumbtf.Typedef{Name: "u64", Type: long}, &ciliumbtf.Float{Name: "double", Size: 8}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := b.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// exprEnv is what expressions see of some BTF alone.
func exprEnv(t testing.TB, raw []byte) *cexpr.Env {
	t.Helper()
	core, err := parseTypes("test", raw, nil)
	if core == nil {
		t.Fatal(err)
	}
	x := newExprTypes(nil, core)
	x.searched = true // there is no kernel that could have modules
	return &cexpr.Env{Types: x}
}

func TestExprTypes(t *testing.T) {
	env := exprEnv(t, exprSample(t))
	for expr, want := range map[string]string{
		"sizeof(struct holder)": "unsigned long 0x28", "offsetof(struct holder, text)": "unsigned long 0x8", "ONE": "enum mode 0x1", "HIGH": "enum mode 0x80000000",
		"MINUS": "enum below 0xffffffffffffffff", "MINUS < PLUS": "int 0x1", "BIT40": "enum wide 0x10000000000", "(u64)-1": "u64 0xffffffffffffffff",
		"((struct holder *)0)->low": "int @0x14", "&((struct holder *)16)->text": "const char ** 0x18", "(tagged)5": "tagged 0x5", "sizeof(double)": "unsigned long 0x8",
		"sizeof(*((struct holder *)0)->opaque)": "", "(unsigned long)&((struct holder *)16)->on": "unsigned long 0x20",
	} {
		r, err := env.Evaluate(expr)
		if want == "" {
			continue // needs memory
		}
		if err != nil || exprText(r.Value) != want {
			t.Errorf("%s: %s, %v, want %s", expr, exprText(r.Value), err, want)
		}
	}
	// What is declared here and defined there has the members from there.
	list, _, err := env.FindType("holder")
	if err != nil {
		t.Fatal(err)
	}
	opaque, err := list[0].Find("opaque")
	if err != nil {
		t.Fatal(err)
	}
	d, err := opaque.Type.Def()
	if err != nil {
		t.Fatal(err)
	}
	if m, err := d.Elem.Find("x"); err != nil || cexpr.TypeName(m.Type) != "int" || cexpr.TypeName(opaque.Type) != "struct full *" {
		t.Errorf("%v, %v, %s", m, err, cexpr.TypeName(opaque.Type))
	}
	none, err := list[0].Find("none")
	if err != nil {
		t.Fatal(err)
	}
	if d, err = none.Type.Def(); err != nil || cexpr.TypeName(none.Type) != "union nowhere *" {
		t.Errorf("%v, %s", err, cexpr.TypeName(none.Type))
	}
	if _, err := d.Elem.Find("x"); !errors.Is(err, cexpr.ErrNotFound) {
		t.Errorf("a member of what is only declared: %v", err)
	}
	for name, want := range map[string][2]uint64{"low": {160, 5}, "rest": {165, 30}} {
		if m, err := list[0].Find(name); err != nil || m.BitOffset != want[0] || m.BitSize != want[1] {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
	x := env.Types.(*exprTypes)
	if f := x.function(x.core.spec, "run"); f == nil || cexpr.Declare(f, "run") != "int run(struct full *, ...)" {
		t.Errorf("%v", f)
	}
	if _, _, err := env.FindType("hodler"); err == nil || !strings.Contains(err.Error(), "near: holder") {
		t.Error(err)
	}
}

// Memory that answered once answers the same again, and a fault keeps its address.
func TestPageMemory(t *testing.T) {
	s := newFakeSystem(t, true)
	k := s.find()
	m := &pageMemory{from: k.space, pages: map[uint64]memoryPage{}}
	at := mem.Virt(s.tasks[0].va)
	var before, after [8]byte
	if _, err := m.ReadVirt(before[:], at); err != nil {
		t.Fatal(err)
	}
	s.tasks[0].put64(0, 0x1122334455667788)
	if _, err := m.ReadVirt(after[:], at); err != nil || before != after {
		t.Errorf("%x, then %x, %v", before, after, err)
	}
	end := mem.Virt(fakeDirect + fakeRAMSize)
	b := make([]byte, 16)
	n, err := m.ReadVirt(b, end-8)
	var fault *mem.FaultError
	if n != 8 || !errors.As(err, &fault) || fault.Addr != uint64(end) {
		t.Errorf("%d, %v", n, err)
	}
	if _, err = m.ReadVirt(b, end+8); !errors.As(err, &fault) || fault.Addr != uint64(end)+8 {
		t.Errorf("%v", err)
	}
}

func FuzzExprTypes(f *testing.F) {
	f.Add(exprSample(f))
	f.Add(testTypes(f))
	f.Fuzz(func(t *testing.T, raw []byte) {
		core, err := parseTypes("fuzz", raw, nil)
		if err != nil || core == nil {
			return
		}
		env := exprEnv(t, raw)
		x := env.Types.(*exprTypes)
		x.variables(core.spec)
		for i := range min(core.spec.Len(), 200) {
			typ := x.typ(core.spec, core.spec.First()+btf.ID(i))
			cexpr.TypeName(typ)
			size, err := typ.Size()
			if err != nil && size != 0 {
				t.Fatalf("size %d and %v", size, err)
			}
			if m, err := typ.Find("x"); err != nil && m.Name != "" {
				t.Fatalf("member %v and %v", m, err)
			}
		}
		for _, expr := range []string{"sizeof(struct holder)", "MINUS", "offsetof(struct holder, rest)", "(tagged)1 + ONE", "(struct outer *)0 + 1"} {
			env.Evaluate(expr)
		}
	})
}
