package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"nestdbg/internal/cexpr"
	"nestdbg/internal/cexpr/cexprtest"
	"nestdbg/internal/mem"
)

// printer is one for the made-up program.
func printer(format byte, limits ValueLimits) *Printer {
	return &Printer{Machine: "vm0", Env: cexprtest.New().Env(), Format: format, Limits: limits, Symbol: func(a uint64) string {
		switch {
		case a == 0x4000:
			return "work"
		case a > 0x4000 && a < 0x4100:
			return fmt.Sprintf("work+%#x", a-0x4000)
		}
		return ""
	}}
}

func textOf(r Report) string {
	var b strings.Builder
	r.Text(&b)
	return b.String()
}

const wholeTask = `{
  pid = 42,
  mode = BUSY,
  comm = "other task",
  tasks = {
    next = 0x1018,
    prev = 0x1018,
  },
  {
    whole = 1234605616436508552,
    {
      low = 1432778632,
      high = 287454020,
    },
  },
  a = 5,
  b = 341,
  c = -2,
  ready = true,
  name = 0x1400 "a \"name\"",
  work = 0x4000 <work>,
  parent = 0x1000,
  numbers = {0, 10, 20, 30},
  flags = (F_A | F_B | unknown: 0x10),
  bytes = {0, 255, 0, 255},
  hidden = 0x7777,
  lists = {
    {
      next = 0x0,
      prev = 0x0,
    },
    {
      next = 0x0,
      prev = 0x0,
    },
    {
      next = 0x0,
      prev = 0x0,
    },
  },
  tail = {... (its length is not part of the type)},
}
`

func TestPrint(t *testing.T) {
	for _, tt := range []struct {
		format     byte
		expr, want string
	}{
		{0, "*(struct task *)0x1100", wholeTask},
		{0, "((struct task *)0x1100)->pid", "42\n"}, {0, "BUSY", "BUSY\n"}, {0, "(enum mode)5", "5\n"}, {0, "(enum flags)3", "(F_A | F_B)\n"},
		{0, "(enum flags)0", "F_NONE\n"}, {0, "(enum flags)0x34", "(F_WIDE | unknown: 0x4)\n"}, {0, "MINUS", "MINUS\n"},
		{0, "init_task.comm", "\"swapper\"\nnote: init_task is assumed to be struct task\n"},
		{0, "&numbers", "(int (*)[4]) 0x1300\n"}, {0, "numbers", "{0, -1, -2, -3}\n"}, {'x', "numbers", "{0x0, 0xffffffff, 0xfffffffe, 0xfffffffd}\n"},
		{0, "&work", "(int (*)(struct task *, unsigned long)) 0x4000 <work>\n"}, {0, "work", "{int (struct task *, unsigned long)} 0x4000 <work>\n"},
		{0, "(void *)0x4004", "(void *) 0x4004 <work+0x4>\n"}, {'a', "0x4004", "0x4004 <work+0x4>\n"}, {'x', "-1", "0xffffffff\n"}, {'x', "(char)-1", "0xff\n"},
		{'o', "8", "010\n"}, {'o', "0", "0\n"}, {'t', "5", "101\n"}, {'z', "5", "0x00000005\n"}, {'d', "0xffffffff", "-1\n"}, {'u', "-1", "4294967295\n"},
		{'c', "65", "65 'A'\n"}, {0, "'a'", "97 'a'\n"}, {0, `'\n'`, "10 '\\n'\n"}, {0, "(u8)65", "65\n"}, {0, "(unsigned char)200", "200 '\\310'\n"},
		{'x', "((struct task *)0x1100)->flags", "0x13\n"}, {'x', "((struct task *)0x1100)->b", "0x155\n"}, {'x', "((struct task *)0x1100)->c", "0xe\n"},
		{'s', "((struct task *)0x1100)->bytes", "\"\\000\\377\\000\\377\"\n"}, {0, "1 == 1", "1\n"}, {0, "(_Bool)1", "true\n"},
		{0, "-1ul", "18446744073709551615\n"}, {0, "((struct task *)0x1100)->hidden", "(struct hidden *) 0x7777\n"},
		{0, "(char *)0x1400", "0x1400 \"a \\\"name\\\"\"\n"}, {0, "(char *)0x5000", "(char *) 0x5000 <cannot read 0x5000>\n"}, {0, "(char *)0", "(char *) 0x0\n"},
		{0, "numbers[0]@20", "{0, -1, -2, -3, 0 <repeats 16 times>}\n"}, {0, "(char [24])untyped_bytes", ""},
		{0, "*(char (*)[16])0x1500", "\"short\\000er text\"\n"}, {0, "*(char (*)[64])0x1400", "\"a \\\"name\\\"\"\n"}, {0, "*(char (*)[40])0x1108", "\"other task\\000\\000\\000\\000\\000\\000\\030\\020\\000\\000\\000\\000\\000\\000\\030\\020\\000\\000\\000\\000\\000\\000\\210wfUD3\\\"\\021\"\n"},
	} {
		r, err := printer(tt.format, ValueLimits{}).Print(tt.expr)
		if tt.want == "" {
			if err == nil {
				t.Errorf("%s: %s", tt.expr, textOf(r))
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.expr, err)
		} else if got := textOf(r); got != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.expr, got, tt.want)
		}
	}
}

// What cannot be read is a fault in its place, and what is cut says so.
func TestPrintPartly(t *testing.T) {
	r, err := printer(0, ValueLimits{}).Print("edge")
	if err != nil {
		t.Fatal(err)
	}
	text := textOf(r)
	for _, want := range []string{"{\n  pid = 0,\n  mode = IDLE,\n", "comm = <cannot read 0x5000>,\n", "next = <cannot read 0x5010>,\n",
		"a = <cannot read 0x5028>", "numbers = {<cannot read 0x5048>, <cannot read 0x504c>, "} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if r.Unread() {
		t.Error("something of it was read")
	}
	if r, err = printer(0, ValueLimits{}).Print("*(struct task *)0x6000"); err != nil || !r.Unread() || strings.Contains(textOf(r), "= 0") {
		t.Errorf("%v\n%s", err, textOf(r))
	}
	if _, err = printer(0, ValueLimits{}).Print("*(int *)0x6000"); !errors.Is(err, mem.ErrFault) {
		t.Error(err)
	}
	if _, err = printer(0, ValueLimits{}).Print("untyped"); err == nil || !strings.Contains(err.Error(), "write (TYPE)untyped") {
		t.Error(err)
	}
	for expr, want := range map[string]string{
		"init_task": "tasks = {\n    ... (structures more than 1 deep)\n  }", "numbers": "{0, -1, ... (2 more elements)}\n", "init_task.comm": "\"sw\" ... (5 more characters)",
	} {
		r, err := printer(0, ValueLimits{Depth: 1, Elements: 2}).Print(expr)
		if err != nil || !strings.Contains(textOf(r), want) {
			t.Errorf("%s: %v\n%s\nwant %s", expr, err, textOf(r), want)
		}
	}
	r, err = printer(0, ValueLimits{Total: 10}).Print("init_task@5")
	if err != nil || strings.Count(textOf(r), " = ") > 20 || !strings.Contains(textOf(r), "more than 10 values") {
		t.Errorf("%v\n%s", err, textOf(r))
	}
	// A terabyte of nothing is found out about in no time.
	r, err = printer(0, ValueLimits{}).Print("*(char (*)[0x1000000000])0x100000")
	if err == nil {
		t.Errorf("%s", textOf(r))
	}
	if r, err = printer(0, ValueLimits{}).Print("*(int (*)[0x1000000000])0x100000"); err != nil || !r.Unread() {
		t.Errorf("%v\n%s", err, textOf(r))
	}
}

func TestPrintJSON(t *testing.T) {
	var b bytes.Buffer
	r, err := printer(0, ValueLimits{}).Print("((struct task *)0x1100)->tasks")
	if err != nil {
		t.Fatal(err)
	}
	if err := JSON(&b, r); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Machine string
		Value   struct {
			Type, Addr string
			Members    []struct {
				Name, Type, Addr, Text string
				Number                 uint64
			}
		}
	}
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	m := got.Value.Members
	if got.Machine != "vm0" || got.Value.Type != "struct list" || got.Value.Addr != "0x1118" || len(m) != 2 ||
		m[1].Name != "prev" || m[1].Type != "struct list *" || m[1].Addr != "0x1120" || m[1].Number != 0x1018 || m[1].Text != "0x1018" {
		t.Errorf("%+v from %s", got, &b)
	}
}

const taskLayout = `struct task {
	int pid;                                             /*       0      4 */
	enum mode mode;                                      /*       4      4 */
	char comm[16];                                       /*       8     16 */
	struct list tasks;                                   /*      24     16 */
	union {
		unsigned long long whole;                    /*      40      8 */
		struct {
			u32 low;                             /*      40      4 */
			u32 high;                            /*      44      4 */
		};                                           /*      40      8 */
	};                                                   /*      40      8 */
	unsigned int a:3;                                    /*    48:0      4 */
	unsigned int b:9;                                    /*    48:3      4 */
	int c:4;                                             /*    49:4      4 */
	/* 2 bytes hole */
	_Bool ready;                                         /*      52      1 */
	/* 3 bytes hole */
	const char *name;                                    /*      56      8 */
	int (*work)(struct task *, unsigned long);           /*      64      8 */
	struct task *parent;                                 /*      72      8 */
	int numbers[4];                                      /*      80     16 */
	enum flags flags;                                    /*      96      4 */
	u8 bytes[4];                                         /*     100      4 */
	struct hidden *hidden;                               /*     104      8 */
	struct list lists[3];                                /*     112     48 */
	unsigned int tail[];                                 /*     160      0 */

	/* size: 160, members: 18, holes: 2, unused: 5 bytes */
};
`

func TestLayout(t *testing.T) {
	for name, want := range map[string]string{
		"task": taskLayout, "struct task": taskLayout,
		"mode": "enum mode {\n\tIDLE = 0,\n\tBUSY = 1,\n\tGONE = 7,\n};\t/* size: 4 */\n", "enum signed_mode": "enum signed_mode {\n\tMINUS = -1,\n\tPLUS = 1,\n};\t/* size: 4 */\n",
		"u32": "typedef unsigned int u32;\t/* size: 4 */\n",
		"list_head_t": "typedef struct list {\n\tstruct list *next;                                   /*       0      8 */\n" +
			"\tstruct list *prev;                                   /*       8      8 */\n\n\t/* size: 16, members: 2 */\n} list_head_t;\n",
	} {
		r, err := printer(0, ValueLimits{}).Layout(name, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if got := textOf(r); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
		}
	}
	noted := printer(0, ValueLimits{})
	noted.Env.Types.(*cexprtest.Program).Notes = map[string]string{"struct task": "struct part::task is another"}
	layouts, err := noted.Layout("task", nil)
	object, errObject := noted.Object("struct task", nil, 0x1000)
	if err != nil || errObject != nil || len(layouts.Notes) != 1 || !slices.Equal(object.Notes, layouts.Notes) {
		t.Errorf("a type of which there is another: %+v, %v, %+v, %v", layouts, err, object, errObject)
	}
	r, err := printer(0, ValueLimits{}).Layout("task", []string{"lists[1].prev", "high", "c"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range r.Types[0].Members {
		got = append(got, fmt.Sprintf("%s %s %d:%d %d", m.Name, m.Type, m.Offset, m.Bit, m.Bits))
	}
	if want := "lists[1].prev struct list * 136:0 0|high u32 44:0 0|c int 49:4 4"; strings.Join(got, "|") != want {
		t.Errorf("%q, want %q", got, want)
	}
	for name, want := range map[string]string{"tsak": `there is no type "tsak"; near: task`, "struct u32": `there is "u32"`, "a b c": "no name of a type", "enum moda": "near: enum mode"} {
		if _, err := printer(0, ValueLimits{}).Layout(name, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	var e *cexpr.Error
	if _, err := printer(0, ValueLimits{}).Layout("task", []string{"pid.x"}); !errors.As(err, &e) {
		t.Error(err)
	}
}

func TestObject(t *testing.T) {
	p := printer(0, ValueLimits{})
	r, err := p.Object("task", []string{"pid", "tasks", "c"}, 0x1100)
	if want := "struct task at 0x1100\n  pid = 42\n  tasks = {\n    next = 0x1018,\n    prev = 0x1018,\n  }\n  c = -2\n"; err != nil || textOf(r) != want {
		t.Errorf("%v\n%s\nwant\n%s", err, textOf(r), want)
	}
	if r, err = p.Object("task", nil, 0x1100); err != nil || textOf(r) != "struct task at 0x1100 = "+wholeTask || r.Unread() {
		t.Errorf("%v\n%s", err, textOf(r))
	}
	if r, err = p.Object("list", nil, 0x5000); err != nil || !r.Unread() {
		t.Errorf("%v\n%s", err, textOf(r))
	}
	if _, err = p.Object("task", []string{"nobody"}, 0x1100); err == nil {
		t.Error("a member that does not exist")
	}
}

func TestPrintFormat(t *testing.T) {
	for text, want := range map[string]byte{"/x": 'x', "x": 'x', "": 0, "/": 0, "/z": 'z'} {
		if got, err := PrintFormat(text); got != want || err != nil {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"/q", "/xx", "/4x", "/i"} {
		if _, err := PrintFormat(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

// A structure that is an anonymous member of itself, 1000 times, is cut and says so.
func TestLayoutBounds(t *testing.T) {
	self := cexpr.NewType(cexpr.Def{})
	many := make([]cexpr.Member, 1000)
	for i := range many {
		many[i].Type = self
	}
	*self = *cexprtest.Struct("self", 8, many...)
	left := layoutMax
	l, err := printer(0, ValueLimits{}).layout(self, nil, &left)
	if err != nil || !strings.Contains(l.Cut, "more than") || !strings.Contains(textOf(&Layouts{Types: []*Layout{l}}), l.Cut) {
		t.Errorf("%v, %+v", err, l)
	}
	p := printer(0, ValueLimits{})
	v := p.read(p.Env.Object(self, cexprtest.Task), "")
	if text := textOf(&Print{Value: v}); !strings.Contains(text, "structures more than 20 deep") && !strings.Contains(text, "more than 50000 values") {
		t.Errorf("%.300s", text)
	}
}
