package tests

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"nestdbg/lab"
)

// Who else may do what, while somebody debugs.

// checkLooks checks that the commands that only look work, and leave the run state.
func checkLooks(t *testing.T, l *lab.Lab) {
	t.Helper()
	before := runState(t, l)
	st := decode[statusReport](t, must(t, l, "status", "--json"))
	if len(st.Machines) != 2 || st.Running != (before == "running") {
		t.Errorf("status: %d machines, running %v; QEMU says %s", len(st.Machines), st.Running, before)
	}
	text := fmt.Sprintf("%#x", uint64(st.machine(t, "vm0").Kernel.TextVA))
	if v := decode[vtopReport](t, must(t, l, "vtop", "--json", "-m", "vm0", "_text")); v.VA == nil || fmt.Sprintf("%#x", uint64(*v.VA)) != text {
		t.Errorf("vtop _text: %+v; status says %s", v, text)
	}
	if got := examine(t, l, "vm0", "linux_banner", 14); string(got) != "Linux version " {
		t.Errorf("x linux_banner: %q", got)
	}
	must(t, l, "regs", "-m", "vm0")
	must(t, l, "maps", "-m", "vm0", "_text", "_text+1000")
	if after := runState(t, l); after != before {
		t.Errorf("the machine was %s and is %s", before, after)
	}
}

// TestLookingWhileServing: others may look while a client has the machine, standing
// or running.
func TestLookingWhileServing(t *testing.T) {
	l := sharedLab(t, "kaslr")
	s := serve(t, l)
	c := attached(t, l, s, false)
	before := c.registers(2, 1)
	checkLooks(t, l)
	rip := fmt.Sprintf("%#x", c.reg(2, 1, "rip"))
	r := decode[registersReport](t, must(t, l, "regs", "--json", "-m", "vm0"))
	if got := r.CPUs[0].Registers["rip"]; got == nil || *got != rip {
		t.Errorf("regs says rip %v, the client %s", got, rip)
	}
	after := c.registers(2, 1)
	for i, reg := range before.Arch().Regs {
		if !bytes.Equal(before.Bytes(i), after.Bytes(i)) {
			t.Errorf("%s changed from %x to %x", reg.Name, before.Bytes(i), after.Bytes(i))
		}
	}
	c.clearBreak(2, 0, c.reg(2, 1, "rip"), 1)
	c.resume("c")
	// First the server steps the guest off the breakpoint that it stood at.
	eventually(t, "the machine runs", stopLimit, func() bool { return runState(t, l) == "running" })
	checkLooks(t, l)
	c.runs(100 * time.Millisecond)
	c.interrupt()
	if st, err := c.wait(stopLimit); err != nil || st.signal != 2 {
		t.Errorf("interrupt: %q, %v", st.text, err)
	}
}

// checkStubTaken checks that what needs the stub is told who has it.
func checkStubTaken(t *testing.T, l *lab.Lab, holder string) {
	t.Helper()
	before := runState(t, l)
	checkRefused(t, nestdbg(t, on(l, "write", "-m", "vm0", "_text", "00")...), "gdbstub", holder)
	checkRefused(t, nestdbg(t, on(l, "gdb", "--", "-batch")...), "gdbstub", holder)
	second := serve(t, l)
	c := connect(t, second.addr)
	if r := c.cmd("vAttach;1"); !strings.HasPrefix(r, "E.") || !strings.Contains(r, holder) {
		t.Errorf("a second serve answers attach with %q, want %s in it", r, holder)
	}
	if after := runState(t, l); after != before {
		t.Errorf("the machine was %s and is %s", before, after)
	}
}

func TestTheStubIsTaken(t *testing.T) {
	l := sharedLab(t, "kaslr")
	s := serve(t, l)
	c := attached(t, l, s, false)
	checkStubTaken(t, l, fmt.Sprintf("nestdbg (PID %d)", s.process.Pid))
	// The one who has it has noticed nothing.
	if _, err := c.readMem(2, 1, c.reg(2, 1, "rip"), 16); err != nil {
		t.Error(err)
	}
	c.ok("D;1", "D;2")
	checkLeftAlone(t, l)
}

// TestSomebodyElsesGDB: while a plain gdb holds QEMU's stub, looking works, and the
// rest is told who holds it.
func TestSomebodyElsesGDB(t *testing.T) {
	l := sharedLab(t, "kaslr")
	g := gdbOn(t, "connected to the stub", "target remote "+l.GDBPath, `echo connected to the stub\n`)
	checkLooks(t, l)
	checkStubTaken(t, l, fmt.Sprintf("gdb (PID %d)", g.Process.Pid))
}
