package machine

import (
	"cmp"
	"slices"
	"sort"

	"nestdbg/internal/mem"
)

// populatedRanger is memory that knows which of its pages were ever written. Others
// need no search, and had better not be read: that can make the host allocate them.
type populatedRanger interface{ PopulatedRanges() []mem.Range }

// maxPopulated bounds the ranges that PopulatedRanges tells apart.
const maxPopulated = 1 << 20

// PopulatedRanges are the parts of PhysRanges that lead to memory of the parent
// which was ever written, as far as the parent knows that: one large page of a second
// stage may be a gigabyte of nothing.
func (n *NestedMemory) PopulatedRanges() []mem.Range {
	parent, ok := n.Space.Memory().(populatedRanger)
	if !ok {
		return n.PhysRanges()
	}
	written := parent.PopulatedRanges()
	var out []mem.Range
	for m, err := range n.Space.Ranges(mem.Range{First: 0, Last: ^uint64(0)}) {
		if err != nil {
			continue // the part that cannot be walked is not memory
		}
		first, last := uint64(m.Phys), uint64(m.Phys)+m.Size-1
		at := sort.Search(len(written), func(i int) bool { return written[i].Last >= first })
		for ; at < len(written) && written[at].First <= last; at++ {
			from := max(written[at].First, first)
			to := min(written[at].Last, last)
			out = append(out, mem.Range{First: m.First + (from - first), Last: m.First + (to - first)})
		}
		if len(out) > maxPopulated {
			return n.PhysRanges()
		}
	}
	return merge(out)
}

// merge sorts ranges and joins those that touch.
func merge(all []mem.Range) []mem.Range {
	slices.SortFunc(all, func(a, b mem.Range) int { return cmp.Compare(a.First, b.First) })
	merged := all[:0:0]
	for _, r := range all {
		if k := len(merged); k > 0 && merged[k-1].Last+1 == r.First {
			merged[k-1].Last = r.Last
		} else {
			merged = append(merged, r)
		}
	}
	return merged
}
