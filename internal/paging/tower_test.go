package paging_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
	"nestdbg/internal/paging"
	"nestdbg/internal/paging/pagingtest"
)

// towerBase is where the tower's test memory is mapped in its topmost space.
const towerBase = 0xffff_8880_0000_0000

// tower is a guest of a guest: virtual addresses by 4-level tables, which stand in
// memory behind nested tables of 5 levels, which stand behind an EPT.
type tower struct {
	ram        *memtest.Memory
	ept, npt   *pagingtest.Builder
	guest      *pagingtest.Builder
	l2, l3, va *paging.Space
	text       []byte // what is at towerBase
}

func newTower(pages int) *tower {
	tw := &tower{ram: memtest.NewMemory(mem.Range{First: 0, Last: 0x3f_ffff})}
	frames := func(seed uint64) *pagingtest.Frames {
		return pagingtest.NewFrames(mem.Range{First: 0, Last: 0x3f_ffff}, seed)
	}
	tw.ept = pagingtest.New("ept4", tw.ram, frames(1))
	tw.npt = pagingtest.New("npt5", tw.ept.Guest(), frames(2))
	l3, f := tw.npt.Guest(), frames(3)
	tw.guest = pagingtest.New("x86-4level", l3, f)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range uint64(pages) {
		page := make([]byte, 4096)
		for j := range page {
			page[j] = byte(r.Uint32())
		}
		at := f.Take()
		if _, err := l3.WritePhys(page, at); err != nil {
			panic(err)
		}
		tw.guest.Map(towerBase+i*4096, at, 4096, paging.Read|paging.Exec)
		tw.text = append(tw.text, page...)
	}
	tw.over(tw.ram)
	return tw
}

// over makes the tower's spaces anew over another reader of its RAM.
func (tw *tower) over(ram mem.PhysReader) {
	tw.l2 = paging.NewSpace("ept", paging.EPTFourLevel, ram, tw.ept.Root())
	tw.l3 = paging.NewSpace("npt", paging.NPTFiveLevel, tw.l2, tw.npt.Root())
	tw.va = paging.NewSpace("va", paging.X86FourLevel, tw.l3, tw.guest.Root())
}

// noSlices hides that a reader can slice.
type noSlices struct{ mem.PhysReader }

func TestTower(t *testing.T) {
	tw := newTower(40)
	for _, c := range []struct {
		name string
		ram  mem.PhysReader
	}{{"sliced", tw.ram}, {"read", noSlices{tw.ram}}} {
		t.Run(c.name, func(t *testing.T) {
			tw.over(c.ram)
			r := rand.New(rand.NewPCG(5, 5))
			for range 200 {
				off := r.IntN(len(tw.text))
				p := make([]byte, r.IntN(len(tw.text)-off)+1)
				n, err := tw.va.ReadVirt(p, towerBase+mem.Virt(off))
				if err != nil || !bytes.Equal(p[:n], tw.text[off:off+n]) || n != len(p) {
					t.Fatalf("%d bytes at +%#x: %d, %v", len(p), off, n, err)
				}
				b := tw.va.SliceVirt(towerBase+mem.Virt(off), 64)
				if want := tw.text[off:min(off+64, off|4095+1, len(tw.text))]; c.name == "sliced" && !bytes.Equal(b, want) {
					t.Fatalf("slice at +%#x: %d bytes, want %d", off, len(b), len(want))
				}
			}
		})
	}
}

// TestTowerFaults makes holes in each stage and checks who is blamed.
func TestTowerFaults(t *testing.T) {
	const page = uint64(towerBase + 3*4096)
	clear := func(uint64) uint64 { return 0 }
	for _, c := range []struct {
		name   string
		damage func(tw *tower, l3, l2 mem.Phys)
		blame  string // the spaces, outermost first, "/" between them
	}{
		{"va", func(tw *tower, _, _ mem.Phys) { tw.guest.Edit(page, 1, clear) }, "va"},
		{"npt leaf", func(tw *tower, l3, _ mem.Phys) { tw.npt.Edit(uint64(l3), 1, clear) }, "va/npt"},
		{"ept leaf", func(tw *tower, _, l2 mem.Phys) { tw.ept.Edit(uint64(l2), 1, clear) }, "va/npt/ept"},
		{"no RAM", func(tw *tower, _, l2 mem.Phys) {
			tw.ept.Map(uint64(l2), 0x8000_0000, 4096, tw.ept.Express(allPerms))
		}, "va/npt/ept/test memory"},
		{"guest's table in a hole", func(tw *tower, _, _ mem.Phys) {
			tw.npt.Edit(uint64(tw.guest.Table(page, 1)), 1, clear)
		}, "va/npt"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tw := newTower(8)
			l3, _, _ := tw.guest.Lookup(page)
			l2, _, _ := tw.npt.Lookup(uint64(l3))
			c.damage(tw, l3, l2)
			p := make([]byte, 6*4096)
			n, err := tw.va.ReadVirt(p, towerBase+100)
			want := page
			if c.name == "guest's table in a hole" {
				want = towerBase + 100
			}
			good := int(want - towerBase - 100)
			var fault *mem.FaultError
			if !errors.As(err, &fault) || fault.Addr != want || n != good {
				t.Fatalf("%d bytes, %v; want a fault at %#x", n, err, want)
			}
			if !bytes.Equal(p[:n], tw.text[100:100+n]) {
				t.Error("the bytes before the fault are wrong")
			}
			if got := blamed(err); got != c.blame {
				t.Errorf("blamed %s, want %s: %v", got, c.blame, err)
			}
			if b := tw.va.SliceVirt(mem.Virt(want), 8); len(b) != 0 {
				t.Error("a slice of a hole")
			}
		})
	}
}

// blamed lists the spaces of all faults in err.
func blamed(err error) string {
	var spaces []string
	for err != nil {
		var fault *mem.FaultError
		if !errors.As(err, &fault) {
			break
		}
		spaces = append(spaces, fault.Space)
		err = fault.Err
	}
	return strings.Join(spaces, "/")
}

// TestFailures fails the first read of RAM, the second, ... until none fails, with
// a fault and with a broken connection.
func TestFailures(t *testing.T) {
	broken := errors.New("the connection broke")
	tw := newTower(3)
	walk := func() error { _, err := tw.va.Walk(towerBase); return err }
	read := func() error { _, err := tw.va.ReadVirt(make([]byte, 3*4096), towerBase); return err }
	list := func() error {
		for _, err := range tw.va.Ranges(mem.Range{First: towerBase, Last: towerBase + 1<<20}) {
			if err != nil {
				return err
			}
		}
		return nil
	}
	for _, c := range []struct {
		name string
		do   func() error
		err  error
	}{
		{"walk", walk, nil}, {"walk, broken", walk, broken},
		{"read", read, nil}, {"read, broken", read, broken},
		{"list", list, nil}, {"list, broken", list, broken},
	} {
		t.Run(c.name, func(t *testing.T) {
			failed := 0
			for n := 0; ; n++ {
				ram := memtest.FailNthWith(tw.ram, n, c.err)
				tw.over(ram)
				err := c.do()
				if !ram.Reached() {
					if err != nil {
						t.Fatalf("nothing failed, and yet: %v", err)
					}
					break
				}
				if err == nil {
					continue // a table was read entry by entry instead
				}
				failed++
				if c.err != nil && (!errors.Is(err, broken) || errors.Is(err, mem.ErrFault)) {
					t.Fatalf("read %d: %v lost its class", n, err)
				}
				if c.err == nil && (!errors.Is(err, mem.ErrFault) || !errors.Is(err, memtest.ErrInjected)) {
					t.Fatalf("read %d: %v lost its class", n, err)
				}
			}
			if failed < 3 {
				t.Errorf("only %d failures showed", failed)
			}
		})
	}
}

// TestWalkFailures is the same without a Space, where no failure may be made good.
func TestWalkFailures(t *testing.T) {
	o := mapOne(paging.X86FiveLevel, 1)
	for n := 0; ; n++ {
		r := memtest.FailNth(o.memory, n)
		tr, err := o.format.Walk(r, o.tables.Root(), o.addr)
		if !r.Reached() {
			if err != nil || n != 5 {
				t.Errorf("after %d failures: %v", n, err)
			}
			return
		}
		var nm *paging.NotMappedError
		var fault *mem.FaultError
		if !errors.As(err, &nm) || !errors.As(err, &fault) || !errors.Is(err, mem.ErrFault) {
			t.Fatalf("read %d: %v", n, err)
		}
		if nm.Level != 5-n || nm.Cause != paging.Unreadable || len(nm.Steps) != n || len(tr.Steps) != n {
			t.Errorf("read %d: level %d, %d steps: %v", n, nm.Level, len(nm.Steps), err)
		}
		if at := o.tables.EntryAt(o.addr, 5-n); fault.Addr != uint64(at) {
			t.Errorf("read %d: fault at %#x, want %#x", n, fault.Addr, at)
		}
	}
}

// TestConcurrent reads one tower from several goroutines while it is flushed.
func TestConcurrent(t *testing.T) {
	tw := newTower(64)
	var wg sync.WaitGroup
	for g := range uint64(4) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r := rand.New(rand.NewPCG(g, g))
			p := make([]byte, 8*4096)
			for range 300 {
				off := r.IntN(len(tw.text) - len(p))
				if _, err := tw.va.ReadVirt(p, towerBase+mem.Virt(off)); err != nil {
					t.Error(err)
					return
				}
				if !bytes.Equal(p, tw.text[off:off+len(p)]) {
					t.Error("wrong bytes")
					return
				}
				if r.IntN(20) == 0 {
					tw.l2.Flush()
					tw.l3.Flush()
					tw.va.Flush()
				}
			}
		}()
	}
	wg.Wait()
}
