package paging

import (
	"errors"
	"fmt"
	"iter"
	"sync/atomic"

	"nestdbg/internal/mem"
)

// Space is an address space: page tables and the memory they stand in. It reads
// the memory that the tables map, as virtual memory or, for a second stage, as
// the physical memory of the machine that runs on it.
//
// A Space remembers where tables are, not what addresses translate to. So an
// entry of the last level is read anew each time where the memory below is at
// hand as bytes, but a table that moved is noticed only after Flush, which is to
// be called whenever the machine ran. A translation that fails is always tried
// again without the cache before it is reported.
//
// A Space is safe for concurrent use. It has no size: an address without a
// translation is a *mem.FaultError, whose Err is the *NotMappedError or the fault
// of the memory below.
type Space struct {
	name   string
	format *Format
	reader mem.PhysReader
	slicer mem.PhysSlicer // reader, if it can slice; else nil
	below  *Space         // what reader translates with, if it does; else nil
	root   mem.Phys
	cache  atomic.Pointer[tableCache]
}

var (
	_ mem.PhysSlicer = (*Space)(nil)
	_ mem.VirtReader = (*Space)(nil)
)

// NewSpace returns the address space of the tables at root in r. The name says
// whose addresses it translates and appears in faults: "npt of vm0". root is a
// table's address, as from Format.Root.
func NewSpace(name string, f *Format, r mem.PhysReader, root mem.Phys) *Space {
	s := &Space{name: name, format: f, reader: r, root: root}
	s.slicer, _ = r.(mem.PhysSlicer)
	if b, ok := r.(interface{ Stage() *Space }); ok {
		s.below = b.Stage()
	}
	s.Flush()
	return s
}

// Name is the name that faults carry.
func (s *Space) Name() string { return s.name }

// Stage is s itself. Memory that is a Space with something added embeds it, and is
// known by this method to a Space above.
func (s *Space) Stage() *Space { return s }

// Format is the format of the tables.
func (s *Space) Format() *Format { return s.format }

// Root is the address of the root table.
func (s *Space) Root() mem.Phys { return s.root }

// Memory is what the tables stand in, and what they lead to.
func (s *Space) Memory() mem.PhysReader { return s.reader }

// Flush forgets where tables are. A translation that is under way may still
// finish with what it knew before.
func (s *Space) Flush() { s.cache.Store(new(tableCache)) }

// Walk translates addr without the cache and returns every entry it read.
func (s *Space) Walk(addr uint64) (Translation, error) {
	return s.format.Walk(s.reader, s.root, addr)
}

// Ranges lists what the tables map; see Format.Ranges.
func (s *Space) Ranges(in mem.Range) iter.Seq2[Mapping, error] {
	return s.format.Ranges(s.reader, s.root, in)
}

// Translate returns the physical address of addr and the number of bytes from
// there to the end of the same leaf. The memory may still have nothing there.
// The error is a *mem.FaultError, or what the reader says if it failed otherwise.
func (s *Space) Translate(addr uint64) (phys mem.Phys, contiguous uint64, err error) {
	phys, contiguous, err = s.translate(addr)
	if err != nil {
		return 0, 0, s.fault(addr, err)
	}
	return phys, contiguous, nil
}

// ReadPhys implements mem.PhysReader.
func (s *Space) ReadPhys(p []byte, a mem.Phys) (int, error) { return s.read(p, uint64(a)) }

// ReadVirt implements mem.VirtReader.
func (s *Space) ReadVirt(p []byte, a mem.Virt) (int, error) { return s.read(p, uint64(a)) }

// SlicePhys implements mem.PhysSlicer. The slice ends at the latest with the leaf
// that maps a.
func (s *Space) SlicePhys(a mem.Phys, max int) []byte { return s.slice(uint64(a), max) }

// SliceVirt is SlicePhys for virtual addresses.
func (s *Space) SliceVirt(a mem.Virt, max int) []byte { return s.slice(uint64(a), max) }

var errWrap = errors.New("the read passes the end of the address space")

func (s *Space) read(p []byte, addr uint64) (int, error) {
	if len(p) >= sharedSize && s.slicer != nil && addr+uint64(len(p)) > addr {
		return s.readShared(p, addr)
	}
	return s.readAlone(p, addr)
}

func (s *Space) readAlone(p []byte, addr uint64) (int, error) {
	n := 0
	for n < len(p) {
		a := addr + uint64(n)
		if a < addr {
			return n, s.fault(a, errWrap)
		}
		got := 0
		if len(p)-n >= bulkSize {
			got = s.readBulk(p[n:], a)
		}
		var err error
		if got == 0 {
			got, err = s.readLeaf(p[n:], a)
		}
		n += got
		if err != nil {
			return n, s.fault(a+uint64(got), err)
		}
	}
	return n, nil
}

// readLeaf reads from addr on as far as one leaf reaches. The error is for the
// first byte it could not read.
func (s *Space) readLeaf(p []byte, addr uint64) (int, error) {
	phys, contiguous, err := s.translate(addr)
	if err != nil {
		return 0, err
	}
	if uint64(len(p)) > contiguous {
		p = p[:contiguous]
	}
	if s.slicer != nil {
		if b := s.slicer.SlicePhys(phys, len(p)); len(b) > 0 {
			return copy(p, b), nil
		}
	}
	return s.reader.ReadPhys(p, phys)
}

func (s *Space) slice(addr uint64, max int) []byte {
	if s.slicer == nil || max <= 0 {
		return nil
	}
	phys, contiguous, err := s.translate(addr)
	if err != nil {
		return nil
	}
	return s.slicer.SlicePhys(phys, int(min(uint64(max), contiguous)))
}

// fault says that addr could not be read because of err. An err that is no fault,
// a connection that broke, does not become one.
func (s *Space) fault(addr uint64, err error) error {
	if !isFault(err) && err != errWrap {
		return fmt.Errorf("%s: reading %#x: %w", s.name, addr, err)
	}
	return &mem.FaultError{Space: s.name, Addr: addr, Err: err}
}

// translate is Translate without the space in the error.
func (s *Space) translate(addr uint64) (mem.Phys, uint64, error) {
	if phys, contiguous, ok := s.cached(addr); ok {
		return phys, contiguous, nil
	}
	tr, err := s.Walk(addr)
	if err != nil {
		return 0, 0, err
	}
	return tr.Phys, tr.PageSize - addr&(tr.PageSize-1), nil
}

// cached translates by the tables that the cache holds and adds those it lacks.
// ok is false when only a walk can answer, and say why not.
func (s *Space) cached(addr uint64) (phys mem.Phys, contiguous uint64, ok bool) {
	f := s.format
	if len(f.levels) == 0 || !f.inside(addr) {
		return 0, 0, false
	}
	a := f.translated(addr)
	c := s.cache.Load()
	i := len(f.levels) - 1
	t := c.lookup(f.level(i), a>>f.levels[i].span)
	for t == nil && i > 0 {
		i--
		t = c.lookup(f.level(i), a>>f.levels[i].span)
	}
	if t == nil {
		t = s.load(c, 0, 0, s.root)
	}
	for t != nil {
		l := &f.levels[i]
		next, leaf, ok := f.follow(i, f.entryIn(t.bytes, a>>l.shift&l.mask))
		if !ok {
			return 0, 0, false
		}
		if leaf {
			offset := a & (1<<l.shift - 1)
			return next + mem.Phys(offset), 1<<l.shift - offset, true
		}
		i++
		t = s.load(c, i, a>>f.levels[i].span, next)
	}
	return 0, 0, false
}

// load returns a table of level i and puts it into the cache: the memory's own
// bytes if it hands them out, otherwise a copy of the whole table, which is hardly
// more expensive to fetch than one entry. Nil if it could not be read as a whole.
func (s *Space) load(c *tableCache, i int, key uint64, at mem.Phys) *table {
	size := s.format.tableSize(i)
	t := &table{key: key}
	if s.slicer != nil {
		t.bytes = s.slicer.SlicePhys(at, size)
	}
	if len(t.bytes) != size {
		t.bytes = make([]byte, size)
		if _, err := s.reader.ReadPhys(t.bytes, at); err != nil {
			return nil
		}
	}
	c.store(s.format.level(i), t)
	return t
}
