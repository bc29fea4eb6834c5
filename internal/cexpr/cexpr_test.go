package cexpr_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"nestdbg/internal/cexpr"
	"nestdbg/internal/cexpr/cexprtest"
	"nestdbg/internal/mem"
)

// shown is a value in one line: its type, and its bits or its address.
func shown(v cexpr.Value) string {
	if v.Type == nil {
		return fmt.Sprintf("? @%#x", v.Addr)
	}
	name := cexpr.TypeName(v.Type)
	bits, err := v.Bits()
	var e *cexpr.Error
	switch {
	case errors.As(err, &e):
		return fmt.Sprintf("%s @%#x", name, v.Addr)
	case err != nil:
		return fmt.Sprintf("%s: %v", name, err)
	case strings.Contains(name, "*"):
		return fmt.Sprintf("%s %#x", name, bits)
	}
	return fmt.Sprintf("%s %d", name, int64(bits))
}

func TestEvaluate(t *testing.T) {
	env := cexprtest.New().Env()
	for _, tt := range []struct{ text, want string }{
		// Numbers as C has them.
		{"1", "int 1"}, {"-1", "int -1"}, {"0x10", "int 16"}, {"010", "int 8"}, {"0b101", "int 5"}, {"1u", "unsigned int 1"},
		{"1ul", "unsigned long 1"}, {"1LL", "long 1"}, {"2147483648", "long 2147483648"}, {"0x80000000", "unsigned int 2147483648"},
		{"0xffffffffffffffff", "unsigned long -1"}, {"18446744073709551615", "unsigned long -1"},
		{"'a'", "char 97"}, {`'\n'`, "char 10"}, {`'\''`, "char 39"}, {`'\x41'`, "char 65"}, {`'\101'`, "char 65"}, {`'\377'`, "char -1"},
		{"1 + 2 * 3", "int 7"}, {"(1 + 2) * 3", "int 9"}, {"7 / 2", "int 3"}, {"-7 / 2", "int -3"}, {"-7 % 2", "int -1"},
		{"1 << 31", "int -2147483648"}, {"1u << 31", "unsigned int 2147483648"}, {"-8 >> 1", "int -4"}, {"1ul << 63", "unsigned long -9223372036854775808"},
		{"-1 < 1u", "int 0"}, {"-1 < 1", "int 1"}, {"-1l < 1u", "int 1"}, {"~0", "int -1"}, {"~0u", "unsigned int 4294967295"},
		{"!0", "int 1"}, {"!5", "int 0"}, {"1 ? 2 : 3", "int 2"}, {"0 ? 2 : 3", "int 3"}, {"1 || 1/0", "int 1"}, {"0 && 1/0", "int 0"},
		{"5 & 3 | 8 ^ 1", "int 9"}, {"3 == 3", "int 1"}, {"3 != 3", "int 0"}, {"2 >= 3", "int 0"}, {"0xffffffffu + 1", "unsigned int 0"},
		{"(char)300", "char 44"}, {"(unsigned char)-1", "unsigned char 255"}, {"(u8)-1", "u8 255"}, {"(_Bool)7", "_Bool 1"},
		{"(unsigned long)-1", "unsigned long -1"}, {"(long unsigned)1", "unsigned long 1"}, {"(short int)0x18000", "short -32768"},
		{"(u8)-1 + 1", "int 256"}, {"(u32)-1 + 1", "unsigned int 0"}, {"(1) - 1", "int 0"}, {"(u32) - 1", "u32 4294967295"},

		// Enumerators.
		{"GONE", "enum mode 7"}, {"GONE + 1", "unsigned int 8"}, {"MINUS < 0", "int 1"}, {"(enum mode)1", "enum mode 1"}, {"(enum mode)1 == BUSY", "int 1"},

		// Objects, members, pointers.
		{"init_task.pid", "int 0"}, {"init_task.tasks.next", "struct list * 0x1118"}, {"&init_task", "struct task * 0x1000"},
		{"(&init_task)->pid", "int 0"}, {"(&init_task).pid", "int 0"}, {"*&init_task", "struct task @0x1000"}, {"init_task", "struct task @0x1000"},
		{"((struct task *)0x1100)->pid", "int 42"}, {"((task_t *)0x1100)->pid", "int 42"}, {"((struct task *)0x1100)->parent->parent->mode", "enum mode 1"},
		{"init_task.low", "u32 1432778632"}, {"init_task.high", "u32 287454020"}, {"init_task.whole == 0x1122334455667788", "int 1"},
		{"init_task.a", "unsigned int 5"}, {"init_task.b", "unsigned int 341"}, {"init_task.c", "int -2"}, {"init_task.ready", "_Bool 1"},
		{"init_task.comm", "char [16] @0x1008"}, {"init_task.comm[1]", "char 119"}, {"*init_task.comm", "char 115"}, {"init_task.comm + 1", "char * 0x1009"},
		{"*init_task.name", "const char 97"}, {"init_task.name[2]", "const char 34"}, {"init_task.numbers[2]", "int 20"}, {"init_task.numbers[1 + 1]", "int 20"},
		{"init_task.lists[1].next", "struct list * 0x0"}, {"&init_task.lists[2]", "struct list * 0x1090"}, {"&init_task.tail[3]", "unsigned int * 0x10ac"},
		{"numbers[3]", "int -3"}, {"numbers", "int [4] @0x1300"}, {"numbers == 0x1300", "int 1"}, {"*(numbers + 1)", "int -1"}, {"*(1 + numbers)", "int -1"},
		{"&numbers", "int (*)[4] 0x1300"}, {"numbers[0]@2", "int [2] @0x1300"}, {"init_task@2", "struct task [2] @0x1000"},
		{"&numbers[3] - numbers", "long 3"}, {"&init_task + 1", "struct task * 0x10a0"}, {"(void *)&init_task + 1", "void * 0x1001"},
		{"(char *)&init_task + 1", "char * 0x1001"}, {"&init_task != 0", "int 1"}, {"(unsigned long)&init_task", "unsigned long 4096"},
		{"work", "int (struct task *, unsigned long) @0x4000"}, {"&work", "int (*)(struct task *, unsigned long) 0x4000"},
		{"init_task.work == work", "int 1"}, {"*init_task.work", "int (struct task *, unsigned long) @0x4000"},
		{"init_task.hidden", "struct hidden * 0x7777"}, {"(unsigned long)init_task.hidden", "unsigned long 30583"},

		// Types of people's own.
		{"(struct task)untyped", "struct task @0x1000"}, {"((struct task)untyped).pid", "int 0"}, {"&untyped", "void * 0x1000"},
		{"*(struct task *)&untyped", "struct task @0x1000"}, {"(int)untyped", "int 0"}, {"((int[4])numbers)[1]", "int -1"},
		{"((char (*)[16])init_task.comm)", "char (*)[16] 0x1008"}, {"(*(char (*)[16])0x1008)[0]", "char 115"},
		{"(int (*)(struct task *, unsigned long))0x10", "int (*)(struct task *, unsigned long) 0x10"}, {"(void **)0x10", "void ** 0x10"},
		{"(struct list *const)0x10", "struct list * 0x10"}, {"(const volatile u8 *)0x10", "u8 * 0x10"},
		{"(typeof(init_task) *)0x1100", "struct task * 0x1100"}, {"((typeof(&init_task))0x1100)->pid", "int 42"}, {"'work.cold'", "? @0x4100"},

		// Sizes and places.
		{"sizeof(struct task)", "unsigned long 160"}, {"sizeof(struct task *)", "unsigned long 8"}, {"sizeof init_task", "unsigned long 160"},
		{"sizeof(init_task.comm)", "unsigned long 16"}, {"sizeof(int[3])", "unsigned long 12"}, {"sizeof(u8)", "unsigned long 1"}, {"sizeof(long) + 1", "unsigned long 9"},
		{"sizeof(int *[4])", "unsigned long 32"}, {"sizeof(int (*)[4])", "unsigned long 8"}, {"sizeof *init_task.parent", "unsigned long 160"},
		{"offsetof(struct task, tasks)", "unsigned long 24"}, {"offsetof(struct task, high)", "unsigned long 44"},
		{"offsetof(struct task, lists[2].prev)", "unsigned long 152"}, {"offsetof(task_t, tail[1])", "unsigned long 164"},
		{"container_of(init_task.tasks.next, struct task, tasks)", "struct task * 0x1100"},
		{"container_of(init_task.tasks.next, struct task, tasks)->pid", "int 42"},
		{"((struct task *)((char *)init_task.tasks.next - offsetof(struct task, tasks)))->pid", "int 42"},

		// CPUs, helpers, registers.
		{"per_cpu(queue, 0).nr", "unsigned int 10"}, {"per_cpu(queue, 1).nr", "unsigned int 11"}, {"per_cpu(queue.nr, 1)", "unsigned int 11"},
		{"per_cpu(queue, 1).curr->pid", "int 42"}, {"&per_cpu(queue, 0)", "struct queue * 0x2800"}, {"$lx_per_cpu(queue, 1).nr", "unsigned int 11"},
		{"per_cpu_ptr(&queue, 1)->nr", "unsigned int 11"}, {"per_cpu_ptr((struct queue *)0x800, 0)->nr", "unsigned int 10"}, {"sizeof(queue)", "unsigned long 16"},
		{"(u32)per_cpu(secret, 0)", "u32 0"}, {"current()->pid", "int 42"}, {"current(1)->comm[0] == 'o'", "int 1"}, {"$pc", "unsigned long 16388"}, {"$pc & ~0xf", "unsigned long 16384"},
	} {
		got, err := env.Evaluate(tt.text)
		if err != nil {
			t.Errorf("%s: %v", tt.text, err)
		} else if shown(got.Value) != tt.want {
			t.Errorf("%s: %s, want %s", tt.text, shown(got.Value), tt.want)
		}
	}
}

// Wrong words are one clear line each, with the place they are at.
func TestEvaluateRefuses(t *testing.T) {
	env := cexprtest.New().Env()
	for _, tt := range []struct {
		text string
		pos  int
		want string
	}{
		{"", 0, "ends too early"}, {"1 +", 3, "ends too early"}, {"(1", 2, ") expected"}, {"1 2", 2, "does not continue"}, {"a.", 2, "name of a member"},
		{"1 = 2", 2, "only reads"}, {"x += 1", 2, "only reads"}, {"init_task.pid++", 13, "only reads"}, {"--x", 0, "only reads"}, {"#", 0, "does not belong"}, {"€", 0, `"€" does not belong`},
		{"1.5", 0, "no floating-point"}, {"09", 0, "no number"}, {"0x1ffffffffffffffff", 0, "64 bits"}, {"1lul", 0, "suffix"}, {"1_000", 0, "no number"},
		{`"text"`, 0, "for helpers"}, {`"text`, 0, "without its end"}, {"'", 0, "between two quotes"}, {"''", 0, "between two quotes"}, {`'\q'`, 0, "no escape"},
		{"'no symbol'", 0, "neither"}, {"a[1", 3, "] expected"}, {"1 ? 2", 5, ": expected"}, {"sizeof(int", 10, ") expected"}, {"struct task", 0, "begins a type"},
		{"(struct)1", 7, "a name expected after struct"}, {"(long char)1", 1, "no type of C's"}, {"offsetof(struct task)", 20, ", expected"},

		{"nobody", 0, `no symbol and no enumerator "nobody"`}, {"task + 1", 0, "the type is struct task"}, {"current->pid", 0, "current([CPU])"},
		{"(struct tusk *)0", 1, `there is no type "struct tusk"; near: struct task`}, {"(struct mode)0", 1, `there is "enum mode"`}, {"sizeof(struct u32)", 7, `there is "u32"`},
		{"init_task.pidd", 9, `struct task has no member "pidd"; near: pid`}, {"init_task.pid.x", 13, "no structure"}, {"init_task.hidden->x", 16, "only declared"},
		{"init_task->pid", 9, "-> needs a pointer"}, {"*init_task", 1, "not a number"}, {"*init_task.pid", 0, "needs a pointer"}, {"*(void *)0", 0, "points to no type"},
		{"init_task + 1", 0, "not a number"}, {"1 / 0", 2, "division by zero"}, {"1 % 0", 2, "division by zero"}, {"1 << 32", 2, "undefined"}, {"1 << -1", 2, "undefined"},
		{"&1", 0, "no address"}, {"&init_task.a", 0, "bit field"}, {"sizeof init_task.a", 0, "bit field"}, {"offsetof(struct task, b)", 22, "bit field"},
		{"sizeof(struct hidden)", 7, "no type"}, {"sizeof *init_task.hidden", 0, "only declared"}, {"init_task.hidden + 1", 17, "only declared"},
		{"&init_task * 2", 11, "* of pointers"}, {"-&init_task", 0, "- of a pointer"}, {"numbers - init_task.comm", 8, "difference"}, {"(struct list)init_task", 0, "cannot be made"},
		{"numbers[&numbers]", 8, "index"}, {"init_task.pid[0]", 13, "[] needs"}, {"1@2", 1, "in memory"}, {"numbers[0]@0", 11, "from 1 on"}, {"numbers[0]@0xffffffffffff", 11, "smaller"},
		{"untyped", -1, ""}, {"untyped.pid", 7, "write (TYPE)untyped"}, {"untyped + 1", 0, "not known"}, {"sizeof untyped", 0, "not known"}, {"untyped@2", 7, "not known"},
		{"queue.nr + 1", 5, "write per_cpu(queue.nr, CPU)"}, {"&queue", 0, "per-CPU"}, {"queue.curr->pid", 5, "per_cpu(queue.curr, CPU)"}, {"per_cpu(queue, 2)", 0, "no CPU 2"},
		{"per_cpu(queue)", 0, "takes a variable and a CPU"}, {"per_cpu(init_task, 0)", 8, "not per-CPU data"}, {"per_cpu(queue, -1)", 15, "no CPU"}, {"per_cpu_ptr(1, 0)", 12, "takes a pointer"},
		{"(task *)0", 1, `there is no type "task"; there is "struct task"`}, {"(task **)0", 1, `"struct task"`}, {"(nosuch)1", 1, `there is no type "nosuch"`}, {"(u33)init_task", 1, "near: u32"},
		{"PF_KTHREAD", 0, "if it is a macro"}, {"per_cpu(secret, 1) + 1", 0, "write (TYPE)per_cpu(secret, 1)"},
		{"nothing()", 0, "there is no helper"}, {"work(1)", 0, "runs nothing"}, {"$nope", 0, "no register"}, {"per_cpu(secret, 0).x", 18, "not known"},
		{strings.Repeat("(", 300) + "1" + strings.Repeat(")", 300), 100, "nested more than"}, {strings.Repeat("-", 1) + strings.Repeat("!", 300) + "1", 200, "nested more than"},
		{strings.Repeat("1+", 10000) + "1", -1, "at most"}, {"(int " + strings.Repeat("*", 100) + ")1", 70, "more than 64 deep"}, {strings.Repeat("a", 600), 0, "at most 512"},
	} {
		r, err := env.Evaluate(tt.text)
		if tt.text == "untyped" { // has an address, and may be cast
			if err != nil {
				t.Error(err)
			}
			continue
		}
		var e *cexpr.Error
		name := tt.text[:min(len(tt.text), 40)]
		switch {
		case !errors.As(err, &e):
			t.Errorf("%s: %s, %v", name, shown(r.Value), err)
		case !strings.Contains(e.Msg, tt.want) || strings.Contains(e.Msg, "\n"):
			t.Errorf("%s: %q, want %q", name, e.Msg, tt.want)
		case e.Pos != tt.pos && tt.pos != 100 && tt.pos != 200:
			t.Errorf("%s: at %d, want %d: %s", name, e.Pos, tt.pos, e.Msg)
		}
	}
}

// Memory that cannot be read is a fault, also where the way to the value goes
// through it; a value that is in such memory has no number.
func TestFaults(t *testing.T) {
	env := cexprtest.New().Env()
	for text, addr := range map[string]uint64{
		"((struct task *)0x5000)->parent->pid": 0x5048, "*(int *)0xffffffffffffffff + 1": 0xffffffffffffffff, "edge.comm[0] + 0": cexprtest.Hole,
		"((struct task *)0)->parent->name[0] != 0 || *(char *)0x6000": 0x6000, "edge.tasks.next->next": cexprtest.Hole + 16,
	} {
		r, err := env.Evaluate(text)
		var fault *mem.FaultError
		if !errors.As(err, &fault) || fault.Addr != addr {
			t.Errorf("%s: %s, %v, want a fault at %#x", text, shown(r.Value), err, addr)
		}
	}
	r, err := env.Evaluate("edge")
	if err != nil {
		t.Fatal(err)
	}
	m, err := r.Value.Member(2)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := m.Bytes(16); len(b) != 0 || !errors.Is(err, mem.ErrFault) {
		t.Errorf("%q, %v", b, err)
	}
}

func TestNotes(t *testing.T) {
	program := cexprtest.New()
	program.Notes = map[string]string{"struct task": "struct part::task is another"}
	env := program.Env()
	for text, want := range map[string]string{
		"numbers[1]": "", "init_task.pid + init_task.pid": "init_task is assumed to be struct task",
		"numbers[4]": "index 4 is outside of the array, which has 4 elements", "numbers[-1]": "index -1 is outside of the array, which has 4 elements",
		"(int *)3 - (int *)0": "", "(struct task *)0x1001 - (struct task *)0x1000": "struct part::task is another|the pointers are 1 bytes apart, which is no multiple of 160",
		"sizeof(struct task)": "struct part::task is another", "1 ?2:3": "",
	} {
		r, err := env.Evaluate(text)
		if text == "(int *)3 - (int *)0" {
			want = "the pointers are 3 bytes apart, which is no multiple of 4"
		}
		if got := strings.Join(r.Notes, "|"); got != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", text, got, err, want)
		}
	}
}

func TestDeclare(t *testing.T) {
	env := cexprtest.New().Env()
	if _, err := env.Resolve("struct part::task *"); err == nil || !strings.Contains(err.Error(), `no type "struct part::task"`) {
		t.Errorf("a name with its part of the program: %v", err)
	}
	for text, want := range map[string]string{
		"int": "int x", "int *": "int *x", "int *[4]": "int *x[4]", "int (*)[4]": "int (*x)[4]", "int (*)(int, char)": "int (*x)(int, char)",
		"void (*[2])(void)": "void (*x[2])(void)", "int (*(*)(int))[3]": "int (*(*x)(int))[3]", "struct task **": "struct task **x",
		"u8[]": "u8 x[]", "int[2][3]": "int x[2][3]", "unsigned long": "unsigned long x", "long long unsigned int": "unsigned long long x",
	} {
		typ, err := env.Resolve(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		} else if got := cexpr.Declare(typ, "x"); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
	pointer := cexpr.PointerTo(cexpr.NewType(cexpr.Def{Kind: cexpr.KindConst, Elem: cexpr.Char}))
	qualified := cexpr.NewType(cexpr.Def{Kind: cexpr.KindConst, Elem: pointer})
	if got := cexpr.Declare(qualified, "x"); got != "const char *const x" {
		t.Errorf("%q", got)
	}
}

// Types that contain themselves end in an error, not in a loop.
func TestHostileTypes(t *testing.T) {
	self := cexpr.NewType(cexpr.Def{})
	*self = *cexpr.NewType(cexpr.Def{Kind: cexpr.KindTypedef, Name: "self", Elem: self})
	if _, err := self.Under(); !errors.Is(err, cexpr.ErrCorrupt) {
		t.Errorf("a typedef of itself: %v", err)
	}
	anonymous := cexpr.NewType(cexpr.Def{})
	*anonymous = *cexprtest.Struct("", 8, cexpr.Member{Type: anonymous}, cexpr.Member{Type: anonymous})
	if _, err := anonymous.Find("x"); !errors.Is(err, cexpr.ErrCorrupt) {
		t.Errorf("anonymous members of themselves: %v", err)
	}
	array := cexpr.NewType(cexpr.Def{})
	*array = *cexpr.ArrayOf(array, 1<<20)
	if _, err := array.Size(); !errors.Is(err, cexpr.ErrCorrupt) {
		t.Errorf("an array of itself: %v", err)
	}
	function := cexpr.NewType(cexpr.Def{})
	many := make([]cexpr.Param, 1000)
	for i := range many {
		many[i].Type = function
	}
	*function = *cexpr.NewType(cexpr.Def{Kind: cexpr.KindFunc, Elem: cexpr.Int, Params: many})
	if name := cexpr.TypeName(function); len(name) > 10000 {
		t.Errorf("a function of itself has a name of %d bytes", len(name))
	}
}

func TestNear(t *testing.T) {
	names := func(yield func(string) bool) {
		for _, n := range strings.Fields("task_struct task_struct task_group Task_struct tusk_strict thread_struct mm_struct x") {
			if !yield(n) {
				return
			}
		}
	}
	for name, want := range map[string]string{
		"task_strct": "task_struct Task_struct tusk_strict", "mm_strukt": "mm_struct", "TASK_STRUCT": "Task_struct task_struct", "zzzzzz": "", "": "x",
	} {
		if got := strings.Join(cexpr.Near(name, names), " "); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

// FuzzEvaluate: no panic; a tree written out is the same tree; a value or an error.
func FuzzEvaluate(f *testing.F) {
	for _, s := range []string{"init_task.comm[1]", "((struct task *)0x1100)->pid + 1", "per_cpu(queue, 1).curr->pid", "sizeof(int (*)[4]) << 2 | ~1",
		"container_of(init_task.tasks.next, struct task, tasks)->lists[1 ? 2 : 3].next", `helper("te\x78t", 'a', 'work.cold').x.y`,
		"(int (*(*)(int, ...))[3])0", "numbers[0]@2", "offsetof(struct task, lists[2].prev) && !x || -1ul >= 'b'", "(typeof(*&init_task) *)0"} {
		f.Add(s)
	}
	env := cexprtest.New().Env()
	f.Fuzz(func(t *testing.T, text string) {
		// Without typedefs: what is written out has a parenthesis in front of names.
		if n, err := cexpr.Parse(text, nil); err == nil {
			once := cexpr.Text(n)
			again, err := cexpr.Parse(once, nil)
			var e *cexpr.Error
			if errors.As(err, &e) && (strings.Contains(e.Msg, "nested more") || strings.Contains(e.Msg, "at most")) {
				return // what is written out has more parentheses
			}
			if err != nil {
				t.Fatalf("%q is written as %q: %v", text, once, err)
			}
			if twice := cexpr.Text(again); twice != once {
				t.Fatalf("%q is written as %q, and that as %q", text, once, twice)
			}
		}
		cexpr.Parse(text, func(name string) bool { return len(name)%2 == 0 })
		r, err := env.Evaluate(text)
		if err == nil && r.Value.Type != nil {
			shown(r.Value)
		}
		env.Resolve(text)
	})
}
