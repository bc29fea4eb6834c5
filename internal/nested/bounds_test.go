package nested

import (
	"strings"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/svm/svmtest"
)

// oneProblem fails unless exactly one problem is told, with this text.
func oneProblem(t *testing.T, problems []string, text string) {
	t.Helper()
	if len(problems) != 1 || !strings.Contains(problems[0], text) {
		t.Errorf("problems %q, want one with %q", problems, text)
	}
}

// Only a hypervisor that is understood shows guests of guests, and then the same
// ones again if its memory is mapped again: the depth must end somewhere.
func TestDepthIsBounded(t *testing.T) {
	w := nestedtest.New()
	v := w.Guest().CPU(nestedtest.Text, 0)
	w.Save(0, v, nestedtest.Text+3, 0)
	for level, want := range map[int]int{maxLevel - 1: 2, maxLevel: 1} {
		m := w.Machine(v.Running(0, nestedtest.Text, 0))
		m.Level = level
		tower := new(Finder).Build(m, Options{})
		if len(tower.Machines) != want {
			t.Errorf("level %d: %d machines, want %d", level, len(tower.Machines), want)
		}
		if want == 1 {
			oneProblem(t, tower.Problems, "level 9")
		}
	}
}

func TestLookalikesAreBounded(t *testing.T) {
	const pages = maxFound + 100
	ram := memtest.NewMemory(mem.Range{First: 0, Last: pages*pageSize - 1})
	page := svmtest.VMCB(nil)
	for i := range mem.Phys(pages) {
		ram.Put(i*pageSize, page)
	}
	w := nestedtest.New()
	m := w.Machine(w.Host(0, nestedtest.Text, 0))
	m.Phys = ram
	found := make(map[mem.Phys]*candidate)
	var problems []string
	scan(m, svmTechnology{}, found, Options{}, func(f string, _ ...any) { problems = append(problems, f) })
	if len(found) != maxFound {
		t.Errorf("%d pages, want %d", len(found), maxFound)
	}
	oneProblem(t, problems, "look like")
}

func TestSplit(t *testing.T) {
	all := ^uint64(0)
	for _, c := range []struct{ in, want []mem.Range }{
		{nil, nil},
		{[]mem.Range{{First: 0, Last: 15}}, []mem.Range{{First: 0, Last: 15}}},
		{[]mem.Range{{First: 0, Last: 16}}, []mem.Range{{First: 0, Last: 15}, {First: 16, Last: 16}}},
		{[]mem.Range{{First: all - 20, Last: all}, {First: 5, Last: 5}},
			[]mem.Range{{First: all - 20, Last: all - 5}, {First: all - 4, Last: all}, {First: 5, Last: 5}}},
	} {
		got := split(c.in, 16)
		if len(got) != len(c.want) {
			t.Fatalf("%v: %v", c.in, got)
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%v: piece %d is %v, want %v", c.in, i, got[i], c.want[i])
			}
		}
	}
}

// Ranges need not begin and end with pages; what is not a whole page is not
// looked at, and the end of the address space is an end.
func TestSweepPiece(t *testing.T) {
	last := ^uint64(0)
	ram := memtest.NewMemory(mem.Range{First: 0, Last: 0x7fff}, mem.Range{First: last - 0x1fff, Last: last})
	page := svmtest.VMCB(nil)
	for _, a := range []uint64{0, 0x3000, 0x7000, last - 0xfff} {
		ram.Put(mem.Phys(a), page)
	}
	w := nestedtest.New()
	m := w.Machine(w.Host(0, nestedtest.Text, 0))
	m.Phys = ram
	for _, c := range []struct {
		in   mem.Range
		want []mem.Phys
	}{
		{mem.Range{First: 0, Last: 0x7fff}, []mem.Phys{0, 0x3000, 0x7000}},
		{mem.Range{First: 1, Last: 0x7ffe}, []mem.Phys{0x3000}},
		{mem.Range{First: 0x3000, Last: 0x3ffe}, nil},
		{mem.Range{First: last - 0x1fff, Last: last}, []mem.Phys{mem.Phys(last - 0xfff)}},
		{mem.Range{First: last - 5, Last: last}, nil},
	} {
		sw := sweeper{phys: m.Phys, tests: []pageTest{svmTechnology{}.quickReject}}
		got := sw.piece(c.in)[0]
		if len(got) != len(c.want) {
			t.Errorf("%v: %#x, want %#x", c.in, got, c.want)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%v: %#x, want %#x", c.in, got, c.want)
			}
		}
	}
}
