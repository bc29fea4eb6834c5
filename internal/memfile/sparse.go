package memfile

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"nestdbg/internal/mem"
)

// maxExtents bounds the pieces of a sparse file that are told apart.
const maxExtents = 1 << 20

// PopulatedRanges are the ranges of physical memory whose bytes are stored: the rest
// reads as zero and need not be searched.
func (f *File) PopulatedRanges() []mem.Range {
	var out []mem.Range
	var image *mem.Image
	switch m := f.memory.(type) {
	case *mem.Image:
		image = m
	case *streamed:
		return slices.Clone(m.populated)
	default:
		return f.PhysRanges()
	}
	for _, s := range image.Segments() {
		out = append(out, f.populated(s, len(out))...)
	}
	return out
}

// populated returns the parts of s where the file has data (lseek(2), SEEK_DATA).
func (f *File) populated(s mem.Segment, before int) []mem.Range {
	fd, end := int(f.file.Fd()), s.FileOffset+uint64(len(s.Data))
	all := []mem.Range{{First: uint64(s.Base), Last: uint64(s.Last())}}
	var out []mem.Range
	for at := s.FileOffset; at < end; {
		data, err := unix.Seek(fd, int64(at), unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && uint64(data) >= end {
			break // only a hole is left
		}
		if err != nil || before+len(out) >= maxExtents {
			return all
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil || hole <= data {
			return all
		}
		stop := min(uint64(hole), end)
		base := uint64(s.Base) - s.FileOffset
		out = append(out, mem.Range{First: base + uint64(data), Last: base + stop - 1})
		at = stop
	}
	return out
}
