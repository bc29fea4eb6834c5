package machine

import (
	"cmp"
	"fmt"
	"slices"
	"sync"

	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
)

// NestedMemory is a nested machine's physical memory: its parent's, seen
// through a second stage, and by the second road where that has a hole.
type NestedMemory struct {
	*paging.Space
	road   *Road          // nil if not known
	parent mem.PhysSlicer // what the road leads to

	once   sync.Once
	ranges []mem.Range
}

// NewNestedMemory returns the memory that the second stage maps.
func NewNestedMemory(s *paging.Space) *NestedMemory { return &NestedMemory{Space: s} }

// WithRoad returns memory that reads what the second stage lacks by the second
// road, which leads into the parent's memory. A nil road adds nothing.
func (n *NestedMemory) WithRoad(r *Road, parent mem.PhysSlicer) *NestedMemory {
	return &NestedMemory{Space: n.Space, road: r, parent: parent}
}

// ReadPhys implements mem.PhysReader. Each page is read as the second stage has
// it, if it does. The error is the second stage's: the road is a help, not a proof.
func (n *NestedMemory) ReadPhys(p []byte, a mem.Phys) (int, error) {
	done, err := n.Space.ReadPhys(p, a)
	for err != nil && n.road != nil && done < len(p) {
		at, together, off := n.aside(a + mem.Phys(done))
		if off != nil {
			return done, err
		}
		k, readErr := n.parent.ReadPhys(p[done:min(uint64(len(p)), uint64(done)+together)], at)
		if done += k; readErr != nil {
			return done, readErr
		}
		if err = nil; done < len(p) {
			k, err = n.Space.ReadPhys(p[done:], a+mem.Phys(done))
			done += k
		}
	}
	return done, err
}

// SlicePhys implements mem.PhysSlicer.
func (n *NestedMemory) SlicePhys(a mem.Phys, max int) []byte {
	b := n.Space.SlicePhys(a, max)
	if len(b) > 0 || n.road == nil || max <= 0 {
		return b
	}
	if _, _, err := n.Space.Translate(uint64(a)); err == nil {
		return nil // it is mapped, to memory that cannot be sliced
	}
	at, together, err := n.aside(a)
	if err != nil {
		return nil
	}
	return n.parent.SlicePhys(at, int(min(uint64(max), together)))
}

// aside translates by the road as far as one small page reaches: the next one may
// be in the second stage again.
func (n *NestedMemory) aside(a mem.Phys) (at mem.Phys, together uint64, err error) {
	const smallest = 4096
	at, together, err = n.road.Translate(a)
	return at, min(together, smallest-uint64(a)%smallest), err
}

// ToParent follows a physical address of a nested machine into its parent.
// aside says that the second stage has a hole there and the second road led on.
func (m *Machine) ToParent(a mem.Phys) (parent mem.Phys, contiguous uint64, aside bool, err error) {
	parent, contiguous, err = m.Second.Space.Translate(uint64(a))
	if n, ok := m.Phys.(*NestedMemory); err != nil && ok && n.road != nil {
		if at, together, off := n.aside(a); off == nil {
			return at, together, true, nil
		}
	}
	return parent, contiguous, false, err
}

// ToParentToWrite is ToParent for memory that is to be written to: the second road
// is taken only where the VMM itself may write. What it may only read can be shared
// with others, as the page of zeros is.
func (m *Machine) ToParentToWrite(a mem.Phys) (parent mem.Phys, contiguous uint64, err error) {
	parent, contiguous, aside, err := m.ToParent(a)
	if err != nil || !aside {
		return parent, contiguous, err
	}
	road := m.Road()
	user, _, err := road.User(a)
	if err != nil {
		return 0, 0, err
	}
	t, err := road.Space.Walk(uint64(user))
	if err == nil && t.Perm&paging.Write == 0 {
		_, _, hole := m.Second.Space.Translate(uint64(a))
		err = fmt.Errorf("%w, and its VMM may not write to it", hole)
	}
	if err != nil {
		return 0, 0, err
	}
	return parent, contiguous, nil
}

// Road is the second road to m's memory, nil if it is not known.
func (m *Machine) Road() *Road {
	if n, ok := m.Phys.(*NestedMemory); ok {
		return n.road
	}
	return nil
}

// PhysRanges implements mem.PhysRanger: what the second stage maps now, merged
// by guest-physical address. A second stage may be filled lazily, so this is
// what can be read here, not what the guest believes it has.
func (n *NestedMemory) PhysRanges() []mem.Range {
	n.once.Do(func() {
		all := mem.Range{First: 0, Last: ^uint64(0)}
		for m, err := range n.Space.Ranges(all) {
			if err != nil {
				continue // the part that cannot be walked is not memory
			}
			last := m.First + m.Size - 1
			if k := len(n.ranges); k > 0 && n.ranges[k-1].Last+1 == m.First {
				n.ranges[k-1].Last = last
			} else {
				n.ranges = append(n.ranges, mem.Range{First: m.First, Last: last})
			}
		}
	})
	return n.ranges
}

// Readable are the pages of m's physical memory that can be read now, merged: what
// the second stage maps, and what the second road adds to it.
func (m *Machine) Readable() []mem.Range {
	out := m.Phys.PhysRanges()
	n, ok := m.Phys.(*NestedMemory)
	if !ok || n.road == nil {
		return out
	}
	mapped := slices.Clone(out)
	for _, s := range n.road.Slots {
		out = append(out, n.beside(mapped, s)...)
	}
	return merge(out)
}

// maxBeside bounds the pages of one slot that are looked for: 1 TiB of it.
const maxBeside = 1 << 28

// beside are the pages of a slot that are not mapped, and which the road leads to.
func (n *NestedMemory) beside(mapped []mem.Range, s Slot) []mem.Range {
	var out []mem.Range
	last := s.Base + mem.Phys(s.Size-1)
	for a, count := s.Base, 0; a <= last && a >= s.Base && count < maxBeside; count++ {
		i, inside := slices.BinarySearchFunc(mapped, uint64(a), func(r mem.Range, at uint64) int {
			if r.Contains(at) {
				return 0
			}
			return cmp.Compare(r.First, at)
		})
		if inside {
			a = mem.Phys(mapped[i].Last + 1)
			if a == 0 {
				break
			}
			continue
		}
		const page = 4096
		if _, _, err := n.aside(a); err == nil {
			if k := len(out); k > 0 && out[k-1].Last+1 == uint64(a) {
				out[k-1].Last += page
			} else {
				out = append(out, mem.Range{First: uint64(a), Last: uint64(a) + page - 1})
			}
		}
		a += page
	}
	return out
}

// Tower is every machine that was found, parents before their children.
type Tower struct {
	Machines []*Machine
	// Problems is what could not be found out, and why.
	Problems []string
}

// Machine returns the machine with this name.
func (t *Tower) Machine(name string) (*Machine, bool) {
	for _, m := range t.Machines {
		if m.Name == name {
			return m, true
		}
	}
	return nil, false
}

// Children returns the machines that run directly inside m.
func (t *Tower) Children(m *Machine) []*Machine {
	var out []*Machine
	for _, c := range t.Machines {
		if c.Parent == m {
			out = append(out, c)
		}
	}
	return out
}

// Guest returns the deepest guest that a hosting CPU is in: the one whose instructions
// are executed, or will be when the CPU is entered again. Nil if it was not found.
func (t *Tower) Guest(c *CPU) (*Machine, *CPU) {
	if c.On >= 0 {
		return t.At(c.On)
	}
	for i := len(t.Machines) - 1; i >= 0; i-- {
		for _, g := range t.Machines[i].CPUs {
			if g != c && g.State == Parked && g.Executed != 0 && g.Executed == c.Executed {
				return t.Machines[i], g
			}
		}
	}
	return nil, nil
}

// At returns the machine and CPU whose instructions QEMU's CPU number on
// executes now: the deepest layer it is in.
func (t *Tower) At(on int) (*Machine, *CPU) {
	for i := len(t.Machines) - 1; i >= 0; i-- {
		for _, c := range t.Machines[i].CPUs {
			if c.On == on && (c.State == Running || c.State == Halted) {
				return t.Machines[i], c
			}
		}
	}
	return nil, nil
}
