package machine

import (
	"sync"

	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
)

// NestedMemory is a nested machine's physical memory: its parent's, seen
// through a second stage.
type NestedMemory struct {
	*paging.Space

	once   sync.Once
	ranges []mem.Range
}

// NewNestedMemory returns the memory that the second stage maps.
func NewNestedMemory(s *paging.Space) *NestedMemory { return &NestedMemory{Space: s} }

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
