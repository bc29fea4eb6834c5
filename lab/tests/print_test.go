package tests

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"nestdbg/internal/linux"
	"nestdbg/internal/report"
	"nestdbg/lab"
)

// What the commands print and struct say, against the guest's own word and against
// gdb with the vendor's debug information.

// printReport is what "print --json" answers, as far as tests look.
type printReport struct {
	Machine string
	Value   printValue
	Notes   []string
}

type printValue struct {
	Name, Type, Text, Symbol, Fault, Cut string

	Addr     *address
	Number   *json.Number
	String   *string
	Members  []printValue
	Elements []printValue
	Repeat   int
}

// printed is the value of an expression of a machine.
func printed(t testing.TB, l *lab.Lab, machine, expr string) printValue {
	t.Helper()
	r := decode[printReport](t, must(t, l, "-m", machine, "--json", "print", expr))
	if r.Machine != machine {
		t.Errorf("print %s: of %s, asked for %s", expr, r.Machine, machine)
	}
	return r.Value
}

// TestPrintTasks asks for every task that the guest lists, by its address and by its
// number: what it says of it is what /proc says.
func TestPrintTasks(t *testing.T) { eachMachine(t, checkPrintTasks) }

// taskFacts are what a task is asked for, as JSON has it.
type taskFacts struct{ pid, tgid, parent, comm string }

func checkPrintTasks(t *testing.T, l *lab.Lab, name string) {
	before := guestTasks(t, l, name)
	thaw := freeze(t, l)
	v := look(t, l)
	k := v.kernel(t, v.machine(t, name))
	tasks, problems, err := k.Tasks()
	if err != nil || len(problems) > 0 {
		t.Fatalf("%s: %v, %v", name, err, problems)
	}
	p := &report.Printer{Machine: name, Env: k.Expressions(linux.ExprContext{})}
	value := func(expr string) *report.Value {
		r, err := p.Print(expr)
		if err != nil || r.Unread() {
			t.Fatalf("%s: %s: %v, %+v", name, expr, err, r)
		}
		return r.Value
	}
	got := make(map[int]taskFacts)
	for i, x := range tasks {
		at := fmt.Sprintf("((struct task_struct *)%#x)", uint64(x.Addr))
		if i%2 == 1 {
			at = fmt.Sprintf("task(%d)", x.PID)
		}
		f := taskFacts{value(at + "->pid").Text, value(at + "->tgid").Text, value(at + "->real_parent->tgid").Text,
			*value(at + "->comm").String}
		got[x.PID] = f
		if i%20 != 0 {
			continue
		}
		// The command says the same, of members as of expressions.
		o := decode[struct{ Members []printValue }](t, must(t, l, "-m", name, "--json", "struct", "task_struct.pid,tgid,comm", at))
		same := taskFacts{o.Members[0].Number.String(), o.Members[1].Number.String(),
			printed(t, l, name, at+"->real_parent->tgid").Number.String(), *o.Members[2].String}
		if same != f {
			t.Errorf("%s: %s is %+v, by the command %+v", name, at, f, same)
		}
	}
	thaw()
	after, compared := guestTasks(t, l, name), 0
	for pid, want := range before {
		if again, ok := after[pid]; !ok || again.Comm != want.Comm {
			continue
		}
		compared++
		f, ok := got[pid]
		numbers := taskFacts{fmt.Sprint(pid), fmt.Sprint(want.TGID), fmt.Sprint(want.PPID), f.comm}
		// Of a worker the guest also says what it works on: see agent.Task.
		if !ok || f != numbers || f.comm != want.Comm && !strings.HasPrefix(want.Comm, f.comm) {
			t.Errorf("%s: task %d is %+v, the guest says %+v", name, pid, f, want)
		}
	}
	if compared < 10 {
		t.Errorf("%s: only %d tasks compared", name, compared)
	}
	t.Logf("%s: %d tasks", name, compared)
}

// TestPrintFacts asks for what the guest says in other words.
func TestPrintFacts(t *testing.T) { eachMachine(t, checkPrintFacts) }

func checkPrintFacts(t *testing.T, l *lab.Lab, name string) {
	read := func(file string) string { return strings.TrimSpace(ask(t, l, name, "exec cat "+file)) }
	text := func(expr string) string {
		v := printed(t, l, name, expr)
		if v.String == nil {
			t.Fatalf("%s: %+v is no string", expr, v)
		}
		return *v.String
	}
	for expr, want := range map[string]string{
		"init_uts_ns.name.release":    read("/proc/sys/kernel/osrelease"),
		"init_uts_ns.name.version":    read("/proc/sys/kernel/version"),
		"(char *)linux_banner":        "", // below: an array is no pointer
		"init_net.loopback_dev->name": "lo",
		"init_task.comm":              "swapper/0",
		"saved_command_line":          read("/proc/cmdline"),
		"task(1)->comm":               read("/proc/1/comm"),
		"container_of(init_task.tasks.next, struct task_struct, tasks)->comm": read("/proc/1/comm"),
	} {
		if want == "" {
			checkRefused(t, nestdbg(t, on(l, "-m", name, "print", "(struct list_head)linux_banner")...), "cannot be made")
			continue
		}
		// Elements, for the command line, which may be longer than what is shown.
		got := decode[printReport](t, must(t, l, "-m", name, "--json", "--elements", "4000", "print", expr)).Value
		if got.String == nil || *got.String != want {
			t.Errorf("%s: %s is %+v, the guest says %q", name, expr, got, want)
		}
	}
	if !strings.HasPrefix(text("linux_banner"), "Linux version "+read("/proc/sys/kernel/osrelease")) {
		t.Errorf("%s: linux_banner is %q", name, text("linux_banner"))
	}
	count := guestCPUs(t, l, name)
	for cpu := range count {
		if v := printed(t, l, name, fmt.Sprintf("per_cpu(runqueues, %d).cpu", cpu)); v.Number.String() != strconv.Itoa(cpu) {
			t.Errorf("%s: the run queue of CPU %d is that of %v", name, cpu, v.Number)
		}
		idle := fmt.Sprintf("per_cpu(runqueues, %d).idle->comm", cpu)
		if got, want := text(idle), fmt.Sprintf("swapper/%d", cpu); got != want {
			t.Errorf("%s: %s is %q", name, idle, got)
		}
	}
	checkRefused(t, nestdbg(t, on(l, "-m", name, "print", fmt.Sprintf("per_cpu(runqueues, %d)", count))...), "no CPU")
	// A function, by the pointer to it and by its name.
	want := guestSymbol(t, l, name, "schedule")
	if v := printed(t, l, name, "&schedule"); v.Number.String() != strconv.FormatUint(want, 10) || v.Symbol != "schedule" {
		t.Errorf("%s: &schedule is %+v, the guest says %#x", name, v, want)
	}
	// What is unsigned and large is exact in JSON too.
	if v := printed(t, l, name, "-1ul"); v.Number.String() != "18446744073709551615" {
		t.Errorf("-1ul is %v", v.Number)
	}
}

// TestPrintRunning asks again and again while the machine runs: it counts on, nothing
// is stopped for it.
func TestPrintRunning(t *testing.T) {
	l := sharedLab(t, "kaslr")
	last := uint64(0)
	for range 5 {
		v := printed(t, l, "vm0", "jiffies_64")
		n, err := strconv.ParseUint(v.Number.String(), 10, 64)
		if err != nil || n < last || runState(t, l) != "running" {
			t.Fatalf("jiffies_64 is %d after %d, %v; the machine is %s", n, last, err, runState(t, l))
		}
		last = n
		ask(t, l, "vm0", "ping")
	}
	if v := printed(t, l, "vm0", "jiffies_64"); v.Number.String() == "0" {
		t.Error("jiffies_64 is 0")
	}
}

// TestPrintWrong asks for what cannot be.
func TestPrintWrong(t *testing.T) {
	l := sharedLab(t, "kaslr")
	freeze(t, l)
	for _, c := range []struct {
		args  []string
		words []string
	}{
		{[]string{"print", "init_task.comn"}, []string{"struct task_struct", `"comn"`, "near: comm"}},
		{[]string{"print", "no_such_thing + 1"}, []string{"no symbol", "no_such_thing"}},
		{[]string{"print", "tasklist_lock"}, []string{"type of tasklist_lock", "(TYPE)tasklist_lock"}},
		{[]string{"print", "runqueues"}, []string{"per_cpu(runqueues, CPU)"}},
		{[]string{"print", "task_struct"}, []string{"struct task_struct"}},
		{[]string{"print", "init_task.pid = 1"}, []string{"only reads"}},
		{[]string{"print", "schedule()"}, []string{"runs nothing"}},
		{[]string{"print", "*(int *)16"}, []string{"0x10"}},
		{[]string{"print", "((struct task_struct *)0)->comm[0] + 1"}, []string{"cannot read 0x"}},
		{[]string{"print", "(struct tsk_struct *)0"}, []string{"tsk_struct", "near: struct task_struct"}},
		{[]string{"print", "1 +"}, []string{"ends too early"}},
		{[]string{"print", "/q", "1"}, []string{"/q", "x d u o t c a s z"}},
		{[]string{"print", "task(123456789)"}, []string{"no task 123456789"}},
		{[]string{"print", `module("nothing")`}, []string{"no module"}},
		{[]string{"struct", "task_strukt"}, []string{"task_strukt", "near: task_struct"}},
		{[]string{"struct", "task_struct.nothing"}, []string{"struct task_struct", `"nothing"`}},
		{[]string{"struct", "list_head", "nobody"}, []string{"nobody"}},
		{[]string{"struct"}, []string{"struct"}},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) { checkRefused(t, nestdbg(t, on(l, c.args...)...), c.words...) })
	}
	// A structure that cannot be read is shown as that.
	r := nestdbg(t, on(l, "struct", "list_head", "0x10")...)
	if r.status != 2 || strings.Count(r.stdout, "cannot read 0x1") != 2 || strings.Contains(r.stdout, "0x0\n") {
		t.Errorf("struct list_head 0x10: %+v", r)
	}
}

// TestPrintWithGDB compares hundreds of layouts and thousands of numbers with what
// gdb says with the vendor's vmlinux, at one moment, through "monitor": see
// testdata/print/compare.py.
func TestPrintWithGDB(t *testing.T) {
	l := sharedLab(t, "kaslr")
	symbols, err := l.SymbolsDir(t.Context(), "vm0", "", func(s string) { t.Log(s) })
	if err != nil {
		t.Fatalf("debug symbols of L2's kernel: %v", err)
	}
	program, err := filepath.Abs("testdata/print/compare.py")
	if err != nil {
		t.Fatal(err)
	}
	for inferior, name := range map[int]string{1: "l1", 2: "vm0"} {
		t.Run(name, func(t *testing.T) {
			script := filepath.Join(t.TempDir(), "compare.gdb")
			if err := os.WriteFile(script, fmt.Appendf(nil, "inferior %d\nsource %s\n", inferior, program), 0o600); err != nil {
				t.Fatal(err)
			}
			out := runGDB(t, l, symbols, script)
			_, line, ok := strings.Cut(out, "\nCOMPARED ")
			if !ok {
				t.Fatalf("no answer:\n%s", out)
			}
			line, _, _ = strings.Cut(line, "\n")
			got := decode[struct {
				Numbers, Layouts, Members int
				Wrong                     []string
			}](t, line)
			for _, w := range got.Wrong {
				t.Error(w)
			}
			if got.Numbers < 5000 || got.Layouts < 300 {
				t.Errorf("only %d numbers and %d layouts compared", got.Numbers, got.Layouts)
			}
			t.Logf("%s: %d numbers, %d layouts with %d members", name, got.Numbers, got.Layouts, got.Members)
		})
	}
	ask(t, l, "l1", "ping")
	ask(t, l, "vm0", "ping")
}
