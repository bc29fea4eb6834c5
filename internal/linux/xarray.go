package linux

import (
	"errors"
	"fmt"

	"nestdbg/internal/mem"
)

// xarrayNodesMax bounds the nodes of an xarray that are read.
const xarrayNodesMax = 1 << 12

// xarrayWalk reads a struct xarray: a tree of struct xa_node, or a single entry at
// index 0 as its head (Linux 6.1 include/linux/xarray.h). Entries with bit 0 set
// are numbers; with bits 1:0 = 2 they are nodes, or below 4096 marks.
type xarrayWalk struct {
	space        AddressSpace
	node         *shape
	shift, slots Field
	limit        int // entries
	nodes        int // read so far
	out          []mem.Virt
}

// xarrayEntries returns the pointers in an xarray, by ascending index.
func xarrayEntries(space AddressSpace, t *Types, head uint64, limit int) ([]mem.Virt, error) {
	s := newShape(t, "xa_node")
	w := &xarrayWalk{space: space, node: s, shift: s.need("shift"), slots: s.words("slots"), limit: limit}
	if s.err != nil {
		return nil, s.err
	}
	const firstShift = 64 // above that of any node
	err := w.entry(head, firstShift)
	return w.out, err
}

// entry adds what an entry of a node with this shift stands for. Problems in one
// branch do not hide the others.
func (w *xarrayWalk) entry(e uint64, above uint64) error {
	const node, marks = 2, 4096
	switch {
	case e == 0 || e&1 != 0 || (e&3 == node && e <= marks):
		return nil
	case e&3 == node:
		return w.children(mem.Virt(e-node), above)
	case len(w.out) == w.limit:
		return fmt.Errorf("xarray of more than %d entries: %w", w.limit, ErrCorrupt)
	}
	w.out = append(w.out, mem.Virt(e))
	return nil
}

func (w *xarrayWalk) children(at mem.Virt, above uint64) error {
	if w.nodes++; w.nodes > xarrayNodesMax {
		return fmt.Errorf("xarray of more than %d nodes: %w", xarrayNodesMax, ErrCorrupt)
	}
	rec, err := w.node.read(w.space, at)
	if err != nil {
		return err
	}
	shift := rec.uint(w.shift)
	if shift >= above {
		return fmt.Errorf("xa_node %#x has shift %d below one of %d: %w", at, shift, above, ErrCorrupt)
	}
	var all error
	for i := range w.slots.Count {
		e := rec.word(w.slots, i)
		if shift == 0 && e&3 == 2 {
			continue // a leaf holds no nodes
		}
		if err := w.entry(e, shift); err != nil {
			if all = errors.Join(all, err); w.nodes > xarrayNodesMax || len(w.out) == w.limit {
				break
			}
		}
	}
	return all
}
