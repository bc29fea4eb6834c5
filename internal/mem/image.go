package mem

import (
	"fmt"
	"sort"
)

// Segment is physical memory that is at hand as bytes: from Base on, len(Data)
// bytes. FileOffset says where Data starts in the file it was mapped from.
type Segment struct {
	Base       Phys
	Data       []byte
	FileOffset uint64
}

// Last is the segment's last address.
func (s Segment) Last() Phys { return s.Base + Phys(len(s.Data)) - 1 }

// Image is physical memory made of segments, with holes between them. It does
// not own the bytes: whoever mapped them unmaps them.
type Image struct {
	segments []Segment // ascending, not overlapping, none empty
}

// NewImage checks and sorts the segments; empty ones are dropped.
func NewImage(segments []Segment) (*Image, error) {
	m := &Image{}
	for _, s := range segments {
		if len(s.Data) == 0 {
			continue
		}
		if s.Last() < s.Base {
			return nil, fmt.Errorf("segment at %#x of %#x bytes passes the end of the address space", s.Base, len(s.Data))
		}
		m.segments = append(m.segments, s)
	}
	sort.Slice(m.segments, func(i, j int) bool { return m.segments[i].Base < m.segments[j].Base })
	for i := 1; i < len(m.segments); i++ {
		if m.segments[i].Base <= m.segments[i-1].Last() {
			return nil, fmt.Errorf("segments overlap at %#x", m.segments[i].Base)
		}
	}
	return m, nil
}

// Segments returns the segments in ascending order. The caller must not change them.
func (m *Image) Segments() []Segment { return m.segments }

// PhysRanges implements PhysRanger.
func (m *Image) PhysRanges() []Range {
	out := make([]Range, len(m.segments))
	for i, s := range m.segments {
		out[i] = Range{uint64(s.Base), uint64(s.Last())}
	}
	return out
}

// find returns the segment that holds a, or nil.
func (m *Image) find(a Phys) *Segment {
	lo, hi := 0, len(m.segments)
	for lo < hi {
		mid := (lo + hi) / 2
		s := &m.segments[mid]
		switch {
		case a < s.Base:
			hi = mid
		case a > s.Last():
			lo = mid + 1
		default:
			return s
		}
	}
	return nil
}

// SlicePhys implements PhysSlicer.
func (m *Image) SlicePhys(a Phys, max int) []byte {
	s := m.find(a)
	if s == nil {
		return nil
	}
	b := s.Data[a-s.Base:]
	return b[:min(len(b), max):min(len(b), max)]
}

// FileOffset tells where the byte at a lies in the file behind the image.
func (m *Image) FileOffset(a Phys) (uint64, bool) {
	s := m.find(a)
	if s == nil {
		return 0, false
	}
	return s.FileOffset + uint64(a-s.Base), true
}

// ReadPhys implements PhysReader.
func (m *Image) ReadPhys(p []byte, a Phys) (int, error) {
	n := 0
	for n < len(p) {
		b := m.SlicePhys(a+Phys(n), len(p)-n)
		if len(b) == 0 {
			return n, &FaultError{Space: "physical memory", Addr: uint64(a) + uint64(n), Err: ErrNoRAM}
		}
		n += copy(p[n:], b)
	}
	return n, nil
}
