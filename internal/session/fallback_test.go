package session

import (
	"errors"
	"testing"

	"nestdbg/internal/mem"
)

// pages is a virtual memory whose pages of 4 bytes are mapped or not.
type pages map[uint64]string

func (p pages) ReadVirt(b []byte, a mem.Virt) (int, error) {
	n := 0
	for n < len(b) {
		at := uint64(a) + uint64(n)
		s, ok := p[at&^3]
		if !ok {
			return n, &mem.FaultError{Space: "pages", Addr: at}
		}
		n += copy(b[n:], s[at%4:])
	}
	return n, nil
}

func (p pages) Translate(addr uint64) (mem.Phys, uint64, error) {
	if _, ok := p[addr&^3]; !ok {
		return 0, 0, &mem.FaultError{Space: "pages", Addr: addr}
	}
	return mem.Phys(addr), 4 - addr%4, nil
}

// Under page-table isolation a CPU in user mode runs on tables that leave the
// kernel out: the kernel's own have the rest. What both map they map alike.
func TestCPUMemoryFallsBack(t *testing.T) {
	own, kernel := pages{0: "user", 8: "both"}, pages{4: "kern", 8: "both", 12: "last"}
	v := &CPUMemory{spaces: []translator{own, kernel}}
	for _, c := range []struct {
		a     uint64
		n     int
		want  string
		fault uint64
	}{
		{0, 4, "user", 0}, {4, 4, "kern", 0}, {0, 16, "userkernbothlast", 0}, {2, 8, "erkernbo", 0},
		{12, 8, "last", 16}, {16, 4, "", 16}, {8, 4, "both", 0},
	} {
		b := make([]byte, c.n)
		n, err := v.ReadVirt(b, mem.Virt(c.a))
		var fault *mem.FaultError
		if string(b[:n]) != c.want || (err != nil) != (c.fault != 0) {
			t.Errorf("%d bytes at %d: %q, %v", c.n, c.a, b[:n], err)
		}
		if err != nil && (!errors.As(err, &fault) || fault.Addr != c.fault) {
			t.Errorf("%d bytes at %d: %v, want a fault at %d", c.n, c.a, err, c.fault)
		}
	}
	if pa, n, err := v.Translate(6); pa != 6 || n != 2 || err != nil {
		t.Errorf("%d, %d, %v", pa, n, err)
	}
	if _, _, err := v.Translate(20); !errors.Is(err, mem.ErrFault) {
		t.Errorf("mapped nowhere: %v", err)
	}
}

func TestTrapsCount(t *testing.T) {
	tr := newTraps()
	x := Trap{Kind: TrapWrite, Addr: 0x1000, Size: 8}
	tr.wanted[wantedTrap{1, x}] = 2
	for _, c := range []struct {
		pid  int
		addr uint64
		want bool
	}{{1, 0xfff, false}, {1, 0x1000, true}, {1, 0x1007, true}, {1, 0x1008, false}, {2, 0x1000, false}} {
		if _, ok := tr.watchAt(c.pid, TrapWrite, c.addr); ok != c.want {
			t.Errorf("machine %d, %#x: %v", c.pid, c.addr, ok)
		}
	}
	tr.remove(1, x)
	if _, ok := tr.watchAt(1, TrapWrite, 0x1000); !ok {
		t.Error("asked for twice, removed once: gone")
	}
	tr.remove(1, x)
	tr.remove(1, x)
	if len(tr.wanted) != 0 {
		t.Errorf("left: %v", tr.wanted)
	}
}
