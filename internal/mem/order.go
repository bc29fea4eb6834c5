package mem

import (
	"slices"
	"sort"
)

// MendOrder is for tables of addresses that ascend but for the entries that damage
// changed: it moves the fewest it must, each to the one before it, so that the table
// can be searched, and returns their indices in ascending order.
func MendOrder(addrs []uint64) (moved []int) {
	// The longest run that ascends, by patience: ends[n] is the index of the lowest
	// address that ends a run of n+1.
	ends := make([]int, 0, len(addrs))
	before := make([]int, len(addrs))
	for i, a := range addrs {
		n := len(ends)
		if n > 0 && a < addrs[ends[n-1]] {
			n = sort.Search(n, func(j int) bool { return addrs[ends[j]] > a })
		}
		if n == len(ends) {
			ends = append(ends, i)
		}
		ends[n], before[i] = i, -1
		if n > 0 {
			before[i] = ends[n-1]
		}
	}
	if len(ends) == len(addrs) {
		return nil
	}
	kept := make([]bool, len(addrs))
	for i := ends[len(ends)-1]; i >= 0; i = before[i] {
		kept[i] = true
	}
	last := addrs[slices.Index(kept, true)]
	for i := range addrs {
		if kept[i] {
			last = addrs[i]
			continue
		}
		addrs[i] = last
		moved = append(moved, i)
	}
	return moved
}
