package tests

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"nestdbg/lab"
)

// However a session ends, breakpoints are gone and the machine runs if it ran.

// endLimit bounds the time between the reason to end and the end.
const endLimit = 5 * time.Second

// onDemand is a function of the kernel that runs when a test wants it to, and
// never otherwise: nothing in the lab's machines names its host. busy is one that
// runs all the time.
const (
	onDemand = "__x64_sys_sethostname"
	busy     = "schedule"
)

// addressOf is the address of a function of a machine.
func (v *view) addressOf(t testing.TB, machine, name string) uint64 {
	t.Helper()
	a, ok := v.kernel(t, v.machine(t, machine)).Lookup(name)
	if !ok {
		t.Fatalf("%s has no symbol %s", machine, name)
	}
	return uint64(a)
}

// attached is a client of serve on both machines of lab "kaslr" that has
// breakpoints of both kinds in both, and a machine that runs or stands.
func attached(t *testing.T, l *lab.Lab, s *server, runs bool) *client {
	t.Helper()
	v := look(t, l)
	c := connect(t, s.addr)
	c.attach(1, 2)
	for pid, m := range map[int]string{1: "l1", 2: "vm0"} {
		a := v.addressOf(t, m, onDemand)
		c.setBreak(pid, 0, a, 1)
		c.setBreak(pid, 1, a+1, 1)
	}
	if runs {
		c.resume("c")
		c.runs(300 * time.Millisecond)
		return c
	}
	at := v.addressOf(t, "vm0", busy)
	c.setBreak(2, 0, at, 1)
	st := c.cont("c")
	if st.kind != 'T' || st.pid != 2 || c.reg(2, 1, "rip") != at {
		t.Fatalf("stopped with %q, not at %s of vm0", st.text, busy)
	}
	return c
}

// checkLeftAlone checks that a lab is as it was before anybody debugged it: it
// runs, also through the places that had breakpoints.
func checkLeftAlone(t *testing.T, l *lab.Lab) {
	t.Helper()
	if got := runState(t, l); got != "running" {
		t.Fatalf("the machine is %s", got)
	}
	for _, m := range []string{"vm0", "l1"} {
		name := "left-alone-" + m
		if got := strings.TrimSpace(ask(t, l, m, "exec hostname "+name+" && hostname")); got != name {
			t.Errorf("%s answers %q", m, got)
		}
	}
	if got := runState(t, l); got != "running" {
		t.Fatalf("the machine is %s", got)
	}
}

func TestServeIsToldToStop(t *testing.T) {
	l := sharedLab(t, "kaslr")
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		for _, runs := range []bool{true, false} {
			t.Run(fmt.Sprintf("%v, running %v", sig, runs), func(t *testing.T) {
				s := serve(t, l)
				c := attached(t, l, s, runs)
				s.signal(sig)
				if status := s.waitExit(endLimit); status != 0 || s.errOut.String() != "" {
					t.Errorf("serve ended with %d, %s", status, s.errOut)
				}
				checkEnded(t, c)
				checkLeftAlone(t, l)
			})
		}
	}
}

// checkEnded checks that a client's connection is closed, after an answer at most.
func checkEnded(t *testing.T, c *client) {
	t.Helper()
	var err error
	for range 2 {
		var r string
		if r, err = c.receive(endLimit); err != nil {
			break
		}
		t.Logf("the client was told %q", r)
	}
	if err == nil || os.IsTimeout(err) {
		t.Errorf("the client's connection is still open: %v", err)
	}
}

// TestPausedMachineStaysPaused: a machine that stood before stands afterwards.
func TestPausedMachineStaysPaused(t *testing.T) {
	l := sharedLab(t, "kaslr")
	thaw := freeze(t, l)
	s := serve(t, l)
	attached(t, l, s, false).close()
	time.Sleep(time.Second) // the server notices, and does nothing
	s.signal(syscall.SIGTERM)
	s.waitExit(endLimit)
	// QEMU cannot be brought from "debug" back to "paused"; both stand still.
	if got := runState(t, l); got != "paused" && got != "debug" {
		t.Errorf("the machine is %s", got)
	}
	thaw()
	checkLeftAlone(t, l)
}

func TestClientDies(t *testing.T) {
	l := sharedLab(t, "kaslr")
	s := serve(t, l)
	for _, runs := range []bool{true, false} {
		t.Run(fmt.Sprint("running ", runs), func(t *testing.T) {
			attached(t, l, s, runs).close()
			if runs {
				time.Sleep(time.Second) // it runs now, and stands once more when the server notices
			}
			eventually(t, "the machine is let go", endLimit, func() bool { return runState(t, l) == "running" })
			checkLeftAlone(t, l)
		})
	}
	// And the next one is served.
	c := attached(t, l, s, true)
	c.interrupt()
	if st, err := c.wait(stopLimit); err != nil || st.signal != 2 {
		t.Errorf("interrupt: %q, %v", st.text, err)
	}
	c.ok("D;1", "D;2")
	checkLeftAlone(t, l)
}

// TestDetachLetsGo: the machine runs when the last of its debugged parts is let go.
func TestDetachLetsGo(t *testing.T) {
	l := sharedLab(t, "kaslr")
	s := serve(t, l)
	c := attached(t, l, s, false)
	c.ok("D;2")
	if got := runState(t, l); got == "running" {
		t.Error("with l1 still attached, the machine runs")
	}
	if r := c.cmd("Hgp2.1"); !strings.HasPrefix(r, "E") {
		t.Errorf("a detached machine answers %q", r)
	}
	c.ok("D;1")
	checkLeftAlone(t, l)
}

// gdbOn starts a real gdb with commands and waits until it prints a text.
func gdbOn(t *testing.T, until string, commands ...string) *exec.Cmd {
	t.Helper()
	args := []string{"-nx", "-q", "-ex", "set confirm off", "-ex", "set pagination off"}
	for _, c := range commands {
		args = append(args, "-ex", c)
	}
	cmd := exec.Command("gdb", args...)
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	in, err := cmd.StdinPipe() // gdb leaves at the end of its input
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("gdb said:\n%s", &out)
		}
	})
	eventually(t, fmt.Sprintf("gdb says %q", until), stopLimit, func() bool { return strings.Contains(out.String(), until) })
	return cmd
}

func TestGDBIsKilled(t *testing.T) {
	l := sharedLab(t, "kaslr")
	v := look(t, l)
	s := serve(t, l)
	for _, c := range []struct{ function, until string }{{onDemand, "Continuing."}, {busy, "hit Breakpoint"}} {
		t.Run(c.until, func(t *testing.T) {
			g := gdbOn(t, c.until,
				"set auto-connect-native-target off", "set schedule-multiple on", "set sysroot",
				"target extended-remote "+s.addr, "attach 1", "add-inferior", "inferior 2", "attach 2",
				fmt.Sprintf("break *%#x", v.addressOf(t, "vm0", c.function)), "continue")
			if c.function == onDemand {
				eventually(t, "the machine runs", stopLimit, func() bool { return runState(t, l) == "running" })
			}
			if err := g.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the machine is let go", endLimit, func() bool { return runState(t, l) == "running" })
			checkLeftAlone(t, l)
		})
	}
}

// gdbCommand starts "nestdbg gdb" on a lab, with a breakpoint in vm0, and lets
// everything run.
func gdbCommand(t *testing.T, l *lab.Lab) *server {
	t.Helper()
	at := look(t, l).addressOf(t, "vm0", onDemand)
	s := start(t, on(l, "gdb", "--", "-nx", "-ex", "set confirm off", "-ex", fmt.Sprintf("break *%#x", at), "-ex", "continue")...)
	eventually(t, "gdb continues", stopLimit, func() bool { return strings.Contains(s.out.String(), "Continuing.") })
	eventually(t, "the machine runs", stopLimit, func() bool { return runState(t, l) == "running" })
	return s
}

// TestCtrlCIsForGDB: the terminal sends it to both; the session goes on.
func TestCtrlCIsForGDB(t *testing.T) {
	l := sharedLab(t, "kaslr")
	s := gdbCommand(t, l)
	if err := syscall.Kill(-s.process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "gdb stops", stopLimit, func() bool { return strings.Contains(s.out.String(), "SIGINT") })
	io.WriteString(s.in, "printf \"rip is %p\\n\", $rip\n")
	eventually(t, "gdb reads a register", stopLimit, func() bool { return strings.Contains(s.out.String(), "rip is 0x") })
	io.WriteString(s.in, "quit\n")
	if status := s.waitExit(endLimit); status != 0 {
		t.Errorf("nestdbg gdb ended with %d", status)
	}
	checkLeftAlone(t, l)
}

// TestGDBCommandEnds ends "nestdbg gdb" from outside, and the gdb under it.
func TestGDBCommandEnds(t *testing.T) {
	l := sharedLab(t, "kaslr")
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP} {
		t.Run(sig.String(), func(t *testing.T) {
			s := gdbCommand(t, l)
			g := child(t, s.process.Pid)
			s.signal(sig)
			s.waitExit(endLimit)
			checkGone(t, g)
			checkLeftAlone(t, l)
		})
	}
	t.Run("gdb is killed", func(t *testing.T) {
		s := gdbCommand(t, l)
		if err := syscall.Kill(child(t, s.process.Pid), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if status := s.waitExit(endLimit); status == 0 {
			t.Error("nestdbg gdb says that all is well")
		}
		checkLeftAlone(t, l)
	})
}

// child is the only child of a process.
func child(t *testing.T, pid int) int {
	t.Helper()
	var out int
	// Every thread has a list of those it started.
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, path := range lists {
		text, _ := os.ReadFile(path)
		fmt.Sscan(string(text), &out)
	}
	if out == 0 {
		t.Fatalf("process %d has no child", pid)
	}
	return out
}

func checkGone(t *testing.T, pid int) {
	t.Helper()
	eventually(t, fmt.Sprintf("process %d is gone", pid), endLimit, func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
		return err != nil
	})
}

// TestKilledDebuggerLeavesNothing: a nestdbg that is killed cannot let go, and the
// machine stands; but the next one finds no breakpoint of it, on no CPU.
func TestKilledDebuggerLeavesNothing(t *testing.T) {
	l := sharedLab(t, "kaslr")
	for range 3 { // vm0 stops on this CPU or that
		first := serve(t, l)
		attached(t, l, first, false)
		first.signal(syscall.SIGKILL)
		first.waitExit(endLimit)
		s := serve(t, l)
		c := connect(t, s.addr)
		c.attach(1, 2)
		c.resume("c")
		c.runs(500 * time.Millisecond)
		c.close()
		time.Sleep(200 * time.Millisecond)
		s.signal(syscall.SIGTERM)
		s.waitExit(endLimit)
		qmpCommand(t, l, "cont")
		checkLeftAlone(t, l)
	}
}
