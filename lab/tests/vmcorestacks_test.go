package tests

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"nestdbg/lab"
)

// drgnStacks prints the program counters of every task that is on no CPU and has a stack.
const drgnStacks = `
from drgn.helpers.linux.pid import for_each_task
for t in for_each_task(prog):
    if not t.on_cpu and t.stack.value_(): # one that has ended has none
        pcs = []
        try:
            for f in prog.stack_trace(t):
                pcs.append("%x" % f.pc)
        except LookupError: # of the frame behind the last
            pass
        print("STACK", t.pid.value_(), *pcs)
`

// TestVmcoreStacks opens each machine's dump with others' tools, for what they say of
// tasks: drgn's stacks are nestdbg's, gdb reads a structure, crash's tasks and modules are
// nestdbg's, and crash says of L1 what it says of a dump that QEMU made of that machine.
func TestVmcoreStacks(t *testing.T) {
	l := sharedLab(t, "kaslr")
	for _, m := range []string{"vm0", "l1"} { // a task that has ended, and whose parent does not ask for it
		ask(t, l, m, "exec (sleep 0 & exec sleep 60) >/dev/null 2>&1 &")
	}
	stopWhere(t, l, false) // crash understands QEMU's dump only if its registers are L1's
	for _, m := range []string{"vm0", "l1"} {
		t.Run(m, func(t *testing.T) {
			vmlinux, dir := vendorFile(t, l, m), t.TempDir()
			file := filepath.Join(dir, "core")
			must(t, l, "export", "vmcore", "-m", m, "-o", file)
			checkDrgnStacks(t, l, m, file, vmlinux)
			checkGDBCore(t, l, m, file)
			checkCrashAgrees(t, l, m, file, vmlinux)
			if m == "l1" {
				checkCrashTasks(t, l, file, vmlinux)
			}
		})
	}
}

// checkDrgnStacks compares the stack of every task that sleeps.
func checkDrgnStacks(t *testing.T, l *lab.Lab, machine, file, vmlinux string) {
	t.Helper()
	script := filepath.Join(t.TempDir(), "script.py")
	if err := os.WriteFile(script, []byte(drgnStacks), 0o600); err != nil {
		t.Fatal(err)
	}
	theirs := make(map[int][]uint64)
	for line := range strings.Lines(tool(t, "", "drgn", "-q", "-c", file, "-s", vmlinux, script)) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "STACK" {
			continue
		}
		pid, err := strconv.Atoi(words[1])
		if err != nil {
			t.Fatalf("drgn said %q", line)
		}
		theirs[pid] = []uint64{}
		for _, w := range words[2:] {
			pc, err := strconv.ParseUint(w, 16, 64)
			if err != nil {
				t.Fatalf("drgn said %q", line)
			}
			theirs[pid] = append(theirs[pid], pc)
		}
	}
	compared, frames := 0, 0
	for _, s := range decode[stackReport](t, must(t, l, "bt", "--all", "-m", machine, "--json")).Stacks {
		if s.CPU != nil || s.Task == nil {
			continue
		}
		want, ok := theirs[s.Task.PID]
		if !ok {
			continue
		}
		var got []uint64
		for _, f := range s.Frames {
			if f.PC >= 1<<63 { // in the kernel
				got = append(got, uint64(f.PC))
			}
		}
		want = slices.DeleteFunc(want, func(pc uint64) bool { return pc < 1<<63 })
		// Functions that were inlined are frames to drgn, with the same program counter.
		// It was given no module's file, and goes no further than to the first module.
		want = slices.Compact(want)
		const modules = 0xffffffffc0000000 // Linux Documentation/x86/x86_64/mm.rst
		if n := len(want); n > 0 && n < len(got) && want[n-1] >= modules {
			got = got[:n]
		}
		if !slices.Equal(got, want) {
			t.Errorf("task %d: drgn %x, nestdbg %x, %s", s.Task.PID, want, got, s.Error)
		}
		compared, frames = compared+1, frames+len(got)
	}
	if compared < len(theirs)*9/10 || compared < 20 || frames < 4*compared {
		t.Errorf("only %d stacks with %d frames compared, drgn has %d", compared, frames, len(theirs))
	}
	t.Logf("%s: %d stacks with %d frames are the same to drgn", machine, compared, frames)
}

// checkGDBCore opens the dump in plain gdb, with the file that nestdbg makes of the
// kernel.
func checkGDBCore(t *testing.T, l *lab.Lab, machine, file string) {
	t.Helper()
	vmlinux := filepath.Join(t.TempDir(), "vmlinux")
	must(t, l, "export", "vmlinux", "-m", machine, "-o", vmlinux)
	out := tool(t, "", "gdb", "-nx", "-batch", "-ex", "set width 0", "-ex", "core-file "+file, "-ex", "symbol-file "+vmlinux,
		"-ex", `printf "BANNER %s", (char *)&linux_banner`, "-ex", `printf "COMM %s\n", init_task.comm`, "-ex", "info threads")
	banner := string(examine(t, l, machine, "linux_banner", 40))
	if !strings.Contains(out, "BANNER "+banner) || !strings.Contains(out, "COMM swapper/0\n") {
		t.Errorf("gdb does not say %q and swapper/0:\n%s", banner, out)
	}
	for i := range decode[registersReport](t, must(t, l, "regs", "-m", machine, "--json")).CPUs {
		if !strings.Contains(out, fmt.Sprintf(" %d ", i+1)) {
			t.Errorf("gdb shows no thread %d:\n%s", i+1, out)
		}
	}
}

// checkCrashTasks compares crash's answers on the export of L1 with those on a dump
// that QEMU made.
func checkCrashTasks(t *testing.T, l *lab.Lab, file, vmlinux string) {
	t.Helper()
	dump := filepath.Join(t.TempDir(), "dump")
	dumpMemory(t, l, "elf", dump)
	answers := func(of string) string {
		out := tool(t, "ps\nmod\nbt 1\nquit\n", "crash", "-s", vmlinux, of)
		return strings.ReplaceAll(out, of, "FILE")
	}
	want, got := answers(dump), answers(file)
	if want != got || !strings.Contains(got, "swapper/0") {
		t.Errorf("crash says of QEMU's dump\n%s\nand of the export\n%s", want, got)
	}
}

var (
	// crashTask is a line of crash's ps: process, parent, CPU, task_struct, state, ... name.
	crashTask = regexp.MustCompile(`(?m)^[> ] +(\d+) +(\d+) +(\d+) +([0-9a-f]{16}) +[A-Z]{2} .* (\S.*)$`)
	// crashModule is one of its mod: struct module, name, base, size.
	crashModule = regexp.MustCompile(`(?m)^[0-9a-f]{16} +(\S+) +([0-9a-f]{16}) +(\d+) `)
)

// checkCrashAgrees compares what crash finds of tasks and modules in the dump with what
// nestdbg says of the machine. Debian 12's crash finds no other tasks of a late 6.1 kernel
// than those that its CPUs run, in a dump of QEMU's own neither, and no stack of them.
func checkCrashAgrees(t *testing.T, l *lab.Lab, machine, file, vmlinux string) {
	t.Helper()
	var has struct {
		CPUs []struct {
			Task struct {
				PID  int
				Comm string
				Addr address
			}
		}
		Tasks []struct {
			PID  int
			Comm string
			Addr address
		}
		Modules []struct {
			Name string
			Size uint64
			Base address
		}
	}
	for _, q := range [][]string{{"current"}, {"ps", "--threads"}, {"lsmod"}} {
		if err := json.Unmarshal([]byte(must(t, l, append(q, "-m", machine, "--json")...)), &has); err != nil {
			t.Fatal(err)
		}
	}
	ours, running, theirs := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, c := range has.CPUs {
		what := fmt.Sprintf("task %d %016x %s", c.Task.PID, uint64(c.Task.Addr), c.Task.Comm)
		ours[what], running[what] = true, true
	}
	for _, x := range has.Tasks {
		ours[fmt.Sprintf("task %d %016x %s", x.PID, uint64(x.Addr), x.Comm)] = true
	}
	for _, m := range has.Modules {
		what := fmt.Sprintf("module %s %016x %d", m.Name, uint64(m.Base), m.Size)
		ours[what], running[what] = true, true
	}
	out := tool(t, "ps\nmod\nquit\n", "crash", "-s", vmlinux, file)
	for _, m := range crashTask.FindAllStringSubmatch(out, -1) {
		theirs[fmt.Sprintf("task %s %s %s", m[1], m[4], strings.Trim(m[5], "[]"))] = true
	}
	for _, m := range crashModule.FindAllStringSubmatch(out, -1) {
		theirs[fmt.Sprintf("module %s %s %s", m[1], m[2], m[3])] = true
	}
	for what := range theirs {
		if !ours[what] {
			t.Errorf("only crash has %s", what)
		}
	}
	for what := range running {
		if !theirs[what] {
			t.Errorf("crash lacks %s:\n%s", what, out)
		}
	}
	if len(has.Modules) == 0 || len(has.CPUs) == 0 {
		t.Errorf("%+v", has)
	}
	t.Logf("%s: %d tasks and modules are the same to crash", machine, len(theirs))
}
