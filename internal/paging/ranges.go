package paging

import (
	"fmt"
	"iter"

	"nestdbg/internal/mem"
)

// Mapping is a run of addresses that one leaf maps, or several joined by Merge.
type Mapping struct {
	First uint64   // address
	Phys  mem.Phys // where First lies
	Size  uint64   // in bytes; 0 for the whole 64-bit space
	Perm  Perm
}

// Last is the last address of the mapping.
func (m Mapping) Last() uint64 { return m.First + m.Size - 1 }

// MaxTables is the number of tables that one Ranges reads, 4 GiB of them. Tables
// that refer to each other in circles would otherwise map up to 2^45 pages.
const MaxTables = 1 << 20

// Ranges lists the leaves that map addresses of in, in ascending order, cut to in.
// What is not mapped, or malformed, is left out: between two mappings there is
// nothing to read.
//
// A table that cannot be read gives an error, a *NotMappedError, together with the
// range it would have translated; the listing goes on behind it. It ends early
// after an error that is no mem.ErrFault and after MaxTables tables, which is an
// ErrCorrupt with the range that was not looked at.
func (f *Format) Ranges(r mem.PhysReader, root mem.Phys, in mem.Range) iter.Seq2[Mapping, error] {
	return f.ranges(r, root, in, MaxTables)
}

func (f *Format) ranges(
	r mem.PhysReader, root mem.Phys, in mem.Range, limit int,
) iter.Seq2[Mapping, error] {
	return func(yield func(Mapping, error) bool) {
		if in.First > in.Last {
			return
		}
		l := lister{format: f, reader: r, in: in, tablesLeft: limit, yield: yield}
		l.slicer, _ = r.(mem.PhysSlicer)
		if len(f.levels) > 0 {
			l.table(0, root, 0, f.perms)
		} else if all := (mem.Range{First: 0, Last: f.translated(^uint64(0))}); overlap(all, in) {
			l.leaf(all, 0, f.perms)
		}
	}
}

func overlap(a, b mem.Range) bool { return a.First <= b.Last && b.First <= a.Last }

// lister is one run of Ranges.
type lister struct {
	format     *Format
	reader     mem.PhysReader
	slicer     mem.PhysSlicer // reader, if it can slice; else nil
	in         mem.Range
	tablesLeft int
	yield      func(Mapping, error) bool
	steps      [maxLevels]Step   // on the way to the current table
	buffers    [maxLevels][]byte // copies of the tables on the way, where there is no slice
}

// covered is the addresses that entry index of a table translates, where start is
// the first translated address of the table. Both ends are in the same half of a
// signed space, and the ranges ascend with the index.
func (l *lister) covered(i int, start, index uint64) mem.Range {
	lv := &l.format.levels[i]
	first := start + index<<lv.shift
	return mem.Range{First: l.format.extend(first), Last: l.format.extend(first + (1<<lv.shift - 1))}
}

// table lists what the table of level i at an address maps. False means stop.
func (l *lister) table(i int, at mem.Phys, start uint64, perm Perm) bool {
	f := l.format
	lo, hi := uint64(0), f.levels[i].mask
	for lo < hi && l.covered(i, start, lo).Last < l.in.First {
		lo++
	}
	for hi > lo && l.covered(i, start, hi).First > l.in.Last {
		hi--
	}
	if !overlap(l.covered(i, start, lo), l.in) {
		return true
	}
	if l.tablesLeft == 0 {
		return l.stopAtLimit(max(l.in.First, l.covered(i, start, lo).First))
	}
	l.tablesLeft--
	entries, err := l.read(i, at+mem.Phys(lo*uint64(f.EntrySize)), int(hi-lo+1)*int(f.EntrySize))
	readable := uint64(len(entries)) / uint64(f.EntrySize)
	for k := range readable {
		if !l.entry(i, at, start, lo+k, f.entryIn(entries, k), perm) {
			return false
		}
	}
	if err == nil {
		return true
	}
	hole := mem.Range{First: l.covered(i, start, lo+readable).First, Last: l.covered(i, start, hi).Last}
	steps := append([]Step(nil), l.steps[:i]...)
	return l.fail(hole, f.unreadable(i, max(hole.First, l.in.First), steps, err)) && isFault(err)
}

// read returns size bytes of a table of level i, or those before the first that
// cannot be read. They are valid until the next table of that level.
func (l *lister) read(i int, at mem.Phys, size int) ([]byte, error) {
	if l.slicer != nil {
		if b := l.slicer.SlicePhys(at, size); len(b) == size {
			return b, nil
		}
	}
	if l.buffers[i] == nil {
		l.buffers[i] = make([]byte, l.format.tableSize(i))
	}
	n, err := l.reader.ReadPhys(l.buffers[i][:size], at)
	return l.buffers[i][:n], err
}

// entry lists what one entry maps.
func (l *lister) entry(i int, table mem.Phys, start, index, e uint64, perm Perm) bool {
	f := l.format
	next, leaf, ok := f.follow(i, e)
	if !ok {
		return true
	}
	c := l.covered(i, start, index)
	rule, _ := f.rule(i, e)
	perm = rule.allowed(perm, e)
	if leaf {
		return l.leaf(c, next, perm)
	}
	l.steps[i] = Step{Level: f.level(i), Table: table, Index: uint(index),
		At: table + mem.Phys(index*uint64(f.EntrySize)), Entry: e}
	return l.table(i+1, next, start+index<<f.levels[i].shift, perm)
}

// leaf yields a leaf that maps c to phys, cut to what was asked for.
func (l *lister) leaf(c mem.Range, phys mem.Phys, perm Perm) bool {
	first, last := max(c.First, l.in.First), min(c.Last, l.in.Last)
	return l.yield(Mapping{First: first, Phys: phys + mem.Phys(first-c.First),
		Size: last - first + 1, Perm: perm}, nil)
}

// fail yields an error for a range, cut to what was asked for.
func (l *lister) fail(c mem.Range, err error) bool {
	first, last := max(c.First, l.in.First), min(c.Last, l.in.Last)
	return l.yield(Mapping{First: first, Size: last - first + 1}, err)
}

// stopAtLimit yields the error that ends a listing.
func (l *lister) stopAtLimit(first uint64) bool {
	l.fail(mem.Range{First: first, Last: l.in.Last}, fmt.Errorf(
		"%w: %s: more than the limit of tables in use, from %#x on nothing was listed "+
			"(tables that refer to themselves?)", ErrCorrupt, l.format.Name, first))
	return false
}

// Merge joins neighbours that are contiguous in both spaces and have the same
// permissions. Errors pass through in their place.
func Merge(seq iter.Seq2[Mapping, error]) iter.Seq2[Mapping, error] {
	return func(yield func(Mapping, error) bool) {
		var run Mapping
		have := false
		for m, err := range seq {
			if err == nil && have && m.Perm == run.Perm && run.Last()+1 == m.First &&
				run.Phys+mem.Phys(run.Size) == m.Phys {
				run.Size += m.Size
				continue
			}
			if have && !yield(run, nil) {
				return
			}
			if run, have = m, err == nil; !have && !yield(m, err) {
				return
			}
		}
		if have {
			yield(run, nil)
		}
	}
}
