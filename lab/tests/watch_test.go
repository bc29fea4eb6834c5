package tests

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"nestdbg/lab"
)

// watcher is a "nestdbg watch" that runs beside a lab.
type watcher struct {
	*server
	dir string // where it keeps machines
}

// noticed is a line of "watch --json" about incidents.
type noticed struct {
	Time      time.Time
	Note      string
	Saved     string
	Error     string
	Incidents []struct{ Class, Machine, What, Late string }
	Report    *struct {
		Troubles []struct{ Machine, Kind, Text string }
		Machines []struct {
			Machine  string
			PanicCPU *int `json:"panic_cpu"`
		}
	}
}

// watchLab starts a watch over a lab and waits until it knows the lab's machines.
func watchLab(t *testing.T, l *lab.Lab, args ...string) *watcher {
	t.Helper()
	w := &watcher{dir: filepath.Join(t.TempDir(), "kept")}
	w.server = start(t, append([]string{"-t", l.QMPPath, "watch", "--json", "--save", w.dir}, args...)...)
	eventually(t, "the watch begins", stopLimit, func() bool { return len(w.lines(t)) > 0 })
	time.Sleep(time.Second) // its first look; what is new after that is new to it
	return w
}

func (w *watcher) lines(t *testing.T) (out []noticed) {
	t.Helper()
	text := w.out.String()
	for line := range strings.Lines(text) {
		if !strings.HasSuffix(line, "\n") {
			break
		}
		var n noticed
		if err := json.Unmarshal([]byte(line), &n); err != nil {
			t.Fatalf("%.200q: %v", line, err)
		}
		out = append(out, n)
	}
	return out
}

// noticeSlack bounds the time from a guest's death to its notice, on a machine whose
// two processors have other things to do. On a quiet one it is a tenth of a second.
const noticeSlack = 3 * time.Second

// incident waits for an incident since a moment, and checks that it was noticed in
// time, if that moment is known, and kept.
func (w *watcher) incident(t *testing.T, class, machine string, since time.Time) noticed {
	t.Helper()
	var found noticed
	eventually(t, "the watch reports a "+class+" of "+machine, commandLimit, func() bool {
		for _, n := range w.lines(t) {
			if len(n.Incidents) > 0 && n.Incidents[0].Class == class && n.Incidents[0].Machine == machine {
				found = n
				return true
			}
		}
		return false
	})
	if took := found.Time.Sub(since.Truncate(time.Second)); !since.IsZero() {
		t.Logf("%s of %s: noticed within %v to the second, reported after %v: %s", class, machine, took, time.Since(since), found.Incidents[0].What)
		if took > noticeSlack {
			t.Errorf("too late: %+v", found)
		}
	}
	if found.Saved == "" {
		t.Errorf("not kept: %+v", found)
	}
	return found
}

// ended waits for the end of QEMU, which its watch survives, and ends the watch.
func (w *watcher) ended(t *testing.T) {
	t.Helper()
	eventually(t, "the watch waits for the next QEMU", commandLimit, func() bool {
		return strings.Contains(w.out.String(), "waiting for the next QEMU")
	})
	w.signal(syscall.SIGINT)
	if status := w.waitExit(endLimit); status != 0 || w.errOut.String() != "" {
		t.Errorf("the watch ended with %d, %s", status, w.errOut)
	}
}

// kept asks a snapshot, with QEMU gone.
func kept(t *testing.T, dir string, args ...string) string {
	t.Helper()
	r := nestdbg(t, append([]string{"-t", dir}, args...)...)
	if r.status != 0 {
		t.Errorf("%s %q: %+v", filepath.Base(dir), args, r)
	}
	return r.stdout
}

// checkHang: a guest that has something to do and whose VMM is stopped makes no
// progress. Nobody says so, and it is the only one that is left in the lab.
func checkHang(t *testing.T, l *lab.Lab, w *watcher) {
	t.Helper()
	ask(t, l, "vm0", "exec timeout 60 sh -c 'while :; do :; done' > /dev/null 2>&1 &")
	ask(t, l, "l1", "exec kill -STOP $(pidof qemu-system-x86_64)")
	n := w.incident(t, "hang", "vm0", time.Time{})
	if what := n.Incidents[0].What; !strings.Contains(what, "its clock stands for") || !strings.Contains(what, "that of l1 goes on; CPU 0 at ") {
		t.Errorf("it says %q", what)
	}
	ask(t, l, "l1", "exec kill -CONT $(pidof qemu-system-x86_64)")
}

const sysrqPanic = "Kernel panic - not syncing: sysrq triggered crash"

// checkKeptCrash: a snapshot of a machine that crashed by sysrq has its last words, the
// stack of the task that crashed, and its symbols; its reports have them too.
func checkKeptCrash(t *testing.T, dir, machine string, symbol uint64) {
	t.Helper()
	if r := nestdbg(t, "snapshot", "verify", dir); r.status != 0 {
		t.Errorf("verify: %+v", r)
	}
	if log := kept(t, dir, "-m", machine, "dmesg"); !strings.Contains(log, sysrqPanic) {
		t.Errorf("%s's log ends with\n%s", machine, log[max(0, len(log)-2000):])
	}
	var r noticed
	if err := json.Unmarshal([]byte(`{"report":`+kept(t, dir, "report", "--json")+`}`), &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Report.Troubles) != 1 || r.Report.Troubles[0].Machine != machine || r.Report.Troubles[0].Kind != "panic" ||
		r.Report.Troubles[0].Text != sysrqPanic {
		t.Errorf("troubles are %+v", r.Report.Troubles)
	}
	for _, m := range r.Report.Machines {
		switch {
		case m.Machine != machine:
		case m.PanicCPU == nil:
			t.Errorf("%s is in no panic", machine)
		default:
			checkCrashStack(t, kept(t, dir, "-m", machine, "bt", "--cpu", fmt.Sprint(*m.PanicCPU)))
		}
	}
	if got := kept(t, dir, "-m", machine, "sym", "sysrq_handle_crash"); !strings.Contains(got, fmt.Sprintf("%x", symbol)) {
		t.Errorf("sym says %q, the guest said %#x", got, symbol)
	}
	for _, name := range []string{"report.txt", "report.html"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !strings.Contains(string(text), sysrqPanic) || !strings.Contains(string(text), "sysrq_handle_crash") {
			t.Errorf("%s: %v\n%s", name, err, text)
		}
	}
}

// checkSameMemory: what a watch kept of the memory of a QEMU that was killed says what
// the memory file says.
func checkSameMemory(t *testing.T, dir, memory string) {
	t.Helper()
	for _, m := range []string{"l1", "vm0"} {
		for _, q := range []string{"dmesg", "ps", "lsmod"} {
			want, got := kept(t, memory, "-m", m, q), kept(t, dir, "-m", m, q)
			if want == "" || want != got {
				t.Errorf("%s of %s: memory file\n%.1000s\nkept\n%.1000s", q, m, want, got)
			}
		}
	}
	if text := kept(t, dir, "status"); !strings.Contains(text, "it has no registers: QEMU had ended") {
		t.Errorf("status says\n%s", text)
	}
}

// plainQEMU is a QEMU without a guest: its firmware finds nothing to boot, and resets
// the machine after some seconds.
func plainQEMU(t *testing.T, options ...string) *lab.Lab {
	t.Helper()
	return plainQEMUIn(t, socketDir(t), options...)
}

// plainQEMUIn is plainQEMU with its socket and its memory in a directory.
func plainQEMUIn(t *testing.T, dir string, options ...string) *lab.Lab {
	t.Helper()
	l := &lab.Lab{QMPPath: filepath.Join(dir, "qmp")}
	cmd := exec.Command("qemu-system-x86_64", append([]string{"-M", "q35,memory-backend=ram", "-accel", "tcg", "-m", "64M",
		"-object", "memory-backend-file,id=ram,share=on,size=64M,mem-path=" + filepath.Join(dir, "ram"), "-boot", "reboot-timeout=4000",
		"-nodefaults", "-no-user-config", "-display", "none", "-qmp", "unix:" + l.QMPPath + ",server=on,wait=off"}, options...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	l.PID = cmd.Process.Pid
	ended := make(chan bool)
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() { cmd.Process.Kill(); <-ended })
	eventually(t, "QEMU listens", stopLimit, func() bool { _, err := os.Stat(l.QMPPath); return err == nil })
	return l
}

// terminate asks a QEMU to end, as a terminal does, when the watch has its socket back.
func terminate(t *testing.T, l *lab.Lab) time.Time {
	t.Helper()
	time.Sleep(time.Second)
	if err := syscall.Kill(l.PID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	return time.Now()
}

// TestWatchEvents: what QEMU says of a machine that has no kernel, how it was started,
// and a watch that makes it wait.
func TestWatchEvents(t *testing.T) {
	for name, run := range map[string]func(*testing.T){"reset and end": watchReset, "held": watchHeld, "nobody asked": watchNothing, "the next QEMU": watchNext} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they wait for firmware
			run(t)
		})
	}
}

// watchReset: QEMU goes on, and says so when it is too late.
func watchReset(t *testing.T) {
	l := plainQEMU(t)
	w := watchLab(t, l)
	if text := w.out.String(); strings.Count(text, "start QEMU with") != 2 || !strings.Contains(text, "-no-reboot") || !strings.Contains(text, "-no-shutdown") {
		t.Errorf("it began with\n%s", text)
	}
	if n := w.incident(t, "reset", "l1", time.Time{}); !strings.Contains(n.Incidents[0].Late, "-no-reboot") || n.Error != "" {
		t.Errorf("%+v", n)
	}
	if got := runState(t, l); got != "running" { // the watch lends the socket
		t.Errorf("the machine is %s", got)
	}
	if n := w.incident(t, "shutdown", "l1", terminate(t, l)); !strings.Contains(n.Incidents[0].What, "host-signal") {
		t.Errorf("%+v", n)
	}
	w.ended(t)
}

// watchHeld: QEMU waits until the machine is kept, with registers, and then does what
// it was about to do.
func watchHeld(t *testing.T) {
	l := plainQEMU(t)
	w := watchLab(t, l, "--hold", "--keep", "1")
	if text := w.out.String(); strings.Contains(text, "start QEMU with") {
		t.Errorf("it began with\n%s", text)
	}
	n := w.incident(t, "reset", "l1", time.Time{})
	if n.Incidents[0].Late != "" || n.Error != "" || !strings.Contains(kept(t, n.Saved, "status"), "CPU 0  running") {
		t.Errorf("%+v", n)
	}
	eventually(t, "the machine goes on", stopLimit, func() bool { return runState(t, l) == "running" })
	last := w.incident(t, "shutdown", "l1", terminate(t, l))
	w.ended(t)
	if left := entries(t, w.dir); len(left) != 1 || left[0] != filepath.Base(last.Saved) {
		t.Errorf("kept are %v", left)
	}
}

// watchNext: a watch goes on with the QEMU that is started in the place of one that has
// ended, and keeps its end too.
func watchNext(t *testing.T) {
	l := plainQEMU(t)
	w := watchLab(t, l, "--on", "shutdown")
	var ends []noticed
	for i := range 2 {
		if i > 0 {
			l = plainQEMUIn(t, filepath.Dir(l.QMPPath))
		}
		eventually(t, "the watch has found it", commandLimit, func() bool {
			return strings.Contains(w.out.String(), fmt.Sprintf("process %d, for shutdown", l.PID))
		})
		terminate(t, l)
		eventually(t, "the watch waits for the next QEMU", commandLimit, func() bool {
			return strings.Count(w.out.String(), "waiting for the next QEMU") == i+1
		})
		os.Remove(l.QMPPath) // QEMU should have
	}
	for _, n := range w.lines(t) {
		if len(n.Incidents) > 0 {
			ends = append(ends, n)
		}
	}
	if len(ends) != 2 || ends[0].Saved == ends[1].Saved {
		t.Fatalf("%+v", ends)
	}
	for _, n := range ends {
		if n.Incidents[0].Class != "shutdown" || !strings.Contains(kept(t, n.Saved, "status"), "l1  x86-64") {
			t.Errorf("%+v", n)
		}
	}
	w.ended(t)
}

// watchNothing: what nobody asked for is nothing, and QEMU is left as it was.
func watchNothing(t *testing.T) {
	l := plainQEMU(t, "-no-reboot", "-no-shutdown")
	w := watchLab(t, l, "--on", "crash")
	if text := w.out.String(); strings.Contains(text, "start QEMU with") {
		t.Errorf("it began with\n%s", text)
	}
	eventually(t, "the machine stands", commandLimit, func() bool { return runState(t, l) == "shutdown" })
	w.signal(syscall.SIGINT)
	if status := w.waitExit(endLimit); status != 0 {
		t.Errorf("the watch ended with %d, %s", status, w.errOut)
	}
	if left := entries(t, w.dir); len(left) != 0 || runState(t, l) != "shutdown" {
		t.Errorf("kept are %v, the machine is %s", left, runState(t, l))
	}
}

// TestWatchTrap: guests that are gone at once are kept as they were at their last call:
// one that reboots when it panics, and one that ends with a triple fault, which no log
// tells of; the VMM ends with each. Meanwhile somebody else stops and resumes the machine,
// and in the end the gdbstub is free and the machine runs.
func TestWatchTrap(t *testing.T) {
	l := ownLab(t, lab.Options{Name: *prefix + "-trap", VMAppend: "panic=-1 reboot=t", VMs: 2}) // t: by a triple fault
	name := look(t, l).names(t, l)
	w := watchLab(t, l, "--trap")
	breakpoints := func(list string, times int) {
		t.Helper()
		eventually(t, "breakpoints are at "+list, commandLimit, func() bool {
			return strings.Count(w.out.String(), "breakpoints are at: "+list+`"`) >= times
		})
	}
	breakpoints("l1 panic, l1 shutdown_interception, vm0 panic, vm1 panic", 1)
	for range 2 {
		qmpCommand(t, l, "stop")
		time.Sleep(time.Second)
		if got := runState(t, l); got != "paused" {
			t.Errorf("stopped by somebody else, the machine is %s", got)
		}
		qmpCommand(t, l, "cont")
		time.Sleep(time.Second)
	}
	suite.crashed[l] = []string{"vm0", "vm1"}
	ask(t, l, "vm0", "crash")
	n := w.crashSays(t, "has called panic")
	stacks := kept(t, n.Saved, "-m", n.Incidents[0].Machine, "bt", "--all")
	begin := strings.Index(stacks, " panic+0x0")
	checkFrames(t, stacks[max(0, begin):], " panic+0x0", " sysrq_handle_crash+", " write_sysrq_trigger+", " vfs_write+", "user mode")
	l1Says(t, l, "vm list", "vm0 ended") // it goes on, however often the guest's CPU shuts down
	l1Says(t, l, "vm list", "vm1 running")
	breakpoints("l1 panic, l1 shutdown_interception, "+name["vm1"].Name+" panic", 2) // it rests meanwhile
	ctx, cancel := context.WithTimeout(t.Context(), askLimit)
	defer cancel()
	_, _ = l.Ask(ctx, "vm1", "exec echo b > /proc/sysrq-trigger") // who is gone does not answer
	n = w.crashSays(t, "its hypervisor has not dealt with it yet")
	if text := kept(t, n.Saved, "-m", n.Incidents[0].Machine, "bt"); !strings.Contains(text, "emergency_restart") {
		t.Errorf("the stack of what faulted is\n%s", text)
	}
	l1Says(t, l, "vm list", "vm1 ended")
	breakpoints("l1 panic", 1)
	w.signal(syscall.SIGINT)
	if status := w.waitExit(endLimit); status != 0 || w.errOut.String() != "" {
		t.Errorf("the watch ended with %d, %s", status, w.errOut)
	}
	if got := runState(t, l); got != "running" {
		t.Errorf("the machine is left %s", got)
	}
	if r := nestdbg(t, on(l, "gdb", "--", "-nx", "-batch", "-ex", "info threads")...); r.status != 0 || !strings.Contains(r.stdout, "l1 CPU 0") {
		t.Errorf("gdb afterwards: %+v", r)
	}
}

// crashSays waits for a crash by its words, that was kept as a whole: the machine has its
// name there.
func (w *watcher) crashSays(t *testing.T, what string) (found noticed) {
	t.Helper()
	eventually(t, "the watch says "+what, commandLimit, func() bool {
		for _, n := range w.lines(t) {
			if len(n.Incidents) > 0 && strings.Contains(n.Incidents[0].What, what) {
				found = n
				return true
			}
		}
		return false
	})
	if i := found.Incidents[0]; i.Class != "crash" || i.Late != "" || found.Error != "" || found.Saved == "" {
		t.Errorf("%+v", found)
	}
	return found
}

// l1Says waits until L1's agent answers with a text.
func l1Says(t *testing.T, l *lab.Lab, request, want string) {
	t.Helper()
	eventually(t, "L1 says "+want, commandLimit, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), commandLimit)
		defer cancel()
		answer, err := l.Ask(ctx, "l1", request)
		return err == nil && strings.Contains(string(answer), want)
	})
}
