package tests

import (
	"fmt"
	"strings"
	"testing"
)

// TestTrapsOfEveryKind: the kinds of trap that other tests do not set, in L2, and steps
// from there.
func TestTrapsOfEveryKind(t *testing.T) {
	l := sharedLab(t, "kaslr")
	keepBusy(t, l, "vm0", "echo x >/dev/null; usleep 20000")
	write, jiffies := guestSymbol(t, l, "vm0", "ksys_write"), guestSymbol(t, l, "vm0", "jiffies_64")
	c := connect(t, serve(t, l).addr)
	c.attach(l1, vm0)
	for _, x := range []struct {
		kind  int // of Z packet
		addr  uint64
		size  int
		field string // of the stop
	}{
		{1, write, 1, "hwbreak"}, {3, jiffies, 8, "rwatch"}, {4, jiffies, 8, "awatch"},
	} {
		c.setBreak(vm0, x.kind, x.addr, x.size)
		s := c.cont("c")
		c.clearBreak(vm0, x.kind, x.addr, x.size)
		if _, told := s.fields[x.field]; s.pid != vm0 || s.signal != sigTrap || !told {
			t.Fatalf("%s: stop %q", x.field, s.text)
		}
		for range 3 {
			next := c.cont(fmt.Sprintf("s:p%x.%x;c", s.pid, s.tid))
			if next.pid != s.pid || next.tid != s.tid || next.signal != sigTrap {
				t.Errorf("%s: a step from there ended with %q", x.field, next.text)
			}
		}
	}
	if text := c.console.String(); strings.Contains(text, "cannot be relied on") {
		t.Errorf("QEMU's device state and its stub disagree: %s", text)
	}
	c.ok("D;1", "D;2")
	checkClock(t, l, "vm0")
}

// TestTrapOfL1InVM is TestForeignHits the other way round: the breakpoint is L1's, and
// the VM runs through it unseen.
func TestTrapOfL1InVM(t *testing.T) {
	l := sharedLab(t, "samekaslr")
	addr := guestSymbol(t, l, "l1", "ksys_write")
	keepBusy(t, l, "vm0", "echo x >/dev/null; usleep 2000") // L1 has its VMM, which writes without end
	c := connect(t, serve(t, l).addr)
	c.attach(l1, vm0)
	for own := 0; c.foreignHits() < 2; own++ {
		if own == 1000 {
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
