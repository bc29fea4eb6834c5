package printk

import (
	"fmt"

	"nestdbg/internal/mem"
)

// bound makes sure that there are not more ids from tail to head than descriptors.
func (g *geometry) bound() error {
	if n := g.count(); n > maxAhead {
		return fmt.Errorf("%w: record ids from %#x to %#x", ErrCorrupt, g.tail, g.head)
	} else if n > g.countMask+1 {
		// Records were added after the tail was read; those are gone for certain.
		g.tail = (g.head - g.countMask) & idMask
	}
	return nil
}

// settle is bound for a log that is all there is, and may be damaged: head_id and tail_id
// are two words, and the descriptors say the same once more. Where a record is beyond
// one of the ends, that end is wrong, and every descriptor is looked at.
func (w *walk) settle() error {
	head, tail := w.head, w.tail
	switch n, size := w.count(), w.countMask+1; {
	case n <= size:
	case w.stateOf(head) >= 0:
		if n > maxAhead {
			w.wrong("tail_id is %#x, and the newest record %#x", tail, head)
		}
		w.tail = (head - w.countMask) & idMask
	// A guest that runs can add some records between two reads, and takes the oldest
	// away before it adds one.
	case isRecord(w.stateOf(tail)) || n > 2*size && w.stateOf(tail) >= 0:
		w.wrong("head_id is %#x, and the oldest record %#x", head, tail)
		w.head, w.mended = (tail+w.countMask)&idMask, true
		return nil
	default:
		if err := w.bound(); err != nil {
			return err
		}
	}
	if next := (head + 1) & idMask; isRecord(w.stateOf(next)) && !w.reached(next) {
		w.wrong("head_id is %#x, and record id %#x is there", head, next)
		w.head, w.mended = (w.tail+w.countMask)&idMask, true
	}
	// The kernel makes a record reusable before it moves the tail past it.
	if last := (w.tail - 1) & idMask; isRecord(w.stateOf(last)) {
		w.wrong("tail_id is %#x, and record id %#x is there", tail, last)
		w.tail, w.mended = (head-w.countMask)&idMask, true
	}
	return nil
}

// wrong adds a problem with the ring itself.
func (w *walk) wrong(format string, args ...any) {
	w.problems = append(w.problems, Problem{Err: fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)})
}

func isRecord(state int) bool { return state == stateCommitted || state == stateFinalized }

// stateOf is the state of an id, -1 if its descriptor is another's or cannot be read.
func (w *walk) stateOf(id uint64) int {
	v, err := w.stateVar(id)
	if err != nil {
		w.problems = append(w.problems, Problem{Err: err})
	}
	if err != nil || v&idMask != id {
		return -1
	}
	return int(v >> 62)
}

// stateVar is what stands in the descriptor that an id would have.
func (w *walk) stateVar(id uint64) (uint64, error) {
	l := w.ring.Layout
	at := w.descs + (id&w.countMask)*l.DescSize + l.StateVar
	v, err := mem.VirtUint64(w.ring.Memory, mem.Virt(at))
	if err != nil {
		return 0, fmt.Errorf("read the descriptor: %w", err)
	}
	return v, nil
}

// reached reports whether the guest has taken an id since head_id was read.
func (w *walk) reached(id uint64) bool {
	l := w.ring.Layout
	now, err := mem.VirtUint64(w.ring.Memory, w.ring.Address+mem.Virt(l.DescRing+l.HeadID))
	return err == nil && (now-id)&idMask < maxAhead
}

// misplaced reports whether the descriptor of an id that is not there is one that the
// kernel never made. It may have the id that had its place before, or none, while it is
// being reserved; and a newer one, if the guest ran on.
func (w *walk) misplaced(id uint64) (bad, unused bool, err error) {
	v, err := w.stateVar(id)
	got := v & idMask
	switch {
	case err != nil || got == id:
		return false, false, err
	case v == 0 || got == (id-w.countMask-1)&idMask:
		return false, true, nil
	case got&w.countMask == id&w.countMask && (w.head-got)&idMask >= maxAhead && (got-id)&idMask < maxAhead:
		return !w.reached(got), false, nil
	}
	return true, false, nil
}

// gap counts ids at one end of the log whose descriptors are not theirs.
type gap struct{ bad, unused int }

// reserving is how many records may be in the making, one for each CPU that prints;
// ours. Nobody has seen more.
const reserving = 64

// at notes an id that is not there.
func (g *gap) at(w *walk, id uint64) error {
	bad, unused, err := w.misplaced(id)
	if bad {
		g.bad++
	}
	if unused {
		g.unused++
	}
	return err
}

// lost is how many of them were overwritten. What was never used is missing only where
// no record is there at all, or more follow the last than can be in the making.
func (g gap) lost(any bool) int {
	if any && g.unused <= reserving {
		return g.bad
	}
	return g.bad + g.unused
}
