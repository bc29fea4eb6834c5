package paging

import (
	"runtime"
	"sync"

	"nestdbg/internal/mem"
)

// Reads of bulkSize bytes and more take batchSize leaves at a time.
const (
	bulkSize  = 2 * 4096
	batchSize = 16
)

// batch is consecutive pieces of an address space, each within one leaf.
//
// Pages that are neighbours in a space are scattered in the memory below, so a
// copy waits for the TLB and for memory at each of them, and so does the
// translation one stage down at each of its entries. A batch makes these accesses
// first and close together, where the processor overlaps them. That more than pays
// for the translation: see BenchmarkNestedBulk, which copies the same pages from
// known places for comparison.
type batch struct {
	count int // of located pieces
	phys  [batchSize]mem.Phys
	size  [batchSize]int

	filled int // of bytes; a piece may be several of them, or some have none
	bytes  [batchSize][]byte
}

// readBulk copies from addr on until something is not simple, and leaves that to
// readLeaf: it returns the number of bytes it got, which may be 0.
func (s *Space) readBulk(p []byte, addr uint64) int {
	if s.slicer == nil {
		return 0
	}
	var b batch
	n := 0
	for n < len(p) && addr+uint64(n) >= addr {
		b.locate(s, addr+uint64(n), len(p)-n)
		if s.below != nil {
			s.below.touchEntries(b.phys[:b.count])
		}
		b.slice(s.slicer)
		if b.filled == 0 {
			break
		}
		touchBytes(b.bytes[:b.filled])
		for _, piece := range b.bytes[:b.filled] {
			n += copy(p[n:], piece)
		}
	}
	return n
}

// locate fills the batch with what can be translated of size bytes from addr on,
// until that is as much as a batch of small pages. The last piece may be as large as
// its page: the Go runtime copies a megabyte and more past the processor's caches.
func (b *batch) locate(s *Space, addr uint64, size int) {
	b.count = 0
	for covered := 0; b.count < batchSize && size > 0 && covered < batchSize*4096; {
		phys, contiguous, ok := s.cached(addr)
		if !ok {
			return
		}
		n := int(min(uint64(size), contiguous))
		b.phys[b.count], b.size[b.count] = phys, n
		b.count++
		addr, size, covered = addr+uint64(n), size-n, covered+n
		if addr == 0 {
			return // the end of the address space
		}
	}
}

// slice gets the bytes of the located pieces as far as it can. A large page here
// can be many small ones in the memory below.
func (b *batch) slice(from mem.PhysSlicer) {
	b.filled = 0
	for i := range b.count {
		phys, size := b.phys[i], b.size[i]
		for size > 0 {
			if b.filled == batchSize {
				return
			}
			piece := from.SlicePhys(phys, size)
			if len(piece) == 0 {
				return
			}
			b.bytes[b.filled] = piece
			b.filled++
			phys, size = phys+mem.Phys(len(piece)), size-len(piece)
		}
	}
}

// touchEntries loads the entries of the last level for addresses that are about
// to be translated. Like touchBytes it is not inlined because then nobody would
// need the result, and the compiler would drop the loads.
//
//go:noinline
func (s *Space) touchEntries(addrs []mem.Phys) (sum uint64) {
	f := s.format
	if len(f.levels) == 0 {
		return 0
	}
	l := &f.levels[len(f.levels)-1]
	c := s.cache.Load()
	for _, addr := range addrs {
		a := f.translated(uint64(addr))
		if t := c.lookup(1, a>>l.span); t != nil {
			sum += f.entryIn(t.bytes, a>>l.shift&l.mask)
		}
	}
	return sum
}

// touchBytes loads a byte of each piece.
//
//go:noinline
func touchBytes(pieces [][]byte) (sum byte) {
	for _, b := range pieces {
		sum += b[0]
	}
	return sum
}

// Reads of sharedSize bytes and more are shared by up to maxReaders goroutines: one
// processor alone waits for memory most of the time.
const (
	sharedSize = 1 << 20
	maxReaders = 4
)

// readShared reads like readAlone, in several parts at a time. Preconditions: the read
// does not pass the end of the address space.
func (s *Space) readShared(p []byte, addr uint64) (int, error) {
	type part struct {
		p   []byte
		n   int
		err error
	}
	parts := make([]part, min(runtime.GOMAXPROCS(0), maxReaders))
	size := (len(p)/len(parts) + 4095) &^ 4095
	var wait sync.WaitGroup
	for i := range parts {
		first := min(i*size, len(p))
		q := &parts[i]
		if q.p = p[first:min(first+size, len(p))]; i == len(parts)-1 {
			q.p = p[first:]
		}
		read := func() {
			defer mem.Catch(&q.err)()
			q.n, q.err = s.readAlone(q.p, addr+uint64(first))
		}
		if i == len(parts)-1 {
			read()
		} else {
			wait.Go(read)
		}
	}
	wait.Wait()
	n := 0
	for i := range parts {
		n += parts[i].n
		if parts[i].err != nil {
			return n, parts[i].err
		}
	}
	return n, nil
}
