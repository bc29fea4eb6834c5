package tests

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"nestdbg/lab"
)

// offlineQuestion is asked of a machine that stands still, and of its files.
type offlineQuestion struct {
	args []string
	only string // the machine that is asked; empty: each
	// cpu says that the answer is of a CPU, and not of memory alone.
	cpu bool
}

var offlineQuestions = []offlineQuestion{
	{args: []string{"dmesg"}}, {args: []string{"ps"}}, {args: []string{"lsmod"}}, {args: []string{"sym", "schedule"}},
	{args: []string{"x/64gx", "linux_banner"}}, {args: []string{"x/8i", "schedule"}},
	{args: []string{"print", "init_task.comm"}}, {args: []string{"struct", "task_struct", "init_task"}},
	{args: []string{"vtop", "schedule"}, cpu: true}, {args: []string{"maps"}, cpu: true},
	{args: []string{"maps", "--stage", "2"}, only: "vm0"}, {args: []string{"vmcs"}, only: "vm0", cpu: true},
	{args: []string{"find"}, only: "l1", cpu: true}, {args: []string{"audit"}, only: "l1", cpu: true},
	{args: []string{"report"}, only: "l1", cpu: true},
}

// offlineFile is a file of a machine that stands still: how it is made, and what it
// does not say.
type offlineFile struct {
	name string
	make func(t *testing.T, l *lab.Lab, path string)
	// insideOnly and outsideOnly are for one of the two stops: the test is long enough.
	insideOnly, outsideOnly bool
	compare                 func(t *testing.T, l *lab.Lab, path string)
}

// offlineFiles are all kinds. The last one moves QEMU on to another state of standing
// still.
var offlineFiles = []offlineFile{
	{name: "elf", make: dumpAs("elf"), compare: compareCPUs},
	{name: "kdump-zlib", make: dumpAs("kdump-zlib"), compare: compareCPUs}, // flattened
	{name: "memory", make: copyMemory, compare: compareLost},
	{name: "exported", make: exportKdump, outsideOnly: true}, // not flattened; of L1's own registers
	{name: "snapshot", make: saveSnapshot, compare: compareKept, insideOnly: true},
	{name: "migration", make: migrate, compare: compareKept},
}

// TestOfflineAnswersAsTheMachine: what a machine says while it stands still, its
// dumps, its memory file, its snapshot and its migration say, at a stop in L2 and at
// one outside of it. Exceptions, by what is not in the files:
//   - a dump does not say that a CPU waits in HLT: it is running there;
//   - a dump does not say which control block a CPU outside of guests has entered last;
//   - a dump has no MSRs, CR8 and debug registers of a CPU: they are unavailable;
//   - a memory file has no registers: the CPUs of L1 are lost, but for those whose
//     state KVM's entry saved, and a vCPU that was in its guest has those of before.
//     What a task does that ran on a lost CPU is not known, and addresses are
//     translated by the kernel's own tables instead of a CPU's.
func TestOfflineAnswersAsTheMachine(t *testing.T) {
	l := sharedLab(t, "kaslr")
	for _, inside := range []bool{true, false} {
		wait := stopWhere(t, l, inside)
		dir := t.TempDir()
		live := askOffline(t, on(l))
		for _, f := range offlineFiles {
			if f.insideOnly && !inside || f.outsideOnly && inside {
				continue
			}
			path := filepath.Join(dir, f.name)
			f.make(t, l, path)
			begin := time.Now()
			compareOffline(t, live, path)
			if f.compare != nil {
				f.compare(t, l, path)
			}
			t.Logf("%s, in L2 %v: compared in %v", f.name, inside, time.Since(begin))
			if err := os.RemoveAll(path); err != nil { // it is as large as the machine
				t.Error(err)
			}
		}
		qmpCommand(t, l, "cont")
		wait()
	}
}

func dumpAs(format string) func(*testing.T, *lab.Lab, string) {
	return func(t *testing.T, l *lab.Lab, path string) { dumpMemory(t, l, format, path) }
}

func copyMemory(t *testing.T, l *lab.Lab, path string) {
	t.Helper()
	if out, err := exec.Command("cp", "--sparse=always", l.MemoryFile, path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func exportKdump(t *testing.T, l *lab.Lab, path string) {
	t.Helper()
	if r := nestdbg(t, on(l, "export", "vmcore", "-m", "l1", "--format", "kdump-zlib", "-o", path)...); r.status != 0 || r.stderr != "" {
		t.Fatalf("%+v", r)
	}
}

func saveSnapshot(t *testing.T, l *lab.Lab, path string) {
	t.Helper()
	if r := nestdbg(t, on(l, "snapshot", "save", path)...); r.status != 0 {
		t.Fatalf("%+v", r)
	}
}

// migrate has QEMU write a migration to a file, and leaves it as after one.
func migrate(t *testing.T, l *lab.Lab, path string) {
	t.Helper()
	qmpCommandArgs(t, l, "migrate-set-parameters", map[string]any{"max-bandwidth": 1 << 40})
	qmpCommandArgs(t, l, "migrate", map[string]any{"uri": "exec:cat > " + path})
	var state struct{ Status string }
	eventually(t, "QEMU migrates", 3*time.Minute, func() bool {
		if err := json.Unmarshal(qmpCommand(t, l, "query-migrate"), &state); err != nil {
			t.Fatal(err)
		}
		return state.Status == "completed" || state.Status == "failed"
	})
	if state.Status != "completed" {
		t.Fatalf("migration: %s", state.Status)
	}
}

// stopWhere stops the machine while a CPU is in L2, or while all of L1's wait: one that
// has just left L2 is neither for memory alone, where KVM still says so. wait waits, when
// it runs again, until L2 has nothing to do any more.
func stopWhere(t *testing.T, l *lab.Lab, inside bool) (wait func()) {
	t.Helper()
	done := make(chan bool)
	wait = func() { <-done }
	if !inside {
		close(done)
	} else {
		go func() {
			defer close(done)
			ctx, cancel := context.WithTimeout(context.Background(), askLimit)
			defer cancel()
			// The answer, that it was ended, comes when the machine runs again.
			_, _ = l.Ask(ctx, "vm0", "exec timeout 5 sh -c 'while :; do :; done'")
		}()
	}
	for range 200 {
		thaw := freeze(t, l)
		text := nestdbg(t, on(l, "status")...).stdout
		_, l1, _ := strings.Cut(text, "\nl1  ")
		l1, _, _ = strings.Cut(l1, "\n  vm0  ")
		if inside && strings.Contains(l1, "hosting vm0") || !inside && strings.Count(l1, "halted") == l.Machine("l1").CPUs {
			return wait
		}
		thaw()
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("200 stops and none that was wanted, with a CPU in L2: %v", inside)
	return nil
}

// dumpMemory has QEMU dump its machine, which stands still.
func dumpMemory(t *testing.T, l *lab.Lab, format, path string) {
	t.Helper()
	qmpCommandArgs(t, l, "dump-guest-memory", map[string]any{
		"paging": false, "detach": true, "format": format, "protocol": "file:" + path})
	var state struct{ Status string }
	eventually(t, "QEMU dumps "+format, 3*time.Minute, func() bool {
		if err := json.Unmarshal(qmpCommand(t, l, "query-dump"), &state); err != nil {
			t.Fatal(err)
		}
		return state.Status != "active"
	})
	if state.Status != "completed" {
		t.Fatalf("dump %s: %s", format, state.Status)
	}
}

// offlineAnswers are those to offlineQuestions by machine and question, and the stacks
// of sleeping tasks by machine.
type offlineAnswers struct {
	answers map[asked]result
	stacks  map[string][]string
}

// lastEntered is what find says of a CPU's hidden state.
var lastEntered = regexp.MustCompile(`(?m)^ *\+ last entered by CPU \d+\n`)

// asked is a question that was asked.
type asked struct {
	machine, text string
	cpu           bool
}

// askOffline asks everything that needs no registers of L1's CPUs.
func askOffline(t *testing.T, target []string) offlineAnswers {
	t.Helper()
	a := offlineAnswers{make(map[asked]result), make(map[string][]string)}
	for _, m := range []string{"l1", "vm0"} {
		for _, q := range offlineQuestions {
			if q.only != "" && q.only != m {
				continue
			}
			r := nestdbg(t, append(append(slices.Clone(target), q.args...), "-m", m)...)
			switch q.args[0] {
			case "vtop": // where the byte lies in the file is the file's matter
				r.stdout = withoutOffsets(r.stdout)
			case "report": // what it is of, and when, is not the machine's
				_, r.stdout, _ = strings.Cut(r.stdout, "\n== l1 ==\n")
				r.stdout = strings.ReplaceAll(r.stdout, ", halted", ", running") // see compareCPUs
			case "find":
				r.stdout = lastEntered.ReplaceAllString(r.stdout, "")
			}
			a.answers[asked{m, strings.Join(q.args, " "), q.cpu}] = r
		}
		a.stacks[m] = sleeping(t, slices.Clone(target), m)
	}
	return a
}

// compareOffline compares the answers of a file with the machine's.
func compareOffline(t *testing.T, live offlineAnswers, path string) {
	t.Helper()
	name := filepath.Base(path)
	dead := askOffline(t, []string{"-t", path})
	for q, want := range live.answers {
		if name == "memory" && q.cpu {
			continue // they are lost
		}
		if got := dead.answers[q]; want.status != 0 || want.stdout == "" || want != got {
			t.Errorf("%s %v differs: live\n%.2000s\n%s\noffline\n%.2000s\n%s", name, q, want.stdout, want.stderr, got.stdout, got.stderr)
		}
	}
	for m, want := range live.stacks {
		if got := dead.stacks[m]; len(want) < 20 || !reflect.DeepEqual(want, got) {
			t.Errorf("%s: stacks of %d sleeping tasks of %s, live %d:\n%q\n%q", name, len(got), m, len(want), got, want)
		}
	}
}

// compareKept compares all that needs registers, of a file that has what QEMU knows.
func compareKept(t *testing.T, l *lab.Lab, path string) {
	t.Helper()
	var machines [2]struct{ Machines any }
	for i, target := range [][]string{on(l), {"-t", path}} {
		if err := json.Unmarshal([]byte(nestdbg(t, append(target, "status", "--json")...).stdout), &machines[i]); err != nil {
			t.Fatal(err)
		}
	}
	name := filepath.Base(path)
	if machines[0].Machines == nil || !reflect.DeepEqual(machines[0], machines[1]) {
		t.Errorf("%s: status differs: live\n%v\nkept\n%v", name, machines[0], machines[1])
	}
	for _, m := range []string{"l1", "vm0"} {
		for _, q := range [][]string{{"regs"}, {"bt", "--all"}, {"current"}} {
			q = append(q, "-m", m)
			if want, got := nestdbg(t, on(l, q...)...), nestdbg(t, append([]string{"-t", path}, q...)...); want.status != 0 || want != got {
				t.Errorf("%s: %v differs: live\n%+v\nkept\n%+v", name, q, want, got)
			}
		}
	}
}

// withoutOffsets cuts what vtop says of the file.
func withoutOffsets(text string) string {
	var out []string
	for line := range strings.Lines(text) {
		if !strings.Contains(line, "file") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

// sleeping are the backtraces of the tasks that are on no CPU.
func sleeping(t *testing.T, target []string, machine string) (out []string) {
	t.Helper()
	r := nestdbg(t, append(target, "-m", machine, "bt", "--all")...)
	for _, stack := range strings.Split(r.stdout, "\n\n") {
		if strings.HasPrefix(stack, machine+" task ") && !strings.Contains(stack, "whose registers are not known") {
			out = append(out, strings.TrimSpace(stack))
		}
	}
	return out
}

// compareCPUs compares the CPUs of all machines, as a dump has their registers.
func compareCPUs(t *testing.T, l *lab.Lab, path string) {
	t.Helper()
	live, dead := towerOf(t, on(l)), towerOf(t, []string{"-t", path})
	if want, got := fmt.Sprint(live), fmt.Sprint(dead); want != got || len(live) != 2 {
		t.Errorf("%s: tower\n%s\nlive\n%s", filepath.Base(path), got, want)
	}
	for _, m := range []string{"l1", "vm0"} {
		want := strings.ReplaceAll(nestdbg(t, on(l, "-m", m, "bt", "--all")...).stdout, ", halted", ", running")
		if got := nestdbg(t, "-t", path, "-m", m, "bt", "--all").stdout; got != want {
			t.Errorf("%s: bt --all of %s:\n%s\nlive:\n%s", filepath.Base(path), m, got, want)
		}
		compareRegisters(t, l, path, m)
	}
}

// compareRegisters: each register that the dump has is the live one, and it has all
// that a kernel's stack and memory are found by.
func compareRegisters(t *testing.T, l *lab.Lab, path, machine string) {
	t.Helper()
	read := func(args ...string) (out struct {
		CPUs []struct {
			Registers map[string]*string
		}
	}) {
		r := nestdbg(t, append(args, "-m", machine, "--json", "regs")...)
		if err := json.Unmarshal([]byte(r.stdout), &out); err != nil {
			t.Fatalf("%v: %+v", err, r)
		}
		return out
	}
	live, dead := read(on(l)...), read("-t", path)
	if len(live.CPUs) != len(dead.CPUs) || len(live.CPUs) == 0 {
		t.Fatalf("%s: %d CPUs of %s, live %d", filepath.Base(path), len(dead.CPUs), machine, len(live.CPUs))
	}
	for i, c := range dead.CPUs {
		for name, v := range c.Registers {
			switch want := live.CPUs[i].Registers[name]; {
			case v == nil:
			case want == nil && (name == "guest_mode" || strings.HasPrefix(name, "vm_")):
			case want == nil || *want != *v:
				t.Errorf("%s: %s of %s CPU %d is %v, live %v", filepath.Base(path), name, machine, i, *v, want)
			}
		}
		for _, name := range strings.Fields("rax rbx rcx rdx rsi rdi rbp rsp r8 r15 rip eflags cs ss gs_base cr0 cr3 cr4") {
			if c.Registers[name] == nil && live.CPUs[i].Registers[name] != nil {
				t.Errorf("%s: %s of %s CPU %d is not there", filepath.Base(path), name, machine, i)
			}
		}
	}
}

// tower is what status says of machines, without what a dump cannot know.
type tower struct {
	Name, OS     string
	Kernel       any
	Second_Stage any
	VCPUs        []struct {
		Index   int
		State   string
		CPU     *int
		RIP     string
		In      string
		Control any
	}
}

func towerOf(t *testing.T, target []string) []tower {
	t.Helper()
	var st struct {
		Machines []map[string]any
		Running  bool
	}
	r := nestdbg(t, append(target, "--json", "status")...)
	if err := json.Unmarshal([]byte(r.stdout), &st); err != nil || st.Running {
		t.Fatalf("%v, running %v: %+v", err, st.Running, r)
	}
	var out []tower
	for _, m := range st.Machines {
		delete(m, "evidence")
		delete(m, "mapped") // a dump has the firmware's ROM too
		if k, ok := m["kernel"].(map[string]any); ok {
			delete(k, "evidence")
		}
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var x tower
		if err := json.Unmarshal(b, &x); err != nil {
			t.Fatal(err)
		}
		for i := range x.VCPUs {
			if x.VCPUs[i].State == "halted" {
				x.VCPUs[i].State = "running"
			}
			if on := x.VCPUs[i].CPU; on != nil {
				x.VCPUs[i].State += fmt.Sprint(" on ", *on)
				x.VCPUs[i].CPU = nil
			}
		}
		out = append(out, x)
	}
	return out
}

// compareLost: a memory file has L1's CPUs without registers, except those that the
// hypervisor saved when it entered a guest, and says so.
func compareLost(t *testing.T, l *lab.Lab, path string) {
	t.Helper()
	live, dead := towerOf(t, on(l)), towerOf(t, []string{"-t", path})
	if len(live) != len(dead) {
		t.Fatalf("machines %v, live %v", dead, live)
	}
	stacks := nestdbg(t, on(l, "-m", "l1", "bt", "--all")...).stdout
	for i, m := range dead {
		want := live[i]
		if m.Name != want.Name || !reflect.DeepEqual(m.Kernel, want.Kernel) || !reflect.DeepEqual(m.Second_Stage, want.Second_Stage) ||
			len(m.VCPUs) != len(want.VCPUs) {
			t.Errorf("%+v, live %+v", m, want)
			continue
		}
		for k, c := range m.VCPUs {
			state, _, _ := strings.Cut(want.VCPUs[k].State, " ")
			switch {
			case m.Name == "l1" && state == "hosting":
				if c.State != "hosting" || c.RIP != want.VCPUs[k].RIP {
					t.Errorf("l1 CPU %d: %+v, live %+v", k, c, want.VCPUs[k])
				}
			case m.Name == "l1":
				// One that was in an interrupt has the registers from before, as its stack does.
				if c.State != "lost" || c.RIP != "" && !strings.Contains(stacks, c.RIP) {
					t.Errorf("l1 CPU %d: %+v, live %+v", k, c, want.VCPUs[k])
				}
			case c.State != "parked" || state == "parked" && c.RIP != want.VCPUs[k].RIP:
				t.Errorf("%s CPU %d: %+v, live %+v", m.Name, k, c, want.VCPUs[k])
			}
		}
	}
	if text := nestdbg(t, "-t", path, "status").stdout; strings.Contains(nestdbg(t, on(l, "status")...).stdout, "hosting") !=
		strings.Contains(text, "entered again: the registers are those of before") {
		t.Errorf("a vCPU that was in its guest is not said to be:\n%s", text)
	}
}

// crash makes a machine of the lab crash itself, and returns when that began. name is
// what nestdbg calls it.
func crash(t *testing.T, l *lab.Lab, machine, name string) time.Time {
	t.Helper()
	suite.crashed[l] = append(suite.crashed[l], machine)
	ask(t, l, machine, "crash")
	begin := time.Now()
	const end = "end Kernel panic"
	for limit := begin.Add(time.Minute); !consoleSays(t, l, machine, end); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(limit) { // by its own word: no matter what nestdbg reads
			bury(t, l, machine+" has come to a standstill before the end of its panic")
			t.FailNow()
		}
	}
	eventually(t, machine+" has panicked", commandLimit, func() bool {
		return strings.Contains(nestdbg(t, on(l, "-m", name, "dmesg")...).stdout, end)
	})
	return begin
}

// consoleSays reports whether the console of a machine of the lab has said a text.
func consoleSays(t *testing.T, l *lab.Lab, machine, text string) bool {
	t.Helper()
	for _, m := range l.Machines {
		if m.Name == machine {
			said, err := os.ReadFile(m.Log)
			if err != nil {
				t.Fatal(err)
			}
			return bytes.Contains(said, []byte(text))
		}
	}
	t.Fatalf("lab %s has no %s", l.Name, machine)
	return false
}

// checkShortened: a memory file that somebody shortens while it is debugged is an answer,
// and not the end of the server. text is in vm0's code. Nothing is left of the file.
func checkShortened(t *testing.T, memory string, text uint64) {
	t.Helper()
	s := listening(t, "-t", memory, "serve")
	c := connect(t, s.addr)
	c.attach(1, 2)
	if _, err := c.readMem(2, 1, text, 4<<10); err != nil {
		t.Errorf("vm0's code: %v", err)
	}
	if err := os.Truncate(memory, 0); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the server is still there for the second time
		if r := c.cmd(fmt.Sprintf("m%x,1000", text)); !strings.HasPrefix(r, "E.") || !strings.Contains(r, memory+" is not readable any more at its byte") {
			t.Errorf("behind the end of a shortened file: %.200q", r)
		}
	}
	c.ok("D;1", "D;2")
}

// killQEMU ends QEMU with kill -9, and returns the memory file that is left for the
// rest of the test.
func killQEMU(t *testing.T, l *lab.Lab) string {
	t.Helper()
	memory := l.MemoryFile + ".left" // the lab's end removes the other name
	if err := os.Link(l.MemoryFile, memory); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(memory) })
	suite.crashed[l] = append(suite.crashed[l], "l1")
	if err := syscall.Kill(l.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "QEMU ends", endLimit, func() bool { return syscall.Kill(l.PID, 0) != nil })
	return memory
}

// TestCrashFromMemoryAlone: L2 dies of sysrq c, then QEMU of kill -9. The memory file
// alone has L2's last words, the stack of the task that crashed, and its symbols. A
// watch has kept both deaths.
func TestCrashFromMemoryAlone(t *testing.T) {
	l := ownLab(t, lab.Options{Name: *prefix + "-crash"})
	want := guestSymbol(t, l, "vm0", "sysrq_handle_crash")
	if text := must(t, l, "report"); strings.Count(text, "\n-- log") != 2 || !strings.Contains(text, "no kernel's log tells of") {
		t.Errorf("before it, report says\n%s", text)
	}
	w := watchLab(t, l)
	begun := crash(t, l, "vm0", "vm0")
	panicked := w.incident(t, "crash", "vm0", begun)
	killed := time.Now()
	memory := killQEMU(t, l)
	gone := w.incident(t, "crash", "qemu", killed)
	w.ended(t)
	checkKeptCrash(t, panicked.Saved, "vm0", want)
	checkSameMemory(t, gone.Saved, memory)
	dead := func(args ...string) string {
		t.Helper()
		r := nestdbg(t, append([]string{"-t", memory}, args...)...)
		if r.status != 0 {
			t.Errorf("%q: %+v", args, r)
		}
		return r.stdout
	}
	begin := time.Now()
	if log := dead("-m", "vm0", "dmesg"); !strings.Contains(log, "Kernel panic - not syncing: sysrq triggered crash") {
		t.Errorf("L2's log ends with\n%s", log[max(0, len(log)-2000):])
	}
	t.Logf("the first answer took %v", time.Since(begin))
	checkCrashStack(t, dead("-m", "vm0", "bt"))
	if got := dead("-m", "vm0", "sym", "sysrq_handle_crash"); !strings.Contains(got, fmt.Sprintf("%x", want)) {
		t.Errorf("sym says %q, the guest said %#x", got, want)
	}
	if text := dead("report"); !strings.Contains(text, "\nvm0 panic at ") || !strings.Contains(text, " sysrq_handle_crash+") {
		t.Errorf("report says\n%s", text)
	}
	if ps := dead("-m", "l1", "ps"); !strings.Contains(ps, "qemu") {
		t.Errorf("L1's processes are\n%s", ps)
	}
	checkDeadRefuses(t, memory)
	checkShortened(t, memory, want)
}

// TestL1CrashFromMemoryAlone: the same of L1. The registers of its CPUs are gone; the
// stack of the task that crashed is a guess, and says so. A watch has kept L1's death
// with registers, and before it a guest that crashed and whose VMM was killed, and one that hung.
func TestL1CrashFromMemoryAlone(t *testing.T) {
	l := ownLab(t, lab.Options{Name: *prefix + "-l1crash", Append: "panic=0", VMs: 2})
	ofL1, ofVM := guestSymbol(t, l, "l1", "sysrq_handle_crash"), guestSymbol(t, l, "vm1", "sysrq_handle_crash")
	name := look(t, l).names(t, l)["vm1"].Name // by its place in memory
	w := watchLab(t, l, "--hang-after", "5s")
	guest := w.incident(t, "crash", name, crash(t, l, "vm1", name))
	ask(t, l, "l1", "vm kill 1")
	if text := must(t, l, "status"); strings.Count(text, "mapped by") != 1 {
		t.Errorf("vm1 is there still:\n%s", text)
	}
	checkHang(t, l, w)
	whole := w.incident(t, "crash", "l1", crash(t, l, "l1", "l1"))
	memory := killQEMU(t, l)
	w.ended(t)
	checkKeptCrash(t, guest.Saved, name, ofVM)
	checkKeptCrash(t, whole.Saved, "l1", ofL1)
	if log := nestdbg(t, "-t", memory, "-m", "l1", "dmesg").stdout; !strings.Contains(log, "Kernel panic - not syncing: sysrq triggered crash") {
		t.Errorf("L1's log ends with\n%s", log[max(0, len(log)-2000):])
	}
	stacks := nestdbg(t, "-t", memory, "-m", "l1", "bt", "--all").stdout
	i := strings.Index(stacks, "sysrq_handle_crash")
	if i < 0 {
		t.Fatalf("no stack of the task that crashed:\n%s", stacks)
	}
	begin, end := strings.LastIndex(stacks[:i], "\n\n"), strings.Index(stacks[i:], "\n\n")
	crashed := stacks[max(begin, 0) : i+end]
	checkFrames(t, crashed, " ? sysrq_handle_crash+", " ? write_sysrq_trigger+", " ? vfs_write+", " ? ksys_write+",
		" ? entry_SYSCALL_64_after_hwframe+", " ? user mode", "a guess from what is on its stack")
	checkStopped(t, memory, stacks)
	// Its guest is as it was left.
	if r := nestdbg(t, "-t", memory, "-m", "vm0", "ps"); r.status != 0 || !strings.Contains(r.stdout, "nestdbg") {
		t.Errorf("vm0's processes: %+v", r)
	}
}

// checkStopped: the CPU that L1's panic stopped has the registers that the interrupt for
// that saved, says so, and its stack from there on is no guess; the other one has none.
func checkStopped(t *testing.T, memory, stacks string) {
	t.Helper()
	stopped := 0
	for stack := range strings.SplitSeq(stacks, "\n\n") {
		head, frames, _ := strings.Cut(strings.TrimSpace(stack), "\n")
		if !strings.HasPrefix(head, "l1 CPU ") || !strings.Contains(head, ", from the registers ") {
			continue
		}
		stopped++
		if !strings.Contains(head, "sysvec_reboot interrupted") && !strings.Contains(head, "of user mode") || !strings.Contains(head, "offline, as panic leaves it") {
			t.Errorf("a CPU's registers are from: %s", head)
		}
		if strings.Contains(frames, " ? ") || strings.Contains(frames, "caller of ") || !strings.HasPrefix(frames, "#0  0x") {
			t.Errorf("%s\n%s", head, frames)
		}
	}
	var regs struct {
		CPUs []struct {
			Source    string
			Registers map[string]*string
		}
	}
	text := kept(t, memory, "-m", "l1", "regs", "--json")
	if err := json.Unmarshal([]byte(text), &regs); err != nil {
		t.Fatal(err)
	}
	known := 0
	for _, c := range regs.CPUs {
		if c.Registers["rip"] != nil && c.Registers["rsp"] != nil && strings.HasPrefix(c.Source, "registers ") {
			known++
		}
	}
	if stopped != 1 || known != 1 || len(regs.CPUs) != 2 {
		t.Errorf("%d of 2 CPUs were stopped, %d have registers:\n%s\n%s", stopped, known, stacks, text)
	}
	if text := kept(t, memory, "status"); strings.Count(text, "lost  pc 0x") != 1 || strings.Count(text, ", from the registers ") != 1 {
		t.Errorf("status says\n%s", text)
	}
}

// checkCrashStack: the frames from panic down to the system call, in this order.
func checkCrashStack(t *testing.T, text string) {
	t.Helper()
	checkFrames(t, text, " panic+", " sysrq_handle_crash+", " write_sysrq_trigger+", " vfs_write+", " ksys_write+",
		" entry_SYSCALL_64_after_hwframe+", "user mode")
}

// checkFrames: these are in the text, in this order.
func checkFrames(t *testing.T, text string, frames ...string) {
	t.Helper()
	rest := text
	for _, frame := range frames {
		_, after, ok := strings.Cut(rest, frame)
		if !ok {
			t.Fatalf("no%s where it belongs:\n%s", frame, text)
		}
		rest = after
	}
}

// checkDeadRefuses: gdb looks at a file, and what would write or resume it is refused
// in a line.
func checkDeadRefuses(t *testing.T, path string) {
	t.Helper()
	for _, args := range [][]string{{"write", "linux_banner", "00", "--yes"}, {"dmesg", "-w"}, {"snapshot", "save", filepath.Join(t.TempDir(), "x")}} {
		r := nestdbg(t, append([]string{"-t", path, "-m", "vm0"}, args...)...)
		if r.status != 2 || strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, "a file cannot be written or resumed") {
			t.Errorf("%q: %+v", args, r)
		}
	}
	// Which of the machines that were to run stands before gdb then is not said: gdb resumes
	// them all, and sets breakpoints in each before.
	r := nestdbg(t, "-t", path, "gdb", "--", "-nx", "-batch", "-ex", "inferior 2", "-ex", "bt", "-ex", "inferior 1",
		"-ex", "p/x *(int*)&linux_banner", "-ex", "break schedule", "-ex", "continue", "-ex", "set var *(int*)&linux_banner=0", "-ex", "inferior 1", "-ex", "monitor ps")
	frames := strings.Contains(r.stdout, "in panic (") && strings.Contains(r.stdout, "in sysrq_handle_crash (")
	if !frames || !strings.Contains(r.stdout, "= 0x756e694c") || !strings.Contains(r.stdout+r.stderr, "cannot be written or resumed") ||
		!strings.Contains(r.stderr, "Cannot access memory at address") || !strings.Contains(r.stdout+r.stderr, "qemu") {
		t.Errorf("gdb: %+v", r)
	}
}
