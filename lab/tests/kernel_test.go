package tests

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"

	"nestdbg/internal/linux"
	"nestdbg/internal/mem"
	"nestdbg/lab"
	"nestdbg/lab/agent"
)

// eachMachine asks a question of L1 and of the VM of the lab "kaslr".
func eachMachine(t *testing.T, check func(t *testing.T, l *lab.Lab, name string)) {
	t.Helper()
	l := sharedLab(t, "kaslr")
	for _, name := range []string{"l1", "vm0"} {
		t.Run(name, func(t *testing.T) { check(t, l, name) })
	}
}

// TestEverySymbol compares every symbol of L1 and L2 with /proc/kallsyms.
func TestEverySymbol(t *testing.T) { eachMachine(t, checkSymbols) }

func checkSymbols(t *testing.T, l *lab.Lab, name string) {
	want := parseSymbols(t, ask(t, l, name, "kallsyms"))
	remember(l, name, want)
	v := look(t, l)
	k := v.kernel(t, v.machine(t, name))
	table, err := k.Symbols()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	var got []symbol
	for s := range table.All() {
		got = append(got, symbol{s.Name, "", s.Addr, s.Type})
	}
	modules, problems, err := k.Modules()
	if err != nil || len(problems) > 0 {
		t.Fatalf("%s: modules: %v, %v", name, err, problems)
	}
	for i := range modules {
		symbols, err := k.ModuleSymbols(&modules[i])
		if err != nil {
			t.Fatalf("%s: symbols of %s: %v", name, modules[i].Name, err)
		}
		for _, s := range symbols {
			got = append(got, symbol{s.Name, modules[i].Name, s.Addr, s.Type})
		}
	}
	want = slices.DeleteFunc(want, madeAtRunTime)
	checkPlaces(t, k, name, modules, want)
	for i := range want {
		if want[i].module != "" {
			// The kernel makes it a capital for exported symbols only when it is read
			// (Linux 6.1 kernel/kallsyms.c:s_show); a module's own table does not say.
			want[i].kind |= 0x20
		}
	}
	compareSets(t, name+": symbols", got, want, func(a, b symbol) int {
		return cmp.Or(cmp.Compare(a.addr, b.addr), cmp.Compare(a.name, b.name),
			cmp.Compare(a.module, b.module), cmp.Compare(a.kind, b.kind))
	})
	t.Logf("%s: %d symbols", name, len(want))
}

// checkPlaces asks the address of every symbol back, and of the kernel's own the last byte
// of each: it ends at the next. How long a module's symbols are no guest says.
func checkPlaces(t *testing.T, k *linux.Kernel, name string, modules []linux.Module, want []symbol) {
	t.Helper()
	regions := make(map[string]*linux.Module)
	for i := range modules {
		regions[modules[i].Name] = &modules[i]
	}
	names := make(map[uint64][]string) // of places in the kernel and its modules, in the guest's order
	var starts []uint64                // of the kernel's own
	outside := 0
	for _, s := range want {
		switch at := mem.Virt(s.addr); {
		case s.kind == 'A' || s.kind == 'a':
			continue // a number, not a place
		case s.module == "" && uint64(at-k.TextVA) < k.Size:
			starts = append(starts, s.addr)
		case s.module == "" || !regions[s.module].Contains(at):
			outside++ // the image's end, and what a module has beside its memory
			continue
		}
		names[s.addr] = append(names[s.addr], cmp.Or(s.module, "kernel")+" "+s.name)
	}
	slices.Sort(starts)
	starts = slices.Compact(starts)
	wrong := 0
	check := func(addr, offset, size uint64) {
		p, ok := k.Symbolize(mem.Virt(addr + offset))
		got, known := cmp.Or(p.Module, "kernel")+" "+p.Name, names[addr]
		// The kernel's own backtraces have the first of its table.
		right := got == known[0] || p.Module != "" && slices.Contains(known, got)
		if (!ok || !right || p.Offset != offset || size != 0 && p.Size != size) && wrong < 20 {
			wrong++
			t.Errorf("%s: %#x is %+v, %v, want %s+%#x/%#x", name, addr+offset, p, ok, known, offset, size)
		}
	}
	for i, at := range starts[:len(starts)-1] {
		size := starts[i+1] - at
		check(at, 0, size)
		check(at, size-1, size)
	}
	for at := range names {
		if _, own := slices.BinarySearch(starts, at); !own {
			check(at, 0, 0)
		}
	}
	if outside > 100 || len(starts) < 1000 || len(names)-len(starts) < 100 {
		t.Errorf("%s: %d places of the kernel and %d of modules, %d symbols outside", name, len(starts), len(names)-len(starts), outside)
	}
}

// madeAtRunTime tells the names that /proc/kallsyms adds for code that the kernel
// wrote itself: they are in no symbol table (Linux 6.1
// kernel/kallsyms.c:update_iter_mod).
func madeAtRunTime(s symbol) bool {
	return slices.Contains([]string{"bpf", "__builtin__ftrace", "__builtin__kprobes"}, s.module)
}

// compareSets checks that two lists hold the same, and says what one of them lacks.
func compareSets[T comparable](t *testing.T, what string, got, want []T, order func(a, b T) int) {
	t.Helper()
	got, want = slices.SortedFunc(slices.Values(got), order), slices.SortedFunc(slices.Values(want), order)
	if slices.Equal(got, want) {
		return
	}
	t.Errorf("%s: %d, want %d", what, len(got), len(want))
	shown := 0
	for i, j := 0, 0; (i < len(got) || j < len(want)) && shown < 20; {
		switch {
		case j == len(want) || i < len(got) && order(got[i], want[j]) < 0:
			t.Errorf("%s: %+v is not there", what, got[i])
			i++
			shown++
		case i == len(got) || order(got[i], want[j]) > 0:
			t.Errorf("%s: %+v is missing", what, want[j])
			j++
			shown++
		default:
			i++
			j++
		}
	}
}

// TestModules compares with /proc/modules, whole lines and their order.
func TestModules(t *testing.T) { eachMachine(t, checkModules) }

func checkModules(t *testing.T, l *lab.Lab, name string) {
	compareModules(t, l, name, func() (out []procModule) {
		v := look(t, l)
		modules, problems, err := v.kernel(t, v.machine(t, name)).Modules()
		if err != nil || len(problems) > 0 {
			t.Fatalf("%s: %v, %v", name, err, problems)
		}
		for _, m := range modules {
			if !m.Use.Counted {
				t.Fatalf("%s: nothing is known of who needs %s", name, m.Name)
			}
			out = append(out, procModule{m.Name, m.Size, m.Use.Refs, m.Use.Users, m.Use.Permanent, m.State.String(),
				uint64(m.Base), m.Taints})
		}
		return out
	})
}

// procModule is a line of /proc/modules.
type procModule struct {
	name      string
	size      uint64
	refs      int
	users     []string
	permanent bool
	state     string
	base      uint64
	taints    string
}

// String is the line, Linux 6.1 kernel/module/procfs.c:m_show.
func (m procModule) String() string {
	var users strings.Builder
	for _, u := range m.users {
		users.WriteString(u + ",")
	}
	if m.permanent {
		users.WriteString("[permanent],")
	}
	state := map[string]string{"live": "Live", "coming": "Loading", "going": "Unloading"}[m.state]
	line := fmt.Sprintf("%s %d %d %s %s 0x%016x", m.name, m.size, m.refs, cmp.Or(users.String(), "-"), state, m.base)
	if m.taints != "" {
		line += " (" + m.taints + ")"
	}
	return line + "\n"
}

// compareModules compares modules with those of /proc/modules. References come and go: a
// list counts that the guest shows before and after. The VM has a module that taints its
// kernel: one without its signature, which begins behind the ELF file and ends in these
// 28 bytes (Linux 6.1 kernel/module/signing.c:MODULE_SIG_STRING).
func compareModules(t *testing.T, l *lab.Lab, name string, modules func() []procModule) {
	t.Helper()
	if name != "l1" {
		ask(t, l, name, "exec rmmod dummy && head -c -28 /modules/*/*-dummy.ko > /tmp/dummy.ko && insmod /tmp/dummy.ko")
	}
	eventually(t, "twice the same /proc/modules", commandLimit, func() bool {
		want := ask(t, l, name, "modules")
		list := modules()
		if ask(t, l, name, "modules") != want {
			return false
		}
		var got strings.Builder
		needed, tainted := 0, 0
		for _, m := range list {
			got.WriteString(m.String())
			needed += len(m.users)
			tainted += len(m.taints)
		}
		// That a module needs another is sure in L1 only, which has KVM's.
		if got.String() != want || len(list) < 3 || needed == 0 && name == "l1" || tainted == 0 && name != "l1" {
			t.Errorf("%s: modules:\n%s\nwant:\n%s", name, got.String(), want)
		}
		return true
	})
}

// TestTasks compares with what the guest lists. Tasks come and go meanwhile: what
// it lists before and after must be there, and nothing else that is older than its
// first list.
func TestTasks(t *testing.T) { eachMachine(t, checkTasks) }

func checkTasks(t *testing.T, l *lab.Lab, name string) {
	startOddTasks(t, l, name)
	before := guestTasks(t, l, name)
	thaw := freeze(t, l)
	v := look(t, l)
	tasks, problems, err := v.kernel(t, v.machine(t, name)).Tasks()
	if err != nil || len(problems) > 0 {
		t.Fatalf("%s: %v, %v", name, err, problems)
	}
	thaw()
	after := guestTasks(t, l, name)
	newest := 0
	for pid := range before {
		newest = max(newest, pid)
	}
	got := make(map[int]linux.Task)
	for _, x := range tasks {
		if _, twice := got[x.PID]; twice {
			t.Errorf("%s: task %d twice", name, x.PID)
		}
		got[x.PID] = x
		if _, ok := before[x.PID]; !ok && x.PID <= newest {
			t.Errorf("%s: %+v is no task of it", name, x)
		}
	}
	lasting, states := 0, make(map[string]int)
	for pid, want := range before {
		again, ok := after[pid]
		if !ok || again.TGID != want.TGID {
			continue
		}
		lasting++
		x := got[pid]
		checkTask(t, name, x, want)
		if stoodStill(want, again) {
			states[x.State]++
			if x.State != want.State || x.CPU != want.CPU || x.OnCPU {
				t.Errorf("%s: %+v, want state %s, last on CPU %d", name, x, want.State, want.CPU)
			}
		}
	}
	checkStates(t, name, states)
	t.Logf("%s: %d tasks, %d of them lasting; states of those that did not run: %v", name, len(tasks), lasting, states)
}

// oddTasks are command lines of tasks that are easily got wrong: one that was stopped, whose
// name is neither ASCII nor UTF-8 nor harmless, as are its arguments, of which some are
// empty; one with more arguments than are read; and the parent of a zombie.
var oddTasks = []string{
	`sh -c 'printf "n\303\251\377\033" > /proc/$$/comm; kill -STOP $$' "$(printf 'a\303\251\377\033')" '' z '' ''`,
	`sh -c 'kill -STOP $$' $(head -c 100000 /dev/zero | tr '\0' x) $(head -c 100000 /dev/zero | tr '\0' y)`,
	`sh -c 'sh -c exit & exec sleep 1000'`,
}

// startOddTasks has these in a guest until the end of the test.
func startOddTasks(t *testing.T, l *lab.Lab, guest string) {
	t.Helper()
	for _, command := range oddTasks {
		pid := strings.TrimSpace(ask(t, l, guest, "exec exec "+command+" > /dev/null 2>&1 & echo $!"))
		t.Cleanup(func() { ask(t, l, guest, "exec kill -9 "+pid) })
	}
	eventually(t, "two stopped tasks, and a zombie", commandLimit, func() bool {
		count := make(map[string]int)
		for _, x := range guestTasks(t, l, guest) {
			count[x.State]++
		}
		return count["T"] >= 2 && count["Z"] >= 1
	})
}

// stoodStill tells a task that did not run between two lists. One that runs in both may
// have been about to sleep.
func stoodStill(before, after agent.Task) bool { return before == after && before.State != "R" }

// checkStates checks that tasks of every state that the lab has were compared.
func checkStates(t *testing.T, guest string, states map[string]int) {
	t.Helper()
	for state, least := range map[string]int{"S": 15, "I": 5, "T": 2, "Z": 1} {
		if states[state] < least {
			t.Errorf("%s: tasks that did not run, by state: %v, want %d of state %s", guest, states, least, state)
		}
	}
}

// guestTasks asks a guest for its tasks, by thread number.
func guestTasks(t *testing.T, l *lab.Lab, guest string) map[int]agent.Task {
	t.Helper()
	list, err := agent.ParseTasks([]byte(ask(t, l, guest, "tasks")))
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[int]agent.Task)
	for _, x := range list {
		out[x.PID] = x
	}
	return out
}

// ofKernel tells the kernel's own threads: those of kthreadd, which is task 2, and itself.
func ofKernel(x agent.Task) bool { return x.TGID == 2 || x.PPID == 2 }

func checkTask(t *testing.T, guest string, got linux.Task, want agent.Task) {
	t.Helper()
	// Of a worker the guest also says what it works on: see agent.Task.
	name := want.Comm == got.Comm || got.Kernel && strings.HasPrefix(want.Comm, got.Comm)
	if got.PID != want.PID || got.TGID != want.TGID || got.Parent != want.PPID || !name || got.Kernel != ofKernel(want) {
		t.Errorf("%s: task %+v, want %+v", guest, got, want)
	}
}
