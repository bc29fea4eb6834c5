package memfile

import (
	"bytes"
	"fmt"
	"sync"
	"sync/atomic"

	"nestdbg/internal/dump"
	"nestdbg/internal/mem"
)

// openKdump opens a kdump-compressed file.
func (f *File) openKdump() error {
	k, err := dump.ReadKdump(bytes.NewReader(f.data), f.size)
	if err != nil {
		return err
	}
	f.Kind, f.Arch, f.CPUs, f.Problems = "kdump-compressed dump", k.Arch, k.CPUs, k.Problems
	var excluded uint64
	for _, r := range k.Excluded() {
		excluded += r.Size()
	}
	if excluded > 0 {
		f.Problems = append(f.Problems, fmt.Sprintf("%#x bytes of the machine's memory were left out of the dump", excluded))
	}
	f.memory = &pages{dump: k, ranges: k.Ranges()}
	return nil
}

// pages is memory that is decompressed when it is needed, a page at a time.
type pages struct {
	dump   *dump.Kdump
	ranges []mem.Range
	// cache has each page in one place only, by its number: what follows each other,
	// as a kernel's tables do, does not push itself out.
	cache [cachedPages]atomic.Pointer[cachedPage]

	missed atomic.Uint64  // number of the page that was not in cache last
	busy   atomic.Bool    // somebody reads ahead
	ahead  sync.WaitGroup // until nobody does
	closed atomic.Bool
}

// aheadPages is how far ahead of a reader that goes from page to page another
// processor begins, and how many pages it takes: what searches and tables need, twice
// as fast.
const aheadPages = 16

// readAhead has some of the pages behind page n ready soon.
func (m *pages) readAhead(n uint64) {
	if before := m.missed.Swap(n); n <= before || n-before > 2*aheadPages || !m.busy.CompareAndSwap(false, true) {
		return
	}
	m.ahead.Go(func() {
		defer m.busy.Store(false)
		var lost error // whoever needs a page will hear of it
		defer mem.Catch(&lost)()
		for i := range uint64(aheadPages) {
			if m.closed.Load() {
				return
			}
			if _, err := m.inflated(mem.Phys(n+aheadPages+i) * pageSize); err != nil {
				return
			}
		}
	})
}

// close returns when the file is not read any more.
func (m *pages) close() {
	m.closed.Store(true)
	m.ahead.Wait()
}

// cachedPages bounds what is kept, to 32 MiB.
const cachedPages = 8192

const pageSize = 4096

type cachedPage struct {
	at   mem.Phys
	data []byte // never changed
}

// PhysRanges implements mem.PhysRanger.
func (m *pages) PhysRanges() []mem.Range { return m.ranges }

// FileOffset finds nothing: no byte lies in the file as it is.
func (m *pages) FileOffset(mem.Phys) (uint64, bool) { return 0, false }

// page is the page that holds a.
func (m *pages) page(a mem.Phys) ([]byte, error) {
	at := a &^ (pageSize - 1)
	if p := m.slot(at).Load(); p != nil && p.at == at {
		return p.data, nil
	}
	m.readAhead(uint64(at) / pageSize)
	b, err := m.inflated(at)
	if err != nil {
		return nil, &mem.FaultError{Space: "physical memory", Addr: uint64(a), Err: err}
	}
	return b, nil
}

func (m *pages) slot(at mem.Phys) *atomic.Pointer[cachedPage] {
	return &m.cache[uint64(at)/pageSize%cachedPages]
}

// inflated is the page at a page's address, which is in cache then.
func (m *pages) inflated(at mem.Phys) ([]byte, error) {
	slot := m.slot(at)
	if p := slot.Load(); p != nil && p.at == at {
		return p.data, nil
	}
	b, err := m.dump.Page(at)
	if err == nil {
		slot.Store(&cachedPage{at, b})
	}
	return b, err
}

// SlicePhys implements mem.PhysSlicer, up to the end of a page.
func (m *pages) SlicePhys(a mem.Phys, max int) []byte {
	b, err := m.page(a)
	if err != nil || max <= 0 {
		return nil
	}
	b = b[a%pageSize:]
	return b[:min(len(b), max):min(len(b), max)]
}

// ReadPhys implements mem.PhysReader.
func (m *pages) ReadPhys(p []byte, a mem.Phys) (int, error) {
	n := 0
	for n < len(p) {
		b, err := m.page(a + mem.Phys(n))
		if err != nil {
			return n, err
		}
		n += copy(p[n:], b[(a+mem.Phys(n))%pageSize:])
	}
	return n, nil
}
