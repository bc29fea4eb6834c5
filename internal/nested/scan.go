package nested

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
)

// PopulatedRanger is memory that knows which of its pages were ever written;
// the rest need not be searched.
type PopulatedRanger interface {
	PopulatedRanges() []mem.Range
}

// Progress is told how many bytes of a search are done. It is called from several
// goroutines. When it returns false the search ends early.
type Progress func(done, all uint64) (goOn bool)

// scan looks at every page of m's memory for control blocks of one technology.
func scan(m *machine.Machine, tech technology, found map[mem.Phys]*candidate, opt Options, problem func(string, ...any)) {
	hits := opt.sweeps.of(m, opt.Progress)
	i := slices.Index(technologies[m.Arch.Name], tech)
	if i < 0 || hits == nil {
		return
	}
	for _, at := range hits[i] {
		if found[at] != nil {
			continue
		}
		if len(found) >= maxFound {
			problem("more than %d pages look like a %s; the rest was not looked at", maxFound, tech.name())
			return
		}
		if c := inspect(m, tech, at); c != nil {
			c.evidence = append(c.evidence, "found by content")
			found[at] = c
		}
	}
}

// maxFound bounds how many control blocks are taken from one machine's memory. A
// guest can fill its memory with pages that look like one.
const maxFound = 4096

// sweeps remembers, for the length of one search, which pages of a machine the quick
// tests of its technologies let pass: the same memory is asked about several times.
type sweeps struct {
	hits map[*machine.Machine][][]mem.Phys
}

// of sweeps the memory of m, the first time it is asked.
func (s *sweeps) of(m *machine.Machine, progress Progress) [][]mem.Phys {
	if s != nil && s.hits[m] != nil {
		return s.hits[m]
	}
	var tests []pageTest
	for _, tech := range technologies[m.Arch.Name] {
		tests = append(tests, tech.quickReject)
	}
	hits := sweep(m, tests, progress)
	if s != nil {
		if s.hits == nil {
			s.hits = make(map[*machine.Machine][][]mem.Phys)
		}
		s.hits[m] = hits
	}
	return hits
}

// pageTest reports whether a page, of pageSize bytes, cannot be what is looked for. It
// runs on every page of a machine: it should look at one cache line of most.
type pageTest func(page []byte) (reject bool)

// maxHits bounds what one test lets pass: 2^18 pages are a machine's worth of lookalikes.
const maxHits = 1 << 18

// sweep looks at every page of m's memory that was ever written, with all processors, and
// returns for each test the pages that it did not reject, in ascending order.
func sweep(m *machine.Machine, tests []pageTest, progress Progress) [][]mem.Phys {
	ranges := m.Phys.PhysRanges()
	if p, ok := m.Phys.(PopulatedRanger); ok {
		ranges = p.PopulatedRanges()
	}
	pieces := split(ranges, sweepPiece)
	var all uint64
	for _, r := range pieces {
		all += r.Size()
	}
	results := make([][][]mem.Phys, len(pieces))
	var next, done atomic.Uint64
	var stopped atomic.Bool
	work := func() (err error) {
		defer mem.Catch(&err)()
		s := sweeper{phys: m.Phys, tests: tests}
		for !stopped.Load() {
			i := next.Add(1) - 1
			if i >= uint64(len(pieces)) {
				return nil
			}
			results[i] = s.piece(pieces[i])
			if n := done.Add(pieces[i].Size()); progress != nil && !progress(n, all) {
				stopped.Store(true)
			}
		}
		return nil
	}
	var workers sync.WaitGroup
	var lost atomic.Pointer[error]
	for range min(runtime.GOMAXPROCS(0), len(pieces)) {
		workers.Go(func() {
			if err := work(); err != nil {
				lost.Store(&err)
				stopped.Store(true)
			}
		})
	}
	workers.Wait()
	if err := lost.Load(); err != nil {
		panic(*err) // as if there were no workers; see mem.Catch
	}
	hits := make([][]mem.Phys, len(tests))
	for _, r := range results {
		for i := range r {
			hits[i] = append(hits[i], r[i][:min(len(r[i]), maxHits-len(hits[i]))]...)
		}
	}
	return hits
}

// sweepPiece is how much memory is taken at a time: little enough that the last pieces
// keep all processors busy, and that a search can be ended soon.
const sweepPiece = 16 << 20

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

// sweeper is one worker of a sweep.
type sweeper struct {
	phys   machine.PhysMemory
	tests  []pageTest
	buffer []byte // for memory that has no slices
}

// copyPiece is how much is copied at a time from memory that has no slices.
const copyPiece = 256 << 10

// piece tests the pages that are in r as a whole.
func (s *sweeper) piece(r mem.Range) [][]mem.Phys {
	hits := make([][]mem.Phys, len(s.tests))
	first := (r.First + pageSize - 1) &^ (pageSize - 1)
	if first < r.First {
		return hits // no page begins in it: the next would be past the end of the address space
	}
	for a := first; a >= first && a <= r.Last && r.Last-a >= pageSize-1; {
		b := s.bytes(mem.Phys(a), min(r.Last-a+1, sweepPiece))
		n := len(b) / pageSize * pageSize
		if n == 0 {
			a += pageSize
			continue
		}
		for o := 0; o < n; o += pageSize {
			page := b[o : o+pageSize : o+pageSize]
			for i, reject := range s.tests {
				if !reject(page) && len(hits[i]) < maxHits {
					hits[i] = append(hits[i], mem.Phys(a+uint64(o)))
				}
			}
		}
		a += uint64(n)
	}
	return hits
}

// bytes are those from a on, as many as lie together, at most size; fewer than a page
// where there is none.
func (s *sweeper) bytes(a mem.Phys, size uint64) []byte {
	if b := s.phys.SlicePhys(a, int(size)); len(b) >= pageSize {
		return b
	}
	if s.buffer == nil {
		s.buffer = make([]byte, copyPiece)
	}
	b := s.buffer[:min(size, copyPiece)]
	n, _ := s.phys.ReadPhys(b, a) // what is not readable is not searched
	return b[:n]
}
