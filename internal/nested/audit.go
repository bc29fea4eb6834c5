package nested

import (
	"cmp"
	"fmt"
	"slices"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
)

// Audit is who reaches what, by the second stages alone: what a processor lets a guest do.
type Audit struct {
	Machines []*machine.Machine // the nested ones
	Shared   []Sharing          // of every two of them, those that share nothing included
	Exposed  []Exposure
	Loose    []Loose
	Problems []string
}

// Sharing is the memory that two machines reach, in the machine that both are in.
type Sharing struct {
	A, B, Ancestor *machine.Machine
	// Inside says that B is in A, or A the same as B: then all that B has is A's, too.
	Inside   bool
	Bytes    uint64
	Overlaps []Overlap // A and B of each are those of the machines; nil if Inside
}

// Critical is memory that a hypervisor must keep to itself.
type Critical struct {
	mem.Range        // in the physical memory of the hypervisor
	What      string // "VMCB of vm0 CPU 0"
}

// Exposure is memory that a hypervisor must keep to itself and a machine inside it reaches.
type Exposure struct {
	Machine, Of *machine.Machine
	What        string
	Piece       // Range is of the machine Of; Addr and Perm are those of Machine
}

// Loose is what a machine may both write and execute, by its own physical addresses.
type Loose struct {
	Machine *machine.Machine
	Ranges  []mem.Range
	Bytes   uint64
}

// NewAudit looks at every second stage of a tower. images are parts of memory, by machine,
// in which the hypervisor itself is known to lie.
func NewAudit(t *machine.Tower, images map[*machine.Machine][]Critical) *Audit {
	a := &auditor{tower: t, images: images, reach: make(map[[2]*machine.Machine][]Piece)}
	for _, m := range t.Machines {
		if m.Parent != nil {
			a.out.Machines = append(a.out.Machines, m)
		}
	}
	a.shared()
	for _, m := range t.Machines {
		if len(t.Children(m)) > 0 {
			a.exposed(m)
		}
	}
	for _, m := range a.out.Machines {
		a.loose(m)
	}
	slices.Sort(a.out.Problems)
	a.out.Problems = slices.Compact(a.out.Problems)
	return &a.out
}

type auditor struct {
	tower  *machine.Tower
	images map[*machine.Machine][]Critical
	reach  map[[2]*machine.Machine][]Piece // of a machine, in an ancestor
	out    Audit
}

func (a *auditor) problem(format string, args ...any) {
	a.out.Problems = append(a.out.Problems, fmt.Sprintf(format, args...))
}

func (a *auditor) reaches(m, ancestor *machine.Machine) []Piece {
	key := [2]*machine.Machine{m, ancestor}
	if pieces, ok := a.reach[key]; ok {
		return pieces
	}
	pieces, problems := Reach(m, ancestor)
	a.out.Problems = append(a.out.Problems, problems...)
	a.reach[key] = pieces
	return pieces
}

// shared compares every two machines in their closest common ancestor.
func (a *auditor) shared() {
	for i, x := range a.out.Machines {
		for _, y := range a.out.Machines[i:] {
			s := Sharing{A: x, B: y, Ancestor: common(x, y)}
			if s.Ancestor == x {
				s.Inside = true
				s.Ancestor = y.Parent
				for _, p := range a.reaches(y, y.Parent) {
					s.Bytes += p.Size()
				}
			} else {
				s.Overlaps = overlaps(a.reaches(x, s.Ancestor), a.reaches(y, s.Ancestor))
				for _, o := range s.Overlaps {
					s.Bytes += o.Size()
				}
			}
			a.out.Shared = append(a.out.Shared, s)
		}
	}
}

// common is the closest machine that both are in, or one of the two if the other is in it.
func common(x, y *machine.Machine) *machine.Machine {
	for x != y {
		if x.Level >= y.Level && x.Parent != nil {
			x = x.Parent
		} else {
			y = y.Parent
		}
	}
	return x
}

// exposed compares what a hypervisor must keep to itself with what each machine inside it
// reaches.
func (a *auditor) exposed(of *machine.Machine) {
	byWhat := make(map[string][]Piece)
	for _, c := range append(a.critical(of), a.images[of]...) {
		byWhat[c.What] = append(byWhat[c.What], Piece{Range: c.Range, Addr: c.First})
	}
	for _, m := range a.out.Machines {
		if !inside(m, of) {
			continue
		}
		pieces := a.reaches(m, of)
		for what, own := range byWhat {
			for _, o := range overlaps(pieces, flatten(slices.Clone(own))) {
				a.out.Exposed = append(a.out.Exposed, Exposure{Machine: m, Of: of, What: what, Piece: o.A})
			}
		}
	}
	slices.SortStableFunc(a.out.Exposed, func(x, y Exposure) int {
		return cmp.Or(cmp.Compare(x.Of.Name, y.Of.Name), cmp.Compare(x.Machine.Name, y.Machine.Name),
			cmp.Compare(x.First, y.First), cmp.Compare(x.What, y.What))
	})
}

func inside(m, of *machine.Machine) bool {
	for m = m.Parent; m != nil; m = m.Parent {
		if m == of {
			return true
		}
	}
	return false
}

// parted is a technology that knows what else belongs to a control block: what a guest may
// do, what it did, what an entry or an exit loads.
type parted interface {
	parts(page []byte) []Critical
}

// critical is a structure of a control block; one that would end beyond all addresses ends
// there.
func critical(what string, at mem.Phys, size uint64) Critical {
	last := uint64(at) + size - 1
	if last < uint64(at) {
		last = ^uint64(0)
	}
	return Critical{mem.Range{First: uint64(at), Last: last}, what}
}

// critical is what the hypervisor of a machine must keep to itself, as far as it is known.
func (a *auditor) critical(m *machine.Machine) (out []Critical) {
	tables := func(what string, f *paging.Format, root mem.Phys) {
		pages, complete := f.TablePages(m.Phys, root)
		if !complete {
			a.problem("%s: more than %d tables; the rest was not looked at", what, paging.MaxTables)
		}
		for _, p := range pages {
			name := what
			if p == root {
				name = "root of the " + what
			}
			out = append(out, Critical{pageAt(p), name})
		}
	}
	for _, c := range m.CPUs {
		space, err := m.Space(c)
		if err != nil {
			a.problem("page tables of %s CPU %d are not known: %v", m.Name, c.Index, err)
			continue
		}
		tables("page tables of "+m.Name, space.Format(), space.Root())
		if at, ok := c.Regs.Get("vm_hsave"); ok && at != 0 {
			out = append(out, Critical{pageAt(mem.Phys(at)), fmt.Sprintf("host save area of %s CPU %d", m.Name, c.Index)})
		}
	}
	for _, child := range a.tower.Children(m) {
		for _, s := range stages(child) {
			tables("second stage of "+child.Name, s.Space.Format(), s.Space.Root())
		}
		for _, c := range child.CPUs {
			out = append(out, control(m, child, c)...)
		}
	}
	return out
}

func pageAt(a mem.Phys) mem.Range {
	first := uint64(a) &^ (pageSize - 1)
	return mem.Range{First: first, Last: first + pageSize - 1}
}

// control is the control block of a guest's CPU, what belongs to it, and where the
// hypervisor's own state is while the guest runs.
func control(m, child *machine.Machine, c *machine.CPU) (out []Critical) {
	if c.Control == 0 {
		return nil
	}
	tech, err := technologyOf(c, m.Arch)
	if err != nil {
		return nil
	}
	of := fmt.Sprintf("of %s CPU %d", child.Name, c.Index)
	out = append(out, Critical{pageAt(c.Control), tech.name() + " " + of})
	if c.Merged != 0 {
		out = append(out, Critical{pageAt(c.Merged), "merged " + tech.name() + " " + of})
	}
	if page, err := controlPage(m, c.Control); err == nil {
		if p, ok := tech.(parted); ok {
			for _, x := range p.parts(page) {
				out = append(out, Critical{x.Range, x.What + " " + of})
			}
		}
	}
	if _, at, err := tech.saved(m, c.Control, 0); c.On >= 0 && err == nil && at != c.Control {
		out = append(out, Critical{pageAt(at), "host save area of " + m.Name})
	}
	return out
}

// loose lists what a machine may both write and execute.
func (a *auditor) loose(m *machine.Machine) {
	var all []Piece
	for _, s := range stages(m) {
		for x, err := range s.Space.Ranges(mem.Range{Last: ^uint64(0)}) {
			if err != nil || x.Perm&paging.Write == 0 || x.Perm&(paging.Exec|paging.UserExec) == 0 {
				continue // what cannot be walked was said by Reach
			}
			r := mem.Range{First: x.First, Last: x.Last()}
			if k := len(all); k > 0 && all[k-1].Last+1 == r.First {
				all[k-1].Last = r.Last
				continue
			}
			if len(all) == maxPieces {
				break
			}
			all = append(all, Piece{Range: r, Addr: r.First})
		}
	}
	l := Loose{Machine: m}
	for _, p := range flatten(all) {
		l.Ranges = append(l.Ranges, p.Range)
		l.Bytes += p.Size()
	}
	if len(l.Ranges) > 0 {
		a.out.Loose = append(a.out.Loose, l)
	}
}
