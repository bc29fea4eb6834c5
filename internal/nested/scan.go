package nested

import (
	"sync"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
)

// PopulatedRanger is memory that knows which of its pages were ever written;
// the rest need not be searched.
type PopulatedRanger interface {
	PopulatedRanges() []mem.Range
}

// scan looks at every page of m's memory for control blocks of one technology.
// The quick test reads one cache line of a page, so this runs at the speed at
// which cache lines arrive.
func scan(m *machine.Machine, tech technology, found map[mem.Phys]*candidate, problem func(string, ...any)) {
	ranges := m.Phys.PhysRanges()
	if p, ok := m.Phys.(PopulatedRanger); ok {
		ranges = p.PopulatedRanges()
	}
	hits := make(chan mem.Phys)
	var wg sync.WaitGroup
	for _, r := range split(ranges, scanPiece) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			scanRange(m, tech, r, hits)
		}()
	}
	go func() { wg.Wait(); close(hits) }()
	full := false
	for at := range hits {
		if found[at] != nil {
			continue
		}
		if len(found) >= maxFound {
			if !full {
				problem("more than %d pages look like a %s; the rest was not looked at", maxFound, tech.name())
			}
			full = true
			continue // whoever sends hits must be heard to the end
		}
		if c := inspect(m, tech, at); c != nil {
			c.evidence = append(c.evidence, "found by content")
			found[at] = c
		}
	}
}

// scanPiece is how much memory one goroutine of a scan takes.
const scanPiece = 256 << 20

// maxFound bounds how many control blocks are taken from one machine's memory. A
// guest can fill its memory with pages that look like one.
const maxFound = 4096

// split cuts ranges into pieces of at most size bytes.
func split(ranges []mem.Range, size uint64) []mem.Range {
	var out []mem.Range
	for _, r := range ranges {
		for r.Last-r.First >= size {
			out = append(out, mem.Range{First: r.First, Last: r.First + size - 1})
			r.First += size
		}
		out = append(out, r)
	}
	return out
}

// scanRange sends the address of every page in r that the quick test lets pass.
func scanRange(m *machine.Machine, tech technology, r mem.Range, hits chan<- mem.Phys) {
	first := (r.First + pageSize - 1) &^ (pageSize - 1)
	if first < r.First {
		return // no page begins in it: the next would be past the end of the address space
	}
	for a := first; a >= first && a <= r.Last && r.Last-a >= pageSize-1; {
		b := m.Phys.SlicePhys(mem.Phys(a), scanPiece)
		n := len(b) / pageSize * pageSize
		if n == 0 {
			a += pageSize
			continue
		}
		n = int(min(uint64(n), r.Last-a+1)) / pageSize * pageSize
		for o := 0; o < n; o += pageSize {
			if page := b[o : o+pageSize]; !tech.quickReject(page) {
				hits <- mem.Phys(a + uint64(o))
			}
		}
		a += uint64(n)
	}
}
