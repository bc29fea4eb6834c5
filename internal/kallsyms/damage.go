package kallsyms

import (
	"bytes"
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
func markersIn(data []byte, count int) (at int, markers []int, ok bool) {
	f := &finder{image: data}
	blocks := (count + markerStep - 1) / markerStep
	for word := 4; word <= 8; word += 4 {
		for at := (len(data) - word*blocks) &^ 3; at >= 0; at -= 4 {
			run := f.markerRun(at, len(data), word)
			if len(run) >= blocks && run[blocks-1] < at && at-run[blocks-1] <= maxGroup+8 {
				return at, run[:blocks], true
			}
		}
	}
	return 0, nil, false
}

// roughNames is markedNames with markers of which some are wrong, wherever they are
// behind the names.
func roughNames(t *tokens, data []byte, count int) (*names, bool) {
	f := &finder{image: data, work: maxWork}
	blocks := (count + markerStep - 1) / markerStep
	for word := 4; word <= 8; word += 4 {
		for at := (len(data) - word*blocks) &^ 3; at >= 0 && f.work > 0; at -= 4 {
			f.work--
			run := f.roughMarkers(at, blocks, word)
			if run == nil {
				continue
			}
			f.work -= count
			if n, err := markedNames(t, data[:at], count, run); err == nil {
				return n, true
			}
		}
	}
	return nil, false
}

// roughMarkers reads the markers of so many blocks at offset at if most of them can be
// such; the first has to be zero, and one of the next two right. The next call
// overwrites them.
func (f *finder) roughMarkers(at, blocks, word int) []int {
	if blocks < 2 || at+word*blocks > len(f.image) || f.word(at, word) != 0 {
		return nil
	}
	soon := false // which spares what is zero all over
	for i := 1; i <= min(2, blocks-1); i++ {
		v := f.word(at+i*word, word)
		soon = soon || v >= uint64(i*minGroup) && v <= uint64(i*maxGroup)
	}
	if !soon {
		return nil
	}
	run := append(f.rough[:0], 0)
	for wrong := 0; len(run) < blocks; {
		f.work--
		v, last := f.word(at+word*len(run), word), uint64(run[len(run)-1])
		if v < last+minGroup || v > last+maxGroup {
			// A marker that is wrong is followed by one that does not fit it.
			if wrong++; wrong > 2+2*blocks/maxDamage {
				return nil
			}
		}
		run = append(run, int(min(v, maxNames)))
		f.rough = run
	}
	return run
}

// markedNames splits the count names of data, which ends where they do but for padding,
// block by block. The names of a block that does not lead to the next one are lost. A
// marker that does not hold is passed over where the block behind it leads on.
func markedNames(t *tokens, data []byte, count int, markers []int) (*names, error) {
	n := &names{tokens: t, count: count, start: make([]uint32, 0, count/startStep+1), lost: make(map[int]bool)}
	check := newNameChecker(t)
	var room [2][markerStep]int // for a block and the one behind it
	walk := func(block, from int, room []int) (ends []int, leads bool) {
		ends = room[:min(markerStep, count-block*markerStep)]
		if check.names(data, from, ends) != nil {
			return nil, false
		}
		end := ends[len(ends)-1]
		if block+1 == len(markers) {
			return ends, isPadding(data[end:])
		}
		return ends, end == markers[block+1]
	}
	from := 0
	for block := range markers {
		ends, leads := walk(block, from, room[0][:])
		if !leads && ends != nil && block+1 < len(markers) {
			_, leads = walk(block+1, ends[len(ends)-1], room[1][:])
		}
		if leads {
			n.add(data[from:ends[0]])
			for i := range ends[1:] {
				n.add(data[ends[i]:ends[i+1]])
			}
			from = ends[len(ends)-1]
			continue
		}
		first := block * markerStep
		for i := first; i < min(first+markerStep, count); i++ {
			n.add([]byte{lostName})
			n.lost[i] = true
		}
		if len(n.lost) > count/maxDamage {
			return nil, fmt.Errorf("more than %d of %d names are damaged", len(n.lost)-1, count)
		}
		if block+1 < len(markers) {
			from = markers[block+1]
		}
	}
	return n, nil
}

// isPadding reports whether bytes are what aligns the next table.
func isPadding(b []byte) bool { return len(b) < 8 && len(bytes.Trim(b, "\x00")) == 0 }

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
