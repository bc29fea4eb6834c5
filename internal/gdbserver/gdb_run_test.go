package gdbserver_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/gdbserver"
	"nestdbg/internal/gdbserver/gdbservertest"
)

func TestGDBInferiors(t *testing.T) {
	f, socket := toyTower(t)
	g := startGDB(t)
	g.attachAll(socket)
	g.want("info inferiors", `1 +process 1 +.*vmlinux1`, `\* 2 +process 2 +.*vmlinux2`)
	g.want("info threads", `1\.1 +Thread 1\.1 "m1-cpu0" \(<toy>\)`, `\* 2\.1 +Thread 2\.1`)
	for _, c := range []struct {
		pid, slide, other uint64
		module            uint64
	}{{1, slide1, 2, 0xffffffffc0000000}, {2, slide2, 1, 0xffffffffc0100000}} {
		g.do(fmt.Sprintf("inferior %d", c.pid))
		g.want("p/x $rbx", fmt.Sprintf("= 0x%d01\n", c.pid))
		g.want("p $st0", "unavailable")
		g.want("p/x $pc", fmt.Sprintf("= %#x\n", 0xffffffff81000000+c.slide))
		g.want("info symbol $pc", "^_text in section .text")
		g.want(fmt.Sprintf("p work%d", c.pid), fmt.Sprintf(`0x[0-9a-f]+ <work%d>`, c.pid))
		g.want(fmt.Sprintf("p work%d", c.other), "No symbol")
		g.want("p/x *(long *)&counter", fmt.Sprintf("= 0x%x\n", c.pid*0x1111))
		g.want("info sharedlibrary", "Yes.*toy.ko")
		g.want("info address module_function", fmt.Sprintf("%#x", c.module))
		g.want("x/i $pc", "call|nop")
		g.want("p *(char *)0x10", "Cannot access memory at address 0x10")
	}
	g.want("monitor hello", `^2\.1 hello`)
	g.want("info os machines", `L2 <nested>`)
	waitFor(t, f, func() bool { return f.Attached[1] && f.Attached[2] })
}

func TestGDBRunControl(t *testing.T) {
	f, socket := toyTower(t)
	g := startGDB(t)
	g.attachAll(socket)

	// Breakpoints belong to a machine.
	g.want("break work1", "Breakpoint 1")
	g.want("continue", `Thread 1\.1 .*hit Breakpoint 1, work1 `)
	g.want("bt", "#0 +work1", "#1 +.*_text")
	g.want("stepi", "")
	g.want("p/x $pc - (long)&work1", "= 0x1\n")
	g.want("finish", "Run till exit")
	g.want("continue", `Thread 1\.1 .*hit Breakpoint 1, work1 `)
	g.want("delete", "")
	g.want("inferior 2", "")
	g.want("hbreak work2", "Hardware assisted breakpoint 2")
	g.want("continue", `Thread 2\.1 .*hit Breakpoint 2, work2 `)
	g.want("continue", `Thread 2\.1 .*hit Breakpoint 2, work2 `)
	g.want("delete", "")
	// One with the same name in both has a location in each, at its own address.
	g.want("break shared", `Breakpoint 3 at .* \(2 locations\)`)
	both := g.do("continue") + g.do("continue") + g.do("continue") + g.do("continue")
	for _, p := range []string{`Thread 1\.1 .*hit Breakpoint 3`, `Thread 2\.1 .*hit Breakpoint 3`} {
		if !regexp.MustCompile(p).MatchString(both) {
			t.Errorf("no %s in\n%s", p, both)
		}
	}
	g.want("delete", "")

	// Writes.
	g.want("set var *(long *)&counter = 0x77", "")
	g.want("p/x *(long *)&counter", "= 0x77\n")
	g.want("set var $rax = 0x1234", "")
	g.want("p/x $rax", "= 0x1234\n")

	// Ctrl-C.
	mark := g.begin("continue")
	waitFor(t, f, func() bool { return strings.HasPrefix(f.Calls[len(f.Calls)-1], "resume") })
	g.cmd.Process.Signal(os.Interrupt)
	if out := g.finish(mark); !strings.Contains(out, "SIGINT") {
		t.Errorf("Ctrl-C:\n%s", out)
	}

	g.want("detach inferiors 2", `Inferior 2 .*detached`)
	waitFor(t, f, func() bool { return f.Attached[1] && !f.Attached[2] })
	g.want("inferior 1", "")
	g.want("break work1", "Breakpoint 4")
	g.want("continue", `hit Breakpoint 4, work1 `)
	g.begin("delete\ncontinue")
	waitFor(t, f, func() bool { return len(f.Breaks) == 0 && strings.HasPrefix(f.Calls[len(f.Calls)-1], "resume") })
	g.cmd.Process.Kill()
	waitFor(t, f, func() bool { return f.Closed == 1 && len(f.Attached) == 0 })
}

// TestGDBSameKernel: both machines run one file, at different addresses.
func TestGDBSameKernel(t *testing.T) {
	file := assemble(t, "vmlinux", kernel1, false)
	f := gdbservertest.New(boot(t, 1, file, slide1), boot(t, 2, file, slide2))
	g := startGDB(t)
	g.attachAll(serveSocket(t, f.Target()))
	for pid, slide := range []uint64{1: slide1, 2: slide2} {
		if pid > 0 {
			g.do(fmt.Sprintf("inferior %d", pid))
			g.want("p/x (long)&_text", fmt.Sprintf("= %#x\n", 0xffffffff81000000+slide))
		}
	}
}

// TestGDBHeldStop: L1 hits a breakpoint while gdb has resumed only L2. gdb 13 and
// 16 abort if told so.
func TestGDBHeldStop(t *testing.T) {
	f, socket := toyTower(t)
	f.RunAll = true
	g := startGDB(t)
	g.attachAll(socket)
	g.want("break work1", "Breakpoint 1")
	g.do("set schedule-multiple off")
	mark := g.begin("continue")
	waitFor(t, f, func() bool { return strings.HasPrefix(f.Calls[len(f.Calls)-1], "resume ;t:1.1;") })
	g.cmd.Process.Signal(os.Interrupt)
	if out := g.finish(mark); !strings.Contains(out, "SIGINT") {
		t.Errorf("Ctrl-C:\n%s", out)
	}
	g.want("p $_inferior", "= 2\n")
	// The same while gdb steps over a breakpoint of L2.
	g.do("delete")
	g.want("hbreak work2", "breakpoint 2")
	g.want("continue", "hit Breakpoint 2, work2")
	g.want("break work1", "Breakpoint 3")
	g.want("continue", "hit Breakpoint 2, work2")
	g.do("set schedule-multiple on")
	g.want("continue", `Thread 1\.1 .*hit Breakpoint 3, work1 `)
	g.want("continue", `hit Breakpoint`)
}

// TestGDBVanish: a machine ends while it runs, and while gdb steps over one of its
// breakpoints, in which case gdb hangs later on if told at once.
func TestGDBVanish(t *testing.T) {
	for _, at := range []string{"continue", "step over"} {
		f, socket := toyTower(t)
		g := startGDB(t)
		g.attachAll(socket)
		if at == "step over" {
			g.want("hbreak work2", "breakpoint 1")
			g.want("continue", "hit Breakpoint 1, work2")
		}
		gone := gdbserver.Stop{PID: 2, Reason: gdbserver.Killed}
		f.Lock()
		f.OnResume = func(actions []gdbserver.Action, interrupted <-chan struct{}) (gdbserver.Stop, error) {
			f.Lock()
			f.OnResume = nil
			f.Unlock()
			return gone, nil
		}
		f.Unlock()
		g.want("continue", "Program terminated with signal SIGKILL")
		g.do("delete")
		g.want("inferior 1", "Switching to inferior 1")
		g.want("break work1", "Breakpoint")
		g.want("continue", `hit Breakpoint \d, work1 `)
		g.want("info inferiors", "2 +<null>")
		// It comes back.
		g.do("inferior 2")
		g.want("attach 2", "Attaching to")
		g.want("p/x *(long *)&counter", "= 0x2222\n")
		waitFor(t, f, func() bool { return len(f.Breaks) == 0 })
	}
}

// TestGDBEvent: something to tell that is no trap.
func TestGDBEvent(t *testing.T) {
	f, socket := toyTower(t)
	g := startGDB(t)
	g.attachAll(socket)
	f.Lock()
	f.OnResume = func([]gdbserver.Action, <-chan struct{}) (gdbserver.Stop, error) {
		return gdbserver.Stop{Text: "vm1 appeared\n", Core: -1}, nil
	}
	f.Unlock()
	g.want("continue", `vm1 appeared\n(.*\n)*Thread 2\.1 .*stopped`)
}

// TestGDBUnknownRegisters: the machine has run, and nobody could see what it does. gdb
// says so and keeps its session; with an error instead of registers gdb 13 takes no
// command any more, and without a program counter it gives the machine up.
func TestGDBUnknownRegisters(t *testing.T) {
	f, socket := toyTower(t)
	g := startGDB(t)
	g.attachAll(socket)
	g.want("inferior 1", "Switching to inferior 1")
	g.want("break work1", "Breakpoint 1")
	known := f.Machines[1].CPUs[0]
	f.Lock()
	f.Machines[1].CPUs[0] = arch.NewRegisters(arch.X86)
	f.Machines[1].CPUs[0].Set("rip", ^uint64(0))
	f.OnResume = func([]gdbserver.Action, <-chan struct{}) (gdbserver.Stop, error) {
		return gdbserver.Stop{}, errors.New("QMP is taken")
	}
	f.Unlock()
	g.want("continue", "QMP is taken")
	g.want("p/x $rbx", "<unavailable>")
	f.Lock()
	f.Machines[1].CPUs[0], f.OnResume = known, nil
	f.Unlock()
	g.want("continue", "hit Breakpoint 1, work1")
	g.want("p/x $rbx", "= 0x101")
}

// TestGDBPlainRemote: target remote has the first machine.
func TestGDBPlainRemote(t *testing.T) {
	_, socket := toyTower(t)
	g := startGDB(t)
	g.want("target remote "+socket, "Remote debugging using")
	g.want("info symbol $pc", "_text")
	g.want("break work1", "Breakpoint 1")
	g.want("continue", "Breakpoint 1, work1")
	g.want("detach", "detached")
}

// TestGDBReadsMemory: in pieces as large as it asks for.
func TestGDBReadsMemory(t *testing.T) {
	data := make([]byte, 3<<20)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	clear(data[1<<20 : 2<<20])
	out := filepath.Join(t.TempDir(), "dump")
	g := startGDB(t)
	g.dump(t, data, out)
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, data) {
		t.Errorf("dump binary memory: %d bytes, %v", len(got), err)
	}
}

// dump makes gdb dump all the memory of a machine that has data at 16 MiB.
func (g *gdb) dump(t testing.TB, data []byte, file string) {
	const base = 16 << 20
	f := gdbservertest.New(gdbservertest.NewMachine(1, 1, text, gdbservertest.Segment{Base: base, Data: data}))
	g.do("target extended-remote " + serveSocket(t, f.Target()))
	g.do("attach 1")
	g.want(fmt.Sprintf("dump binary memory %s %#x %#x", file, base, base+len(data)), "^\\s*$")
	g.do("detach")
}

func TestGDBErrors(t *testing.T) {
	_, socket := toyTower(t)
	g := startGDB(t)
	g.attachAll(socket)
	g.want("p *(char *)0", "Cannot access memory at address 0x0")
	g.want("set var *(char *)0 = 1", "Cannot access memory at address 0x0")
	g.want("kill", "Can't kill process|E\\.")
	g.want("info inferiors", `process 2`)
	g.do("add-inferior")
	g.do("inferior 3")
	g.want("attach 2", "Attaching to .* failed")
	g.want("attach 7", "Attaching to .* failed")
	g.do("inferior 2")
	g.want("info symbol $pc", "_text")
}
