package memfile

import (
	"bytes"
	"fmt"
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
	slot := &m.cache[uint64(at)/pageSize%cachedPages]
	if p := slot.Load(); p != nil && p.at == at {
		return p.data, nil
	}
	b, err := m.dump.Page(at)
	if err != nil {
		return nil, &mem.FaultError{Space: "physical memory", Addr: uint64(a), Err: err}
	}
	slot.Store(&cachedPage{at, b})
	return b, nil
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
