package tests

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"nestdbg/internal/arch"
)

// TestFloatOfAParkedVCPU: what a vCPU has in its floating-point registers when it is
// about to halt, by its CPU, is what KVM keeps of it once its thread sleeps.
func TestFloatOfAParkedVCPU(t *testing.T) {
	const enough, most = 5, 25
	l := sharedLab(t, "kaslr")
	own, guests := guestSymbol(t, l, "l1", "native_safe_halt"), guestSymbol(t, l, "vm0", "native_safe_halt")
	c := connect(t, serve(t, l).addr)
	c.attach(l1, vm0)
	same, other, filled := 0, 0, 0
	for range most {
		if same == enough {
			break
		}
		_, vcpu := hosting(t, c, guests)
		running := c.registers(vm0, vcpu)
		c.setBreak(l1, 0, own, 1)
		c.cont("c")
		c.clearBreak(l1, 0, own, 1)
		parked := c.registers(vm0, vcpu)
		if _, known := parked.Get("mxcsr"); !known {
			continue // its thread is on a CPU
		}
		differ, zero := compareFloat(t, running, parked)
		switch {
		case len(differ) > 0: // woken meanwhile, and a process ran in it
			t.Logf("%v differ", differ)
			other++
		default:
			same++
		}
		if !zero {
			filled++
		}
	}
	t.Logf("%d times the same, %d times others, %d times with values", same, other, filled)
	if same < enough || filled == 0 {
		t.Error("not enough to say that they are right")
	}
	c.ok("D;1", "D;2")
}

// compareFloat compares the values of floating-point and vector registers.
func compareFloat(t *testing.T, a, b *arch.Registers) (differ []string, zero bool) {
	t.Helper()
	zero = true
	pointers := []string{"fiseg", "fioff", "foseg", "fooff", "fop"} // QEMU's FXSAVE leaves them out
	for i, r := range arch.X86.Regs {
		if r.Kind != arch.Float || slices.Contains(pointers, r.Name) {
			continue
		}
		x, y := a.Bytes(i), b.Bytes(i)
		if x == nil || y == nil {
			t.Fatalf("%s: known before %v, after %v", r.Name, x != nil, y != nil)
		}
		if !bytes.Equal(x, y) {
			differ = append(differ, r.Name)
		}
		if strings.HasPrefix(r.Name, "xmm") && bytes.ContainsFunc(x, func(r rune) bool { return r != 0 }) {
			zero = false
		}
	}
	return differ, zero
}
