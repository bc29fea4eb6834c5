package tests

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nestdbg/lab"
)

// TestMonitorLinux: Linux under a hypervisor of which nestdbg is told nothing. What it
// says of itself, and every page of the second stage by the hypervisor's word, is what
// nestdbg says; a session with gdb; and the same from memory alone when QEMU is gone.
func TestMonitorLinux(t *testing.T) {
	l, truth := bootMonitor(t, lab.Options{Kernel: lab.DefaultKernel})
	second := decode[monitorMaps](t, must(t, l, "maps", "-m", "vm0", "--stage", "2", "--json"))
	comparePages(t, "vm0 stage 2", expand(second, nil), pages(truth["vm0"].Second))
	live := func(args ...string) string { return must(t, l, append(args, "-m", "vm0")...) }
	checkMonitorLinux(t, l, live)

	script := filepath.Join("testdata", "monitor", "linux.gdb")
	expectScript(t, script, monitorGDB(t, []string{"-t", fmt.Sprint(l.PID)}, script))

	checkMonitorLinux(t, l, askMemory(t, killQEMU(t, l)))
}

// TestMonitorLinuxHangs: a Linux that stays in its panic, from memory alone. It has the machine, so it
// has never come back to the monitor, and nobody has its registers: the stack is found by what is on it.
func TestMonitorLinuxHangs(t *testing.T) {
	l, _ := bootMonitor(t, lab.Options{Kernel: lab.DefaultKernel})
	file := panicLinux(t, l)
	ask := askMemory(t, file)
	checkMonitorLinux(t, l, ask)
	checkPanic(t, ask)
	script := filepath.Join("testdata", "monitor", "linux-dead.gdb")
	expectScript(t, script, monitorGDB(t, []string{"-t", file}, script))
}

// panicLinux lets the Linux under the monitor panic and stay there, ends QEMU and returns its memory.
func panicLinux(t *testing.T, l *lab.Lab) string {
	t.Helper()
	console, err := net.Dial("unix", filepath.Join(l.Dir, "l1.console"))
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	go io.Copy(io.Discard, console) // QEMU waits for who is connected and does not read
	if _, err := io.WriteString(console, "echo 0 > /proc/sys/kernel/panic; echo c > /proc/sysrq-trigger\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it panics", commandLimit, func() bool {
		said, err := os.ReadFile(l.Machines[0].Log)
		return err == nil && strings.Contains(string(said), "---[ end Kernel panic")
	})
	return killQEMU(t, l)
}

// askMemory asks nestdbg about the VM in a memory file.
func askMemory(t *testing.T, file string) func(args ...string) string {
	return func(args ...string) string {
		t.Helper()
		args = append([]string{"-t", file, "-m", "vm0"}, args...)
		r := nestdbg(t, args...)
		if r.status != 0 {
			t.Fatalf("nestdbg %q: status %d, %s", args, r.status, r.stderr)
		}
		return r.stdout
	}
}

// checkPanic: the log, the report and the stack of the task that did it, which is called a guess.
func checkPanic(t *testing.T, ask func(args ...string) string) {
	t.Helper()
	const why = "Kernel panic - not syncing: sysrq triggered crash"
	if log := ask("dmesg"); !strings.Contains(log, why) {
		t.Errorf("no panic in the log:\n%s", log)
	}
	_, pid, _ := strings.Cut(ask("dmesg"), "CPU: 0 PID: ")
	pid, _, _ = strings.Cut(pid, " ")
	report := ask("report")
	died, _, _ := strings.Cut(report, "== the tower ==")
	if !strings.Contains(died, "(CPU 0, task "+pid+"): "+why) {
		t.Errorf("task %s panicked, the report says\n%s", pid, died)
	}
	var got []string
	for _, s := range decode[struct {
		Stacks []struct {
			Task   *struct{ PID int }
			Frames []struct {
				Symbol string
				Guess  bool
			}
		}
	}](t, ask("bt", "--all", "--json")).Stacks {
		if s.Task == nil || fmt.Sprint(s.Task.PID) != pid {
			continue
		}
		for _, f := range s.Frames {
			got = append(got, f.Symbol)
			if !f.Guess {
				t.Errorf("frame %+v is no guess", f)
			}
		}
	}
	// As in the log, but for what is above: panic, if it was in a call when the machine ended.
	want := []string{"sysrq_handle_crash", "__handle_sysrq.cold", "write_sysrq_trigger", "proc_reg_write", "vfs_write", "ksys_write",
		"do_syscall_64", "entry_SYSCALL_64_after_hwframe", ""}
	if at := slices.Index(got, want[0]); at < 0 || at > 0 && got[at-1] != "panic" || !slices.Equal(got[at:], want) {
		t.Errorf("the stack of task %s is %q\n%s", pid, got, ask("bt"))
	}
}

// checkMonitorLinux compares what the guest said on its console with nestdbg's answers.
func checkMonitorLinux(t *testing.T, l *lab.Lab, ask func(args ...string) string) {
	t.Helper()
	told := func(what string) []string {
		out, err := l.LinuxTold(what)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if status := ask("status"); !strings.Contains(status, "Linux "+told("release")[0]+",") {
		t.Errorf("the kernel is %s, status is\n%s", told("release")[0], status)
	}
	symbols := told("symbols")
	if len(symbols) != 6 {
		t.Errorf("the guest told %q", symbols)
	}
	for _, s := range symbols {
		word := strings.Fields(s) // address, type, name
		if got := ask("sym", word[2]); !strings.HasPrefix(got, "0x"+word[0]+" "+word[1]+" "+word[2]+"+0x0") {
			t.Errorf("%s is %s", s, got)
		}
	}
	log := strings.Split(ask("dmesg"), "\n")
	want := told("log")
	const stamp = len("[    0.000000] ") // which nestdbg gives a record, and the guest each of its lines
	for i, line := range want {
		if i < len(log) && strings.HasPrefix(log[i], strings.Repeat(" ", stamp)) {
			log[i] = line[:min(stamp, len(line))] + log[i][stamp:]
		}
		if i >= len(log) || log[i] != line {
			t.Fatalf("line %d of the log is %q, the guest had %q", i, log[min(i, len(log)-1)], line)
		}
	}
	if len(want) < 100 {
		t.Errorf("%d lines of log", len(want))
	}
	tasks := decode[struct {
		Tasks []struct {
			PID  int
			Comm string
		}
	}](t, ask("ps", "--json"))
	known := make(map[string]bool)
	for _, x := range tasks.Tasks {
		known[fmt.Sprintf("%d (%s", x.PID, x.Comm)] = true
	}
	count := 0
	for _, x := range told("tasks") {
		// Workers are named after their last work, and who asked is gone.
		if strings.Contains(x, "kworker") || strings.Contains(x, "busybox") || strings.Contains(x, "(cat)") {
			continue
		}
		pid, name, _ := strings.Cut(strings.TrimSuffix(x, ")"), " (")
		if count++; !known[pid+" ("+name[:min(len(name), 15)]] { // of a thread's name the task has 15 bytes
			t.Errorf("task %s is not in the list", x)
		}
	}
	if count < 20 {
		t.Errorf("%d tasks", count)
	}
}
