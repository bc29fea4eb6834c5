// Package memtest has memories for tests: one that can be written, and readers
// that fail or count.
package memtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sort"
	"sync"
	"sync/atomic"

	"nestdbg/internal/mem"
)

const pageSize = 4096

// Memory is physical memory that can be written. Pages take room only once they
// were written; the others read as zero. It is safe for concurrent use, except
// that slices see writes as they happen.
type Memory struct {
	ranges []mem.Range // ascending

	mu    sync.Mutex
	pages map[mem.Phys]*[pageSize]byte // guarded by mu
}

// NewMemory returns a memory with RAM at these ranges, which must begin and end
// at page boundaries and not overlap. Without ranges everything is RAM.
func NewMemory(ranges ...mem.Range) *Memory {
	if len(ranges) == 0 {
		ranges = []mem.Range{{First: 0, Last: ^uint64(0)}}
	}
	ranges = append([]mem.Range(nil), ranges...)
	sort.Slice(ranges, func(i, j int) bool { return ranges[i].First < ranges[j].First })
	for i, r := range ranges {
		if r.First%pageSize != 0 || (r.Last+1)%pageSize != 0 || r.First > r.Last {
			panic(fmt.Sprintf("memtest: range %v is not whole pages", r))
		}
		if i > 0 && r.First <= ranges[i-1].Last {
			panic(fmt.Sprintf("memtest: range %v overlaps", r))
		}
	}
	return &Memory{ranges: ranges, pages: map[mem.Phys]*[pageSize]byte{}}
}

// PhysRanges implements mem.PhysRanger.
func (m *Memory) PhysRanges() []mem.Range { return append([]mem.Range(nil), m.ranges...) }

// page returns the page that holds a, nil if there is no RAM. The caller holds mu
// for writing.
func (m *Memory) page(a mem.Phys) *[pageSize]byte {
	base := a &^ (pageSize - 1)
	if p := m.pages[base]; p != nil {
		return p
	}
	for _, r := range m.ranges {
		if r.Contains(uint64(a)) {
			p := new([pageSize]byte)
			m.pages[base] = p
			return p
		}
	}
	return nil
}

// SlicePhys implements mem.PhysSlicer. A slice ends with its page.
func (m *Memory) SlicePhys(a mem.Phys, max int) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.page(a)
	if p == nil || max <= 0 {
		return nil
	}
	b := p[a%pageSize:]
	return b[:min(len(b), max):min(len(b), max)]
}

// ReadPhys implements mem.PhysReader.
func (m *Memory) ReadPhys(p []byte, a mem.Phys) (int, error) {
	return m.each(p, a, func(mine, ram []byte) { copy(mine, ram) })
}

// WritePhys writes p at a. Like ReadPhys it stops at the first byte without RAM.
func (m *Memory) WritePhys(p []byte, a mem.Phys) (int, error) {
	return m.each(p, a, func(mine, ram []byte) { copy(ram, mine) })
}

// each calls transfer for the pieces of p and the RAM they correspond to.
func (m *Memory) each(p []byte, a mem.Phys, transfer func(mine, ram []byte)) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for n := 0; n < len(p); {
		at := a + mem.Phys(n)
		page := m.page(at)
		if page == nil || at < a {
			return n, &mem.FaultError{Space: "test memory", Addr: uint64(at), Err: mem.ErrNoRAM}
		}
		ram := page[at%pageSize:]
		size := min(len(ram), len(p)-n)
		transfer(p[n:n+size], ram[:size])
		n += size
	}
	return len(p), nil
}

// Put writes bytes; no RAM there is the test's bug, so it panics.
func (m *Memory) Put(a mem.Phys, p []byte) {
	if _, err := m.WritePhys(p, a); err != nil {
		panic(err)
	}
}

// PutUint64 writes a little-endian word, by the rules of Put.
func (m *Memory) PutUint64(a mem.Phys, v uint64) {
	m.Put(a, binary.LittleEndian.AppendUint64(nil, v))
}

// PutUint32 writes a little-endian word, by the rules of Put.
func (m *Memory) PutUint32(a mem.Phys, v uint32) {
	m.Put(a, binary.LittleEndian.AppendUint32(nil, v))
}

// ErrInjected is the reason for the faults of Failing.
var ErrInjected = errors.New("injected failure")

// Failing is a reader one of whose reads fails.
type Failing struct {
	reader mem.PhysReader
	at     int64
	err    error
	count  atomic.Int64
}

// FailNth returns a reader whose read number n, counted from 0, fails with a
// *mem.FaultError for its first byte. It hands out no slices, so every access is
// a read that counts.
func FailNth(r mem.PhysReader, n int) *Failing { return &Failing{reader: r, at: int64(n)} }

// FailNthWith is FailNth with another error, that of a connection that broke.
func FailNthWith(r mem.PhysReader, n int, err error) *Failing {
	return &Failing{reader: r, at: int64(n), err: err}
}

// ReadPhys implements mem.PhysReader.
func (f *Failing) ReadPhys(p []byte, a mem.Phys) (int, error) {
	switch n := f.count.Add(1) - 1; {
	case n != f.at:
		return f.reader.ReadPhys(p, a)
	case f.err != nil:
		return 0, f.err
	default:
		return 0, &mem.FaultError{Space: "failing memory", Addr: uint64(a), Err: ErrInjected}
	}
}

// Reached reports whether the read that fails was made. A loop over n ends with
// the first that was not.
func (f *Failing) Reached() bool { return f.count.Load() > f.at }

// Counting is a reader that counts. It hands out no slices.
type Counting struct {
	reader       mem.PhysReader
	reads, bytes atomic.Int64
}

// NewCounting returns a reader that counts what is read from r through it.
func NewCounting(r mem.PhysReader) *Counting { return &Counting{reader: r} }

// ReadPhys implements mem.PhysReader.
func (c *Counting) ReadPhys(p []byte, a mem.Phys) (int, error) {
	n, err := c.reader.ReadPhys(p, a)
	c.reads.Add(1)
	c.bytes.Add(int64(n))
	return n, err
}

// Reads is the number of reads so far, also of those that failed.
func (c *Counting) Reads() int { return int(c.reads.Load()) }

// Bytes is the number of bytes read so far.
func (c *Counting) Bytes() int64 { return c.bytes.Load() }
