package tests

import (
	"fmt"
	"strings"
	"testing"
)

// TestTrapsOfEveryVM: every kind of trap in each of two VMs, on each of their CPUs, and
// steps from there.
func TestTrapsOfEveryVM(t *testing.T) {
	const vm1 = 3
	l := sharedLab(t, "two")
	addrs := make(map[string]uint64) // guests can be asked only while they run
	for _, vm := range []string{"vm0", "vm1"} {
		for range 2 { // for each CPU
			keepBusy(t, l, vm, "echo x >/dev/null; usleep 5000")
		}
		for _, symbol := range []string{"ksys_write", "jiffies_64"} {
			addrs[vm+symbol] = guestSymbol(t, l, vm, symbol)
		}
	}
	c := connect(t, serve(t, l).addr)
	c.attach(l1, vm0, vm1)
	for _, x := range []struct {
		vm     string
		pid    int
		kind   int // of Z packet
		symbol string
		cpu    int    // that is to hit it, 0: any
		field  string // of the stop
	}{
		{"vm1", vm1, 0, "ksys_write", 1, "swbreak"},
		{"vm1", vm1, 0, "ksys_write", 2, "swbreak"},
		{"vm0", vm0, 1, "ksys_write", 2, "hwbreak"},
		{"vm0", vm0, 3, "jiffies_64", 0, "rwatch"},
		{"vm1", vm1, 4, "jiffies_64", 0, "awatch"},
	} {
		name := fmt.Sprintf("Z%d of %s of %s, CPU %d", x.kind, x.symbol, x.vm, x.cpu)
		addr, size := addrs[x.vm+x.symbol], 1
		if x.kind > 1 {
			size = 8
		}
		var s stop
		for try := 0; try == 0 || x.cpu != 0 && s.tid != x.cpu; try++ {
			if try == 50 {
				t.Fatalf("%s: it hit 50 times elsewhere", name)
			}
			c.setBreak(x.pid, x.kind, addr, size)
			s = c.cont("c")
			c.clearBreak(x.pid, x.kind, addr, size)
			if _, told := s.fields[x.field]; s.pid != x.pid || s.signal != sigTrap || !told {
				t.Fatalf("%s: stop %q", name, s.text)
			}
			if x.kind <= 1 {
				c.cont(fmt.Sprintf("s:p%x.%x", s.pid, s.tid)) // over it, as gdb does
			}
		}
		for range 3 {
			next := c.cont(fmt.Sprintf("s:p%x.%x;c", s.pid, s.tid))
			if next.pid != s.pid || next.tid != s.tid || next.signal != sigTrap {
				t.Errorf("%s: a step from there ended with %q", name, next.text)
			}
		}
	}
	if text := c.console.String(); strings.Contains(text, "cannot be relied on") {
		t.Errorf("QEMU's device state and its stub disagree: %s", text)
	}
	c.ok("D;1", "D;2", "D;3")
	for _, vm := range []string{"vm0", "vm1"} {
		checkClock(t, l, vm)
	}
}

// TestTrapOfL1InVM is TestForeignHits the other way round: the breakpoint is L1's, and
// the VM runs through it unseen.
func TestTrapOfL1InVM(t *testing.T) {
	l := sharedLab(t, "samekaslr")
	addr := guestSymbol(t, l, "l1", "ksys_write")
	keepBusy(t, l, "vm0", "echo x >/dev/null; usleep 5000")
	keepBusy(t, l, "l1", "echo x >/dev/null; usleep 50000")
	c := connect(t, serve(t, l).addr)
	c.attach(l1, vm0)
	for own := 0; own < 3 || c.foreignHits() < 3; own++ {
		if own == 200 {
			t.Fatalf("%d foreign hits beside %d of L1's", c.foreignHits(), own)
		}
		c.setBreak(l1, 0, addr, 1)
		s := c.cont("c")
		if s.pid != l1 || s.signal != sigTrap {
			t.Fatalf("stop %q: only L1 has a breakpoint", s.text)
		}
		if pc := c.reg(l1, s.tid, "rip"); pc != addr {
			t.Fatalf("stopped at %#x, the breakpoint is at %#x", pc, addr)
		}
		c.clearBreak(l1, 0, addr, 1)
		c.cont(fmt.Sprintf("s:p%x.%x", l1, s.tid)) // over it, as gdb does
	}
	c.ok("D;1", "D;2")
	checkClock(t, l, "vm0")
}
