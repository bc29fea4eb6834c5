package tests

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"

	"nestdbg/lab"
)

// What the commands dmesg, ps, lsmod, sym and bt say, against the guest's own word.

type logReport struct {
	Machine  string
	Records  []logRecord
	Lost     []lostRun
	Problems []string
}

type logRecord struct {
	Seq       uint64
	TimeNs    uint64 `json:"time_ns"`
	Level     int
	LevelName string `json:"level_name"`
	Facility  int
	Subsystem string
	Device    string
	Text      string
}

type lostRun struct{ From, To uint64 }

// parseKmsg reads records of /dev/kmsg (Linux Documentation/ABI/testing/dev-kmsg):
// "PRIORITY,SEQ,MICROSECONDS,FLAGS;TEXT", then lines " KEY=VALUE". Bytes that do
// not print, and backslashes, are \xHH.
func parseKmsg(t testing.TB, text string) []logRecord {
	t.Helper()
	var out []logRecord
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if pair, ok := strings.CutPrefix(line, " "); ok && len(out) > 0 {
			key, value, _ := strings.Cut(pair, "=")
			switch key {
			case "SUBSYSTEM":
				out[len(out)-1].Subsystem = value
			case "DEVICE":
				out[len(out)-1].Device = value
			}
			continue
		}
		head, message, _ := strings.Cut(line, ";")
		f := strings.Split(head, ",")
		if len(f) < 4 {
			t.Fatalf("kmsg line %q", line)
		}
		var n [3]uint64
		for i := range n {
			v, err := strconv.ParseUint(f[i], 10, 64)
			if err != nil {
				t.Fatalf("kmsg line %q: %v", line, err)
			}
			n[i] = v
		}
		out = append(out, logRecord{Seq: n[1], TimeNs: 1000 * n[2], Level: int(n[0] & 7), Facility: int(n[0] >> 3),
			Text: unescapeKmsg(t, message)})
	}
	return out
}

func unescapeKmsg(t testing.TB, s string) string {
	t.Helper()
	var b strings.Builder
	for {
		plain, rest, escaped := strings.Cut(s, `\x`)
		b.WriteString(plain)
		if !escaped {
			return b.String()
		}
		if len(rest) < 2 {
			t.Fatalf("kmsg text %q", s)
		}
		b.Write(unhex(t, rest[:2]))
		s = rest[2:]
	}
}

// TestLog compares the whole log with /dev/kmsg, which has microseconds. What is
// logged after that was read does not count.
func TestLog(t *testing.T) { eachMachine(t, checkLog) }

func checkLog(t *testing.T, l *lab.Lab, name string) {
	// A record of several lines, with bytes that do not print.
	ask(t, l, name, `exec printf '<12>one\ntwo \\ \033[31m\303\251' > /dev/kmsg`)
	want := parseKmsg(t, ask(t, l, name, "kmsg"))
	got := decode[logReport](t, must(t, l, "dmesg", "--json", "-m", name))
	if len(got.Problems)+len(got.Lost) > 0 || got.Machine != name {
		t.Errorf("%s: %s, problems %v, lost %v", name, got.Machine, got.Problems, got.Lost)
	}
	again := parseKmsg(t, ask(t, l, name, "kmsg"))
	last := want[len(want)-1].Seq
	records := slices.DeleteFunc(got.Records, func(r logRecord) bool { return r.Seq > last })
	for i := range records {
		records[i].TimeNs -= records[i].TimeNs % 1000
		records[i].LevelName = ""
	}
	// What was overwritten before nestdbg looked is gone for the guest, too.
	first, oldest := records[0].Seq, again[0].Seq
	want = slices.DeleteFunc(want, func(r logRecord) bool { return r.Seq < first && r.Seq < oldest })
	compareSets(t, name+": log", records, want, func(a, b logRecord) int {
		return cmp.Or(cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.TimeNs, b.TimeNs), cmp.Compare(a.Level, b.Level),
			cmp.Compare(a.Facility, b.Facility), cmp.Compare(a.Text, b.Text),
			cmp.Compare(a.Subsystem, b.Subsystem), cmp.Compare(a.Device, b.Device))
	})
	t.Logf("%s: %d records", name, len(want))
	if text := must(t, l, "dmesg", "-m", name, "--level", "warn", "--facility", "user"); !strings.Contains(text,
		"] one\n"+strings.Repeat(" ", len("[00000.000000] "))+`two \ \x1b[31mé`+"\n") {
		t.Errorf("%s: as text:\n%s", name, text)
	}
}

// TestPS compares with what the guest lists, as TestTasks does, and the command
// lines with those in /proc.
func TestPS(t *testing.T) { eachMachine(t, checkPS) }

// psTask is a task as ps has it.
type psTask struct {
	PID, TGID, PPID int
	State, Comm     string
	CPU             *int
	OnCPU           bool `json:"on_cpu"`
	Kernel          bool
	Command         []string
	CommandError    string `json:"command_error"`
}

func checkPS(t *testing.T, l *lab.Lab, name string) {
	startOddTasks(t, l, name)
	before := guestTasks(t, l, name)
	r := decode[struct {
		Tasks    []psTask
		Problems []string
	}](t, must(t, l, "ps", "-T", "--json", "-m", name))
	commands := guestCommands(t, l, name)
	after := guestTasks(t, l, name)
	got := make(map[int]psTask)
	for _, x := range r.Tasks {
		got[x.PID] = x
	}
	lasting, userspace, cut := 0, 0, 0
	states := make(map[string]int)
	for pid, want := range before {
		again, ok := after[pid]
		if !ok || again.TGID != want.TGID || again.Comm != want.Comm {
			continue // ended, or became another program
		}
		lasting++
		x := got[pid]
		comm := x.Comm == jsonText(want.Comm) || x.Kernel && strings.HasPrefix(want.Comm, x.Comm)
		if x.PID != pid || x.TGID != want.TGID || x.PPID != want.PPID || !comm || x.Kernel != ofKernel(want) {
			t.Errorf("%s: task %+v, want %+v", name, x, want)
		}
		if stoodStill(want, again) {
			states[x.State]++
			if x.State != want.State || x.CPU == nil || *x.CPU != want.CPU || x.OnCPU {
				t.Errorf("%s: task %+v, want state %s, last on CPU %d", name, x, want.State, want.CPU)
			}
		}
		command := commands[want.TGID]
		if len(command) > 0 {
			userspace++
		}
		switch {
		case x.CommandError != "":
			cut++
			whole, part := strings.Join(command, "\x00"), strings.Join(x.Command, "\x00")
			if len(whole) <= 128<<10 || len(part) != 128<<10 || !strings.HasPrefix(whole, part) {
				t.Errorf("%s: of the command line of %d, %d bytes, are %d read: %s", name, pid, len(whole), len(part), x.CommandError)
			}
		case !slices.Equal(x.Command, command):
			t.Errorf("%s: command line of %d: %q, want %q", name, pid, x.Command, command)
		}
	}
	checkStates(t, name, states)
	if lasting < 30 || userspace < 5 || cut != 1 || len(r.Problems) > 0 {
		t.Errorf("%s: %d tasks, %d command lines, %d of them cut, problems %v", name, lasting, userspace, cut, r.Problems)
	}
	t.Logf("%s: %d tasks compared, %d command lines; states of those that did not run: %v", name, lasting, userspace, states)
}

// guestCommands asks a guest for the arguments of its processes, as JSON has them.
func guestCommands(t *testing.T, l *lab.Lab, guest string) map[int][]string {
	t.Helper()
	out := make(map[int][]string)
	for line := range strings.Lines(ask(t, l, guest, "commands")) {
		pid := 0
		var b []byte
		if n, err := fmt.Sscanf(line, "%d %x", &pid, &b); n != 2 {
			t.Fatalf("line %q: %v", line, err)
		}
		for arg := range strings.SplitSeq(strings.TrimSuffix(string(b), "\x00"), "\x00") {
			out[pid] = append(out[pid], jsonText(arg))
		}
	}
	return out
}

// jsonText is what Go makes of text in JSON, in which each byte that is no UTF-8 is a lone
// surrogate (report.Raw).
func jsonText(s string) string { return string([]rune(s)) }

// TestLsmod compares with /proc/modules and the notes in /sys.
func TestLsmod(t *testing.T) { eachMachine(t, checkLsmod) }

func checkLsmod(t *testing.T, l *lab.Lab, name string) {
	compareModules(t, l, name, func() (out []procModule) {
		for _, m := range lsmod(t, l, name) {
			if m.Refs == nil || m.UsedBy == nil {
				t.Fatalf("%s: nothing is known of who needs %s", name, m.Name)
			}
			out = append(out, procModule{m.Name, m.Size, *m.Refs, m.UsedBy, m.Permanent, m.State, uint64(m.Base), m.Taints})
		}
		return out
	})
	for _, m := range lsmod(t, l, name) {
		note := ask(t, l, name, "cat /sys/module/"+m.Name+"/notes/.note.gnu.build-id")
		if id := hex.EncodeToString([]byte(note[max(len(note)-20, 0):])); id != m.BuildID {
			t.Errorf("%s: build id of %s is %q, want %q", name, m.Name, m.BuildID, id)
		}
	}
}

// lsmodModule is a module as lsmod has it.
type lsmodModule struct {
	Name, State, Taints string
	Size                uint64
	Refs                *int
	UsedBy              []string `json:"used_by"`
	Permanent           bool
	Base                address
	BuildID             string `json:"build_id"`
}

func lsmod(t *testing.T, l *lab.Lab, name string) []lsmodModule {
	t.Helper()
	return decode[struct{ Modules []lsmodModule }](t, must(t, l, "lsmod", "--json", "-m", name)).Modules
}

// TestSym asks for names and addresses, in the kernel and in a module.
func TestSym(t *testing.T) { eachMachine(t, checkSym) }

// symbolReport is what sym says.
type symbolReport struct {
	Symbols []struct {
		Name, Module, Type string
		Addr, Offset       address
		Size               *uint64
	}
}

func checkSym(t *testing.T, l *lab.Lab, name string) {
	all := parseSymbols(t, ask(t, l, name, "kallsyms"))
	var places []uint64 // of the kernel's own
	for _, s := range all {
		if s.module == "" {
			places = append(places, s.addr)
		}
	}
	slices.Sort(places)
	sym := func(what string) symbolReport {
		return *decode[symbolReport](t, must(t, l, "sym", "--json", "-m", name, what))
	}
	ofModule := map[string]string{"l1": "kvm_vcpu_ioctl", "vm0": "vring_interrupt"}[name]
	for _, symbol := range []string{"schedule", "jiffies", ofModule, "cleanup_module"} {
		want, got := make(map[uint64]string), make(map[uint64]string)
		for _, s := range all {
			if s.name == symbol {
				want[s.addr] = s.module
			}
		}
		for _, s := range sym(symbol).Symbols {
			got[uint64(s.Addr)] = s.Module
			checkSize(t, s.Module, uint64(s.Addr), s.Size, places)
		}
		if !maps.Equal(got, want) || len(want) == 0 {
			t.Errorf("%s: %s: %v, want %v", name, symbol, got, want)
		}
		for addr, module := range want {
			if symbol == "cleanup_module" {
				break // every module's is also its own function
			}
			r := sym(fmt.Sprintf("%#x", addr+2))
			if len(r.Symbols) != 1 || r.Symbols[0].Module != module || uint64(r.Symbols[0].Addr) != addr || r.Symbols[0].Offset != 2 {
				t.Errorf("%s: %#x: %+v", name, addr+2, r)
				continue
			}
			checkSize(t, module, addr, r.Symbols[0].Size, places)
		}
	}
	for _, wrong := range []string{"no_such_symbol", "0x1000", "pa:0x1000"} {
		if r := nestdbg(t, on(l, "sym", "-m", name, wrong)...); r.status != 2 || r.stdout != "" {
			t.Errorf("%s: %s: %+v", name, wrong, r)
		}
	}
}

// checkSize checks that a symbol of the kernel ends at the next one. Of a module's the
// guest does not say.
func checkSize(t *testing.T, module string, addr uint64, size *uint64, places []uint64) {
	t.Helper()
	next := sort.Search(len(places), func(i int) bool { return places[i] > addr })
	switch {
	case size == nil:
		t.Errorf("%#x [%s]: no size", addr, module)
	case module == "" && *size != places[next]-addr:
		t.Errorf("%#x: size %#x, the next symbol is at %#x", addr, *size, places[next])
	}
}

type stackReport struct {
	Stacks []struct {
		CPU   *int
		State string
		Task  *struct {
			PID, TGID int
			Comm      string
		}
		Frames []stackFrame
		Error  string
	}
	Problems []string
}

type stackFrame struct {
	PC                       address
	Symbol, Module           string
	Offset                   address
	Size                     *uint64
	Interrupted, User, Guess bool
}

// guestStack is what a guest says of a thread.
type guestStack struct {
	frames   []string // as in /proc/PID/stack: SYMBOL+OFFSET/SIZE [MODULE]
	switches string   // how often it was switched away from
}

// guestStacks asks a guest for the stacks of all its threads, or only for how often
// they were switched away from: a thread for which that does not change sleeps.
func guestStacks(t *testing.T, l *lab.Lab, guest string, withFrames bool) map[int]*guestStack {
	t.Helper()
	line := "exec grep -H ctxt_switches /proc/[0-9]*/task/[0-9]*/status"
	if withFrames {
		line += "; grep -H . /proc/[0-9]*/task/[0-9]*/stack"
	}
	out := make(map[int]*guestStack)
	for line := range strings.Lines(ask(t, l, guest, line+"; true")) {
		path, text, _ := strings.Cut(strings.TrimSpace(line), ":")
		f := strings.Split(path, "/") // "", proc, PID, task, TID, file
		if len(f) != 6 {
			continue // a thread that is gone
		}
		pid, err := strconv.Atoi(f[4])
		if err != nil {
			t.Fatalf("line %q", line)
		}
		if out[pid] == nil {
			out[pid] = &guestStack{}
		}
		if f[5] == "status" {
			out[pid].switches += text + " "
		} else if frame, ok := strings.CutPrefix(text, "[<0>] "); ok {
			out[pid].frames = append(out[pid].frames, frame)
		}
	}
	return out
}

// schedulerText are the functions that the kernel leaves out of /proc/PID/stack
// (Linux 6.1 kernel/sched/core.c:in_sched_functions).
func schedulerText(t *testing.T, l *lab.Lab, guest string) func(address) bool {
	t.Helper()
	var bounds [4]uint64
	for i, symbol := range []string{"__sched_text_start", "__sched_text_end", "__lock_text_start", "__lock_text_end"} {
		bounds[i] = guestSymbol(t, l, guest, symbol)
	}
	return func(a address) bool {
		return bounds[0] <= uint64(a) && uint64(a) < bounds[1] || bounds[2] <= uint64(a) && uint64(a) < bounds[3]
	}
}

// kernelFrames writes frames as /proc/PID/stack has them. For functions of modules
// the kernel says how far the next symbol is, we how long the function is: that is
// left out.
func kernelFrames(frames []stackFrame, leftOut func(address) bool) []string {
	var out []string
	for _, f := range frames {
		switch {
		case f.User || leftOut(f.PC):
		case f.Guess:
			out = append(out, "a guess: "+f.Symbol)
		case f.Module != "":
			out = append(out, fmt.Sprintf("%s+%#x [%s]", f.Symbol, uint64(f.Offset), f.Module))
		case f.Size == nil:
			out = append(out, fmt.Sprintf("%s+%#x", f.Symbol, uint64(f.Offset)))
		default:
			out = append(out, fmt.Sprintf("%s+%#x/%#x", f.Symbol, uint64(f.Offset), *f.Size))
		}
	}
	return out
}

func withoutModuleSizes(frames []string) []string {
	for i, s := range frames {
		place, module, ok := strings.Cut(s, " ")
		if slash := strings.IndexByte(place, '/'); ok && slash >= 0 {
			frames[i] = place[:slash] + " " + module
		}
	}
	return frames
}

// TestStacks compares the stacks of all threads that sleep with /proc/PID/stack:
// those that ran neither before nor after nestdbg looked. The threads of the agent
// that answers never sleep for that long.
func TestStacks(t *testing.T) { eachMachine(t, checkStacks) }

func checkStacks(t *testing.T, l *lab.Lab, name string) {
	leftOut := schedulerText(t, l, name)
	before := guestStacks(t, l, name, true)
	r := decode[stackReport](t, must(t, l, "bt", "--all", "--json", "-m", name))
	after := guestStacks(t, l, name, false)
	if len(r.Problems) > 0 {
		t.Errorf("%s: %v", name, r.Problems)
	}
	compared := 0
	var ran []string
	for _, s := range r.Stacks {
		if s.Task == nil || s.Task.PID == 0 || s.CPU != nil {
			continue
		}
		first, last := before[s.Task.PID], after[s.Task.PID]
		if first == nil || last == nil || first.switches != last.switches {
			ran = append(ran, s.Task.Comm)
			continue
		}
		compared++
		got, want := kernelFrames(s.Frames, leftOut), withoutModuleSizes(first.frames)
		if !slices.Equal(got, want) || s.Error != "" {
			t.Errorf("%s: stack of %d %s: %s\n%s\nwant\n%s", name, s.Task.PID, s.Task.Comm, s.Error,
				strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	if compared < 40 || compared < 2*len(ran) {
		t.Errorf("%s: only %d stacks compared", name, compared)
	}
	t.Logf("%s: %d stacks compared; these ran meanwhile: %s", name, compared, strings.Join(ran, ", "))
}

// TestStackOfHost takes the backtrace of a CPU of L1 that runs the guest: through
// the entry into it down to the VMM in user mode.
func TestStackOfHost(t *testing.T) { checkStackOfHost(t, sharedLab(t, "kaslr")) }

func checkStackOfHost(t *testing.T, l *lab.Lab) {
	keepBusy(t, l, "vm0", ":")
	want := []string{"__svm_vcpu_run", "kvm_arch_vcpu_ioctl_run", "do_syscall_64", "entry_SYSCALL_64_after_hwframe"}
	found := false
	eventually(t, "a CPU of l1 that hosts vm0", commandLimit, func() bool {
		for _, s := range decode[stackReport](t, must(t, l, "bt", "--all", "--json", "-m", "l1")).Stacks {
			if s.State != "hosting" {
				continue
			}
			found = true
			var names []string
			for _, f := range s.Frames {
				names = append(names, f.Symbol)
			}
			at := 0
			for _, f := range s.Frames {
				if at < len(want) && f.Symbol == want[at] {
					at++
				}
			}
			if at != len(want) || s.Error != "" || !s.Frames[len(s.Frames)-1].User || s.Task == nil ||
				s.Task.Comm != "qemu-system-x86" && !strings.HasPrefix(s.Task.Comm, "CPU ") {
				t.Errorf("CPU %d, task %+v: %v, %s", *s.CPU, s.Task, names, s.Error)
			}
		}
		return found
	})
}

// TestStackOfCPU takes backtraces of the guest's CPU at many moments, whatever it
// does then: each must come to an end without a guess.
func TestStackOfCPU(t *testing.T) { checkStackOfCPU(t, sharedLab(t, "kaslr")) }

func checkStackOfCPU(t *testing.T, l *lab.Lab) {
	keepBusy(t, l, "vm0", "cat /proc/self/maps")
	kinds := map[string]int{}
	for range 12 {
		for _, s := range decode[stackReport](t, must(t, l, "bt", "--json", "-m", "vm0")).Stacks {
			text := new(bytes.Buffer)
			for _, f := range s.Frames {
				fmt.Fprintf(text, "%#x %s\n", uint64(f.PC), f.Symbol)
				if f.Guess {
					s.Error += " guess"
				}
			}
			if s.Error != "" || len(s.Frames) == 0 {
				t.Errorf("%s: %s\n%s", s.State, s.Error, text)
				continue
			}
			switch last := s.Frames[len(s.Frames)-1]; {
			case last.User && len(s.Frames) == 1:
				kinds["user mode"]++
			case slices.ContainsFunc(s.Frames, func(f stackFrame) bool { return f.Interrupted }):
				kinds["interrupt or exception"]++
			default:
				kinds["kernel mode"]++
			}
		}
	}
	t.Log(kinds)
}
