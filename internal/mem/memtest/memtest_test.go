package memtest_test

import (
	"bytes"
	"errors"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
)

func TestMemory(t *testing.T) {
	m := memtest.NewMemory(mem.Range{First: 0x3000, Last: 0x4fff}, mem.Range{First: 0x1000, Last: 0x1fff})
	if got := m.PhysRanges(); len(got) != 2 || got[0].First != 0x1000 || got[1].Last != 0x4fff {
		t.Errorf("%v", got)
	}
	text := bytes.Repeat([]byte{1, 2, 3}, 1000)
	m.Put(0x3800, text)
	got := make([]byte, len(text))
	if n, err := m.ReadPhys(got, 0x3800); n != len(text) || err != nil || !bytes.Equal(got, text) {
		t.Errorf("%d, %v", n, err)
	}
	m.PutUint64(0x1000, 0x1122_3344_5566_7788)
	m.PutUint32(0x1004, 0xaabb_ccdd)
	if v, err := mem.Uint64(m, 0x1000); err != nil || v != 0xaabb_ccdd_5566_7788 {
		t.Errorf("%#x, %v", v, err)
	}
	if b := m.SlicePhys(0x4ff0, 100); len(b) != 16 || cap(b) != 16 {
		t.Errorf("a slice of %d bytes", len(b))
	}
	for _, a := range []mem.Phys{0, 0xfff, 0x2000, 0x5000} {
		if b := m.SlicePhys(a, 1); len(b) != 0 {
			t.Errorf("a slice at %#x", a)
		}
	}
	for _, do := range []func([]byte, mem.Phys) (int, error){m.ReadPhys, m.WritePhys} {
		n, err := do(make([]byte, 32), 0x1ff0)
		var fault *mem.FaultError
		if n != 16 || !errors.As(err, &fault) || fault.Addr != 0x2000 || !errors.Is(err, mem.ErrNoRAM) {
			t.Errorf("%d, %v", n, err)
		}
	}
}

// TestWholeSpace has RAM everywhere, and a read that passes its end.
func TestWholeSpace(t *testing.T) {
	m := memtest.NewMemory()
	m.PutUint64(^mem.Phys(0)-7, 5)
	if v, err := mem.Uint64(m, ^mem.Phys(0)-7); v != 5 || err != nil {
		t.Errorf("%d, %v", v, err)
	}
	if n, err := m.ReadPhys(make([]byte, 16), ^mem.Phys(0)-7); n != 8 || !errors.Is(err, mem.ErrFault) {
		t.Errorf("%d, %v", n, err)
	}
}

func TestMisuse(t *testing.T) {
	for name, do := range map[string]func(){
		"not whole pages": func() { memtest.NewMemory(mem.Range{First: 0, Last: 0x1800}) },
		"overlap":         func() { memtest.NewMemory(mem.Range{First: 0, Last: 0x1fff}, mem.Range{First: 0x1000, Last: 0x2fff}) },
		"no RAM":          func() { memtest.NewMemory(mem.Range{First: 0, Last: 0xfff}).PutUint64(0x1000, 1) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: accepted", name)
				}
			}()
			do()
		}()
	}
}

func TestFailNth(t *testing.T) {
	broken := errors.New("broken")
	for n := range 3 {
		for _, err := range []error{nil, broken} {
			r := memtest.FailNthWith(memtest.NewMemory(), n, err)
			for i := range 5 {
				if reached := i > n; r.Reached() != reached {
					t.Errorf("failing read %d, after %d: reached is %v", n, i, r.Reached())
				}
				got, e := r.ReadPhys(make([]byte, 4), 0x1000)
				switch {
				case i != n && (got != 4 || e != nil):
					t.Errorf("read %d of failing %d: %d, %v", i, n, got, e)
				case i == n && err == nil && !(errors.Is(e, mem.ErrFault) && errors.Is(e, memtest.ErrInjected)):
					t.Errorf("read %d: %v", i, e)
				case i == n && err != nil && e != broken:
					t.Errorf("read %d: %v", i, e)
				}
			}
		}
	}
	if _, sliced := any(memtest.FailNth(memtest.NewMemory(), 0)).(mem.PhysSlicer); sliced {
		t.Error("a failing reader hands out slices that cannot fail")
	}
}

func TestCounting(t *testing.T) {
	c := memtest.NewCounting(memtest.NewMemory(mem.Range{First: 0, Last: 0xfff}))
	if _, err := c.ReadPhys(make([]byte, 8), 0); err != nil {
		t.Error(err)
	}
	if _, err := c.ReadPhys(make([]byte, 8), 0xffc); err == nil {
		t.Error("no fault")
	}
	if c.Reads() != 2 || c.Bytes() != 12 {
		t.Errorf("%d reads of %d bytes", c.Reads(), c.Bytes())
	}
}
