package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"nestdbg/lab"
)

// gdbThread is what gdb shows of a thread: a line for each frame, as "backtrace"
// prints it, and the frames' program counters.
type gdbThread struct {
	name   string
	frames []string
	pcs    []uint64
}

// "thread apply" prints this in front of each thread.
var threadHeader = regexp.MustCompile(`^Thread \d+\.\d+ \(Thread \d+\.(\d+) "(.*)" \(.*\)\):$`)

// taskThreads is what gdb printed of the threads of tasks, by PID.
func taskThreads(t *testing.T, transcript string) map[int]*gdbThread {
	t.Helper()
	const first = 10000000 // PID 0
	out := make(map[int]*gdbThread)
	var current *gdbThread
	for line := range strings.Lines(transcript) {
		line = strings.TrimSpace(line)
		if m := threadHeader.FindStringSubmatch(line); m != nil {
			id, err := strconv.Atoi(m[1])
			if err != nil {
				t.Fatal(err)
			}
			current = nil
			if id > first {
				if out[id-first] == nil {
					out[id-first] = &gdbThread{name: m[2]}
				}
				current = out[id-first]
			}
			continue
		}
		if current == nil {
			continue
		}
		if pc, ok := strings.CutPrefix(line, "pc 0x"); ok {
			v, err := strconv.ParseUint(pc, 16, 64)
			if err != nil {
				t.Fatalf("line %q: %v", line, err)
			}
			current.pcs = append(current.pcs, v)
		} else if strings.HasPrefix(line, "#") {
			current.frames = append(current.frames, line)
		}
	}
	return out
}

// frameName is the function in a line of "backtrace".
var frameName = regexp.MustCompile(`^#\d+ +0x[0-9a-f]+ in ([^ ]+) \(`)

// numbered is the end of a name like "f.constprop.0", which gdb takes for Ada's and
// leaves out.
var numbered = regexp.MustCompile(`\.\d+$`)

// TestTaskThreads asks both kernels.
func TestTaskThreads(t *testing.T) {
	l := sharedLab(t, "kaslr")
	for _, name := range []string{"l1", "vm0"} {
		checkTaskThreads(t, l, name)
	}
	ask(t, l, "l1", "ping")
	ask(t, l, "vm0", "ping")
}

// checkTaskThreads compares the backtraces that gdb takes of all task threads, with
// the files that nestdbg makes, with /proc/PID/stack: of every task that ran neither
// before nor after. gdb must show every task that lasts, under its name.
func checkTaskThreads(t *testing.T, l *lab.Lab, name string) {
	t.Helper()
	inferior := map[string]int{"l1": l1, "vm0": vm0}[name]
	script := filepath.Join(t.TempDir(), "tasks.gdb")
	text := fmt.Sprintf("inferior %d\nmonitor tasks on\ninfo threads\n"+
		"thread apply all -s -- frame apply all -q -s -- printf \"pc %%#lx\\n\", $pc\n"+
		"thread apply all -s -- backtrace\n", inferior)
	if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	symbols := make(map[string][]symbol) // by name
	for _, s := range parseSymbols(t, ask(t, l, name, "kallsyms")) {
		symbols[s.name] = append(symbols[s.name], s)
	}
	leftOut := schedulerText(t, l, name)
	ask(t, l, name, "exec (sh -c 'sh -c exit & exec sleep 100' > /dev/null 2>&1 &)") // a zombie
	eventually(t, "a zombie and its parent, a sleep", commandLimit, func() bool {
		tasks := ask(t, l, name, "tasks")
		return strings.Contains(tasks, " Z ") && strings.Contains(tasks, " sleep")
	})
	names := guestTasks(t, l, name)
	before := guestStacks(t, l, name, true)
	transcript := runGDB(t, l, t.TempDir(), script)
	got := taskThreads(t, transcript)
	after := guestStacks(t, l, name, false)
	compared := 0
	var ran []string
	for pid, first := range before {
		last := after[pid]
		task, ok := names[pid]
		if last == nil || !ok || first.switches != last.switches {
			ran = append(ran, task.Comm)
			continue
		}
		compared++
		thread := got[pid]
		if thread == nil {
			t.Errorf("%s: gdb has no thread of task %d %s", name, pid, task.Comm)
			continue
		}
		// A worker's comm in /proc also tells what it works on.
		comm, _, _ := strings.Cut(thread.name, " (")
		if thread.name != fmt.Sprintf("%s (%d)", comm, pid) || !strings.HasPrefix(task.Comm, comm) {
			t.Errorf("%s: task %d is %q to gdb, want %q", name, pid, thread.name, task.Comm)
		}
		if problem := compareStack(thread, first.frames, symbols, leftOut); problem != "" {
			t.Errorf("%s: task %d %s: %s\n%s\n%#x\nwant\n%s", name, pid, task.Comm, problem,
				strings.Join(thread.frames, "\n"), thread.pcs, strings.Join(first.frames, "\n"))
		}
	}
	if compared < 40 || compared < 2*len(ran) {
		t.Errorf("%s: only %d stacks compared; gdb's words:\n%s", name, compared, transcript[:min(len(transcript), 4000)])
	}
	t.Logf("%s: %d stacks compared; these ran meanwhile: %s", name, compared, strings.Join(ran, ", "))
}

// compareStack compares gdb's frames with those of the kernel, "SYMBOL+OFFSET/SIZE"
// or "SYMBOL+OFFSET/SIZE [MODULE]": every address, and the name of every function
// that gdb names. It returns what differs.
func compareStack(got *gdbThread, want []string, symbols map[string][]symbol, leftOut func(address) bool) string {
	if len(want) == 0 && slices.Equal(got.frames, []string{"#0  <unavailable> in ?? ()"}) {
		return "" // a zombie has no stack
	}
	if len(got.frames) != len(got.pcs) {
		return fmt.Sprintf("%d frames, %d program counters", len(got.frames), len(got.pcs))
	}
	i := 0
	for n, pc := range got.pcs {
		if pc < 1<<63 || leftOut(address(pc)) {
			continue // in user mode; in the scheduler, which the kernel leaves out
		}
		if i == len(want) {
			return fmt.Sprintf("frame %d is too much", n)
		}
		f := want[i]
		i++
		place, module, _ := strings.Cut(f, " ")
		function, rest, _ := strings.Cut(place, "+")
		offset, _, _ := strings.Cut(rest, "/")
		off, err := strconv.ParseUint(offset, 0, 64)
		if err != nil {
			return err.Error()
		}
		module = strings.Trim(module, "[]")
		if !slices.ContainsFunc(symbols[function], func(s symbol) bool { return s.module == module && s.addr+off == pc }) {
			return fmt.Sprintf("frame %d, %#x, is not %s", n, pc, f)
		}
		// One address may have several names; a frame that an exception or a system
		// call interrupted has none in gdb.
		m := frameName.FindStringSubmatch(got.frames[n])
		if m != nil && m[1] != numbered.ReplaceAllString(function, "") &&
			!slices.ContainsFunc(symbols[m[1]], func(s symbol) bool { return s.addr+off == pc }) {
			return fmt.Sprintf("frame %d is %s to gdb, not %s", n, m[1], f)
		}
		if m == nil && !strings.HasSuffix(got.frames[n], "<signal handler called>") {
			return fmt.Sprintf("frame %d has no name: %s", n, got.frames[n])
		}
	}
	if i != len(want) {
		return fmt.Sprintf("ends before %s", want[i])
	}
	return ""
}

// TestTaskThreadEnds follows one task of the guest: as a thread it has the guest's
// own memory of that process, to read and to write; no stop is about it; it is gone
// at the stop after its end.
func TestTaskThreadEnds(t *testing.T) {
	l := sharedLab(t, "kaslr")
	pid, err := strconv.Atoi(strings.TrimSpace(ask(t, l, "vm0", "exec sleep 1000 > /dev/null 2>&1 & echo $!")))
	if err != nil {
		t.Fatal(err)
	}
	first, size := argumentsOf(t, l, "vm0", pid)
	c := connect(t, serve(t, l).addr)
	c.attach(l1, vm0)
	c.use(vm0, 1)
	before := c.threads()
	if out := c.monitor("tasks on"); !strings.Contains(out, "tasks of vm0 are threads now") {
		t.Fatal(out)
	}
	tid := 10000000 + pid
	id := fmt.Sprintf("p%x.%x", vm0, tid)
	if list := c.threads(); !slices.Contains(list, id) || len(list) < len(before)+40 || !slices.Equal(list[:len(before)], before) {
		t.Fatalf("no %s in %v", id, list)
	}
	if got, err := c.readMem(vm0, tid, first, size); string(got) != "sleep\x001000\x00" || err != nil {
		t.Errorf("arguments %q, %v", got, err)
	}
	if err := c.writeMem(vm0, tid, first, []byte("SLEEP")); err != nil {
		t.Error(err)
	}
	regs := c.registers(vm0, tid)
	if pc, ok := regs.PC(); !ok || pc < 1<<63 {
		t.Errorf("pc %#x, %v", pc, ok)
	}
	if _, known := regs.Get("rax"); known {
		t.Error("rax is known: nothing has saved it")
	}
	if r := c.cmd(fmt.Sprintf("vCont;s:%s;c", id)); r != "T00thread:"+id+";" || !strings.Contains(c.console.String(), "does not run now") {
		t.Errorf("step of a task: %q, %q", r, c.console.String())
	}

	c.resume("c")
	c.runs(100 * time.Millisecond)
	if got := ask(t, l, "vm0", fmt.Sprintf("cat /proc/%d/cmdline", pid)); got != "SLEEP\x001000\x00" {
		t.Errorf("the guest sees the arguments %q", got)
	}
	ask(t, l, "vm0", fmt.Sprintf("exec kill %d", pid))
	eventually(t, "the end of the task", commandLimit, func() bool {
		return !strings.Contains(ask(t, l, "vm0", "tasks"), fmt.Sprintf("\n%d ", pid))
	})
	c.interrupt()
	s, err := c.wait(stopLimit)
	if err != nil || s.kind != 'T' || s.signal != sigInt || s.tid > 100 {
		t.Fatalf("stop %+v, %v", s, err)
	}
	if list := c.threads(); slices.Contains(list, id) || len(list) < len(before)+40 {
		t.Errorf("%s is still in %v", id, list)
	}
	if r := c.cmd("T" + id); !strings.HasPrefix(r, "E") {
		t.Errorf("it is alive: %q", r)
	}
	c.use(vm0, 1)
	c.monitor("tasks off")
	if list := c.threads(); !slices.Equal(list, before) {
		t.Errorf("threads %v, want %v", list, before)
	}
	c.ok("D;1", "D;2")
	ask(t, l, "vm0", "ping")
}

// argumentsOf is where a process has its arguments, as the guest says.
func argumentsOf(t *testing.T, l *lab.Lab, guest string, pid int) (first uint64, size int) {
	t.Helper()
	const argStart, argEnd = 48, 49 // fields of /proc/PID/stat, from 1 on; proc(5)
	stat := strings.Fields(ask(t, l, guest, fmt.Sprintf("cat /proc/%d/stat", pid)))
	var bounds [2]uint64
	for i, field := range []int{argStart, argEnd} {
		var err error
		if bounds[i], err = strconv.ParseUint(stat[field-1], 10, 64); err != nil {
			t.Fatalf("%v: %v", stat, err)
		}
	}
	return bounds[0], int(bounds[1] - bounds[0])
}
