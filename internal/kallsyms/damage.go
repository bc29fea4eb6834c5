package kallsyms

import (
	"fmt"

	"nestdbg/internal/mem"
)

// Memory that was overwritten costs some symbols, not the table: the markers say
// where every 256th name begins, so a name that is wrong takes its block along and no
// more, and an address that breaks the order is found by all the others.

// maxDamage is the share of a table, one in so many, that may be damaged. More is no
// table with damage: it is something else.
const maxDamage = 4

// lostName is the length of a name that is lost. No kernel has names without a token.
const lostName = 0

// markersIn finds the markers of count names in what stands between the names and
// token_table: as many words as there are blocks, in the right order, from zero on.
func markersIn(data []byte, count int) ([]int, bool) {
	f := &finder{image: data}
	blocks := (count + markerStep - 1) / markerStep
	for word := 4; word <= 8; word += 4 {
		for at := (len(data) - word*blocks) &^ 3; at >= 0; at -= 4 {
			run := f.markerRun(at, len(data), word)
			if len(run) >= blocks && run[blocks-1] < at && at-run[blocks-1] <= maxGroup+8 {
				return run[:blocks], true
			}
		}
	}
	return nil, false
}

// markedNames splits the count names at the start of data block by block. The names
// of a block that does not lead to the next one are lost.
func markedNames(t *tokens, data []byte, count int, markers []int) (*names, error) {
	n := &names{tokens: t, count: count, start: make([]uint32, 0, count/startStep+1), lost: make(map[int]bool)}
	check := newNameChecker(t)
	for block, from := range markers {
		first := block * markerStep
		ends, err := check.names(data, from, min(markerStep, count-first))
		if err == nil && (block+1 == len(markers) || ends[len(ends)-1] == markers[block+1]) {
			n.add(data[from:ends[0]])
			for i := range ends[1:] {
				n.add(data[ends[i]:ends[i+1]])
			}
			continue
		}
		for i := first; i < min(first+markerStep, count); i++ {
			n.add([]byte{lostName})
			n.lost[i] = true
		}
	}
	if len(n.lost) > count/maxDamage {
		return nil, fmt.Errorf("%d of %d names are damaged", len(n.lost), count)
	}
	return n, nil
}

// add adds the next name, with its length.
func (n *names) add(name []byte) {
	if n.added%startStep == 0 {
		n.start = append(n.start, uint32(len(n.data)))
	}
	n.added++
	n.data = append(n.data, name...)
}

// agree reports whether the names lead to every marker.
func (n *names) agree(markers []int) bool {
	for i, at := range markers {
		if int(n.start[i*markerStep/startStep]) != at {
			return false
		}
	}
	return true
}

// keepOrder finds the fewest addresses without which the others ascend, and moves
// each of them to the one before it, so that what is searched stays in order.
func keepOrder(addrs []uint64) (lost map[int]bool, err error) {
	moved := mem.MendOrder(addrs)
	if len(moved) > len(addrs)/maxDamage {
		return nil, fmt.Errorf("%d of %d addresses are out of order", len(moved), len(addrs))
	}
	lost = make(map[int]bool, len(moved))
	for _, i := range moved {
		lost[i] = true
	}
	return lost, nil
}

// Damage says in words which symbols are missing because their names or addresses
// were overwritten; empty if none are known to be.
func (t *Table) Damage() string {
	switch names, addrs := len(t.names.lost), len(t.lost); {
	case names > 0 && addrs > 0:
		return fmt.Sprintf("%d of %d names and %d addresses are damaged", names, t.Len(), addrs)
	case names > 0:
		return fmt.Sprintf("%d of %d names are damaged", names, t.Len())
	case addrs > 0:
		return fmt.Sprintf("%d of %d addresses are damaged", addrs, t.Len())
	}
	return ""
}
