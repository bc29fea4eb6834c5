package mem_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
)

// virtual reads a memory by virtual addresses that are the physical ones.
type virtual struct{ mem.PhysReader }

func (v virtual) ReadVirt(p []byte, a mem.Virt) (int, error) { return v.ReadPhys(p, mem.Phys(a)) }

func TestRange(t *testing.T) {
	r := mem.Range{First: 0x1000, Last: 0x1fff}
	for a, want := range map[uint64]bool{0xfff: false, 0x1000: true, 0x1fff: true, 0x2000: false} {
		if r.Contains(a) != want {
			t.Errorf("Contains(%#x) is %v", a, !want)
		}
	}
	if r.Size() != 0x1000 || r.String() != "0x1000-0x1fff" {
		t.Errorf("%#x %v", r.Size(), r)
	}
	all := mem.Range{First: 0, Last: ^uint64(0)}
	if all.Size() != 0 || !all.Contains(^uint64(0)) || !all.Contains(0) {
		t.Errorf("the whole space: size %#x", all.Size())
	}
	if one := (mem.Range{First: 5, Last: 5}); one.Size() != 1 {
		t.Errorf("one address: size %#x", one.Size())
	}
}

func TestFaultError(t *testing.T) {
	inner := &mem.FaultError{Space: "npt", Addr: 0x2000, Err: mem.ErrNoRAM}
	outer := &mem.FaultError{Space: "va", Addr: 0x1000, Err: inner}
	wrapped := fmt.Errorf("reading a name: %w", outer)
	if !errors.Is(wrapped, mem.ErrFault) || !errors.Is(wrapped, mem.ErrNoRAM) {
		t.Error("the class is lost")
	}
	var fault *mem.FaultError
	if !errors.As(wrapped, &fault) || fault != outer || !errors.As(fault.Err, &fault) || fault != inner {
		t.Error("the facts are lost")
	}
	if want := "va: cannot read 0x1000: npt: cannot read 0x2000: no RAM at this physical address"; outer.Error() != want {
		t.Errorf("%s", outer)
	}
	if bare := (&mem.FaultError{Space: "va", Addr: 16}); bare.Error() != "va: cannot read 0x10" || errors.Is(bare, mem.ErrNoRAM) {
		t.Errorf("%s", bare)
	}
}

func TestWords(t *testing.T) {
	m := memtest.NewMemory(mem.Range{First: 0x1000, Last: 0x1fff}, mem.Range{First: 0x2000, Last: 0x2fff})
	m.Put(0x1ffc, []byte{1, 2, 3, 4, 5, 6, 7, 8}) // over a page boundary
	v := virtual{m}
	type read func() (uint64, error)
	u32 := func(x uint32, err error) (uint64, error) { return uint64(x), err }
	for name, c := range map[string]struct {
		do   read
		want uint64
	}{
		"Uint64":         {func() (uint64, error) { return mem.Uint64(m, 0x1ffc) }, 0x0807_0605_0403_0201},
		"Uint64 in page": {func() (uint64, error) { return mem.Uint64(m, 0x1ff8) }, 0x0403_0201_0000_0000},
		"Uint32":         {func() (uint64, error) { return u32(mem.Uint32(m, 0x1ffe)) }, 0x0605_0403},
		"VirtUint64":     {func() (uint64, error) { return mem.VirtUint64(v, 0x1ffc) }, 0x0807_0605_0403_0201},
		"VirtUint32":     {func() (uint64, error) { return u32(mem.VirtUint32(v, 0x1ffe)) }, 0x0605_0403},
	} {
		if got, err := c.do(); got != c.want || err != nil {
			t.Errorf("%s: %#x, %v", name, got, err)
		}
	}
	for name, do := range map[string]read{
		"Uint64":     func() (uint64, error) { return mem.Uint64(m, 0x2ff9) },
		"Uint32":     func() (uint64, error) { return u32(mem.Uint32(m, 0x2ffd)) },
		"VirtUint64": func() (uint64, error) { return mem.VirtUint64(v, 0x2ff9) },
		"VirtUint32": func() (uint64, error) { return u32(mem.VirtUint32(v, 0x2ffd)) },
	} {
		_, err := do()
		var fault *mem.FaultError
		if !errors.As(err, &fault) || fault.Addr != 0x3000 {
			t.Errorf("%s at the end: %v", name, err)
		}
	}
}

func TestCString(t *testing.T) {
	m := memtest.NewMemory(mem.Range{First: 0x1000, Last: 0x1fff})
	long := strings.Repeat("nested", 40)
	m.Put(0x1000, []byte(long))
	m.Put(0x1f00, []byte("vmx\x00svm\x00\x00"))
	m.Put(0x1ffa, []byte("tail\x00"))
	m.Put(0x1fff, []byte("x"))
	for _, c := range []struct {
		a    mem.Virt
		max  int
		want string
		ok   bool
	}{
		{0x1f00, 64, "vmx", true},
		{0x1f04, 64, "svm", true},
		{0x1f08, 64, "", true},
		{0x1f00, 4, "vmx", true},
		{0x1f00, 3, "", false}, // the NUL is the fourth byte
		{0x1f00, 0, "", false},
		{0x1000, 1000, long, true},
		{0x1001, len(long), long[1:], true},
		{0x1000, len(long), "", false},
		{0x1ffa, 4000, "tail", true}, // ends beside a hole
		{0x1fff, 4000, "", false},    // runs into it
		{0x2000, 4000, "", false},
	} {
		got, err := mem.CString(virtual{m}, c.a, c.max)
		if got != c.want || (err == nil) != c.ok {
			t.Errorf("%#x, at most %d: %q, %v", c.a, c.max, got, err)
		}
		if err != nil && !errors.Is(err, mem.ErrFault) {
			t.Errorf("%#x: %v is no fault", c.a, err)
		}
	}
}

// newImage has RAM from 0x1000 to 0x1fff, from 0x2000 to 0x27ff and from 0x4000 on,
// given in no order.
func newImage(t *testing.T) *mem.Image {
	t.Helper()
	fill := func(size int, b byte) []byte { return bytes.Repeat([]byte{b}, size) }
	m, err := mem.NewImage([]mem.Segment{
		{Base: 0x4000, Data: fill(0x1000, 3), FileOffset: 0x9000},
		{Base: 0x1000, Data: fill(0x1000, 1)},
		{Base: 0x3000},
		{Base: 0x2000, Data: fill(0x800, 2), FileOffset: 0x7000},
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestImage(t *testing.T) {
	m := newImage(t)
	want := []mem.Range{{First: 0x1000, Last: 0x1fff}, {First: 0x2000, Last: 0x27ff}, {First: 0x4000, Last: 0x4fff}}
	if got := fmt.Sprint(m.PhysRanges()); got != fmt.Sprint(want) || len(m.Segments()) != 3 {
		t.Errorf("%v", got)
	}
	for _, c := range []struct {
		a     mem.Phys
		size  int
		n     int
		first byte
		fault uint64
	}{
		{0x1000, 4, 4, 1, 0},
		{0x1ffe, 4, 4, 1, 0}, // over the boundary of two segments
		{0x27fe, 4, 2, 2, 0x2800},
		{0x4fff, 2, 1, 3, 0x5000},
		{0x3000, 1, 0, 0, 0x3000},
		{0xfff, 1, 0, 0, 0xfff},
		{^mem.Phys(0), 1, 0, 0, ^uint64(0)},
		{0x3000, 0, 0, 0, 0},
	} {
		p := make([]byte, c.size)
		n, err := m.ReadPhys(p, c.a)
		var fault *mem.FaultError
		if n != c.n || n > 0 && p[0] != c.first || (err != nil) != (c.fault != 0) {
			t.Errorf("%#x: %d bytes, %v", c.a, n, err)
		}
		if err != nil && (!errors.As(err, &fault) || fault.Addr != c.fault || !errors.Is(err, mem.ErrNoRAM)) {
			t.Errorf("%#x: %v, want a fault at %#x", c.a, err, c.fault)
		}
	}
}

func TestImageSlices(t *testing.T) {
	m := newImage(t)
	for _, c := range []struct {
		a         mem.Phys
		max, want int
	}{{0x1000, 16, 16}, {0x1ff0, 32, 16}, {0x27ff, 8, 1}, {0x2800, 8, 0}, {0x4000, 1 << 20, 0x1000}, {0x4000, 0, 0}} {
		if b := m.SlicePhys(c.a, c.max); len(b) != c.want || cap(b) != c.want {
			t.Errorf("%#x: %d bytes with room for %d, want %d", c.a, len(b), cap(b), c.want)
		}
	}
	for a, want := range map[mem.Phys]uint64{0x1010: 0x10, 0x2010: 0x7010, 0x4fff: 0x9fff} {
		if off, ok := m.FileOffset(a); !ok || off != want {
			t.Errorf("file offset of %#x is %#x, %v", a, off, ok)
		}
	}
	if _, ok := m.FileOffset(0x2800); ok {
		t.Error("a hole has a place in the file")
	}
}

func TestNewImageRefuses(t *testing.T) {
	page := make([]byte, 0x1000)
	for name, segments := range map[string][]mem.Segment{
		"overlap":             {{Base: 0x1000, Data: page}, {Base: 0x1fff, Data: page}},
		"the same twice":      {{Base: 0x1000, Data: page}, {Base: 0x1000, Data: page}},
		"beyond the last":     {{Base: ^mem.Phys(0) - 0xffe, Data: page}},
		"one inside the next": {{Base: 0x1000, Data: page}, {Base: 0x1800, Data: page[:16]}},
	} {
		if _, err := mem.NewImage(segments); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	m, err := mem.NewImage([]mem.Segment{{Base: ^mem.Phys(0) - 0xfff, Data: page}})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := m.ReadPhys(make([]byte, 8), ^mem.Phys(0)-7); n != 8 || err != nil {
		t.Errorf("the last bytes of all: %d, %v", n, err)
	}
	if n, err := m.ReadPhys(make([]byte, 16), ^mem.Phys(0)-7); n != 8 || !errors.Is(err, mem.ErrFault) {
		t.Errorf("past the end: %d, %v", n, err)
	}
	if empty, err := mem.NewImage(nil); err != nil || len(empty.PhysRanges()) != 0 {
		t.Errorf("%v, %v", empty, err)
	}
}

// TestImageWrap pins what a read does that passes the end of an address space with
// RAM at both ends: it goes on at 0. A fault would be better, as there is no such
// address and paging.Space stops there, but no machine has RAM at the end.
func TestImageWrap(t *testing.T) {
	page := make([]byte, 0x1000)
	m, err := mem.NewImage([]mem.Segment{{Base: 0, Data: page}, {Base: ^mem.Phys(0) - 0xfff, Data: page}})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := m.ReadPhys(make([]byte, 16), ^mem.Phys(0)-7); n != 16 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}
