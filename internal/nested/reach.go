package nested

import (
	"cmp"
	"fmt"
	"slices"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
)

// Piece is memory that lies together for a machine and for one of its ancestors.
type Piece struct {
	mem.Range        // in the ancestor's physical memory
	Addr      uint64 // of Range.First, in the machine's own physical memory
	Perm      paging.Perm
}

// at is the machine's own address of a.
func (p Piece) at(a uint64) uint64 { return p.Addr + a - p.First }

// maxPieces bounds the mappings of one machine that are looked at: 16 GiB of small
// pages without any two together. A guest's hypervisor may be hostile, too.
const maxPieces = 1 << 22

// Reach is the memory of an ancestor that a machine's second stages let it touch, in
// ascending order and without overlap. Where it has a page at several addresses, Addr is
// one of them and Perm what all of them allow together. What could not be walked is said.
func Reach(m, ancestor *machine.Machine) (pieces []Piece, problems []string) {
	for at := m; at != ancestor && at.Parent != nil; at = at.Parent {
		step, said := stagePieces(at)
		problems = append(problems, said...)
		if at == m {
			pieces = step
			continue
		}
		pieces = flatten(through(pieces, step))
	}
	return pieces, problems
}

// stagePieces are the mappings of the second stages of a machine: one, or as many as its
// CPUs have.
func stagePieces(m *machine.Machine) (pieces []Piece, problems []string) {
	for _, s := range stages(m) {
		for x, err := range paging.Merge(s.Space.Ranges(mem.Range{Last: ^uint64(0)})) {
			if err != nil {
				problems = append(problems, fmt.Sprintf("second stage of %s: %v", m.Name, err))
				continue
			}
			if len(pieces) == maxPieces {
				problems = append(problems, fmt.Sprintf("second stage of %s: more than %d mappings; the rest was not looked at", m.Name, maxPieces))
				break
			}
			pieces = append(pieces, Piece{mem.Range{First: uint64(x.Phys), Last: uint64(x.Phys) + x.Size - 1}, x.First, x.Perm})
		}
	}
	return flatten(pieces), problems
}

// through follows pieces whose ranges are of a machine by the mappings of that machine,
// to its parent. The result is not flattened.
func through(pieces, stage []Piece) []Piece {
	own := slices.Clone(stage) // by the machine's own addresses, which are what pieces lead to
	slices.SortFunc(own, func(a, b Piece) int { return cmp.Compare(a.Addr, b.Addr) })
	var out []Piece
	i := 0
	for _, p := range pieces {
		for i < len(own) && own[i].at(own[i].Last) < p.First {
			i++
		}
		for _, s := range own[i:] {
			if s.Addr > p.Last {
				break
			}
			first, last := max(p.First, s.Addr), min(p.Last, s.at(s.Last))
			if len(out) == maxPieces {
				return out
			}
			out = append(out, Piece{mem.Range{First: s.First + first - s.Addr, Last: s.First + last - s.Addr}, p.at(first), p.Perm & s.Perm})
		}
	}
	return out
}

// flatten sorts pieces, cuts them where they overlap and joins neighbours.
func flatten(pieces []Piece) []Piece {
	slices.SortFunc(pieces, func(a, b Piece) int { return cmp.Or(cmp.Compare(a.First, b.First), cmp.Compare(a.Addr, b.Addr)) })
	var out []Piece
	push := func(p Piece) {
		if k := len(out); k > 0 {
			if l := &out[k-1]; l.Last+1 == p.First && l.at(l.Last)+1 == p.Addr && l.Perm == p.Perm {
				l.Last = p.Last
				return
			}
		}
		out = append(out, p)
	}
	for i := 0; i < len(pieces); {
		end, last := i+1, pieces[i].Last
		for end < len(pieces) && pieces[end].First <= last {
			last = max(last, pieces[end].Last)
			end++
		}
		if end == i+1 {
			push(pieces[i])
		} else {
			cut(pieces[i:end], push)
		}
		i = end
	}
	return out
}

// cut hands on pieces that overlap each other, as pieces that do not.
func cut(cluster []Piece, push func(Piece)) {
	bounds := make([]uint64, 0, 2*len(cluster)) // where a piece begins, or the next would
	for _, p := range cluster {
		bounds = append(bounds, p.First, p.Last+1)
	}
	slices.Sort(bounds)
	bounds = slices.Compact(bounds)
	byEnd := slices.Clone(cluster)
	slices.SortFunc(byEnd, func(a, b Piece) int { return cmp.Compare(a.Last, b.Last) })
	var allow [8]int // how many of those that cover a place allow each permission
	count := func(perm paging.Perm, n int) {
		for bit := range allow {
			if perm>>bit&1 != 0 {
				allow[bit] += n
			}
		}
	}
	var covering []Piece // the newest last; some of them have ended
	next, ended := 0, 0
	for i := 0; i+1 < len(bounds); i++ {
		at := bounds[i]
		for ; ended < len(byEnd) && byEnd[ended].Last < at; ended++ {
			count(byEnd[ended].Perm, -1)
		}
		for ; next < len(cluster) && cluster[next].First == at; next++ {
			count(cluster[next].Perm, 1)
			covering = append(covering, cluster[next])
		}
		for len(covering) > 0 && covering[len(covering)-1].Last < at {
			covering = covering[:len(covering)-1]
		}
		if len(covering) == 0 {
			continue
		}
		p := covering[len(covering)-1]
		whole := Piece{mem.Range{First: at, Last: bounds[i+1] - 1}, p.at(at), 0}
		for bit, n := range allow {
			if n > 0 {
				whole.Perm |= 1 << bit
			}
		}
		push(whole)
	}
}

// Overlap is memory that two machines reach, or one and something that should be its
// hypervisor's alone.
type Overlap struct {
	mem.Range
	A, B Piece // cut to Range
}

// overlaps are the parts that two lists, each in ascending order and without overlap, have
// in common.
func overlaps(a, b []Piece) []Overlap {
	var out []Overlap
	for i, j := 0, 0; i < len(a) && j < len(b); {
		first, last := max(a[i].First, b[j].First), min(a[i].Last, b[j].Last)
		if first <= last {
			r := mem.Range{First: first, Last: last}
			out = append(out, Overlap{r, Piece{r, a[i].at(first), a[i].Perm}, Piece{r, b[j].at(first), b[j].Perm}})
		}
		if a[i].Last < b[j].Last {
			i++
		} else {
			j++
		}
	}
	return out
}

// find is the piece that holds an address of the ancestor.
func find(pieces []Piece, a mem.Phys) (Piece, bool) {
	i, ok := slices.BinarySearchFunc(pieces, uint64(a), func(p Piece, at uint64) int {
		if p.Contains(at) {
			return 0
		}
		return cmp.Compare(p.First, at)
	})
	if !ok {
		return Piece{}, false
	}
	return pieces[i], true
}
