package dump

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"sort"
)

// A flattened file is another file as the pieces that were written of it, in that
// order, for a pipe that cannot seek (QEMU 7.2 include/sysemu/dump.h:
// MakedumpfileHeader, MakedumpfileDataHeader): a block with the signature, and then
// per piece its offset and size, 8 bytes big-endian each, and its bytes. An offset of
// -1 ends it.
const (
	flatHeader    = 4096
	flatPiece     = 16
	flatType      = 1
	flatVersion   = 1
	maxFlatPieces = 1 << 23
	maxOverlays   = 1 << 10
)

var flatSignature = []byte("makedumpfile\x00\x00\x00\x00")

// Flat is the file that a flattened one describes. Safe for concurrent use.
type Flat struct {
	r io.ReaderAt
	// pieces ascend and do not overlap. overlays were written later, over them, in
	// this order: headers are written again at the end.
	pieces, overlays []piece
	size             uint64
	// Cut says where the file ended without its end mark, 0 if it has one.
	Cut uint64
}

type piece struct {
	offset, size uint64 // in the file that is described
	at           uint64 // in the flattened one
	order        int
}

// IsFlat reports whether a file that begins like this is flattened.
func IsFlat(head []byte) bool { return bytes.HasPrefix(head, flatSignature) }

// ReadFlat reads where the pieces are.
func ReadFlat(r io.ReaderAt, size uint64) (*Flat, error) {
	head, err := readAt(r, 0, 32, "flattened header")
	if err != nil {
		return nil, err
	}
	be := binary.BigEndian
	if !IsFlat(head) {
		return nil, ErrForeign
	}
	if t, v := be.Uint64(head[16:]), be.Uint64(head[24:]); t != flatType || v != flatVersion {
		return nil, corrupt(16, "flattened file of type %d, version %d", t, v)
	}
	f := &Flat{r: r}
	var all []piece
	var b [flatPiece]byte
	for at := uint64(flatHeader); ; {
		if n, err := r.ReadAt(b[:], int64(at)); n < flatPiece {
			if err != nil && !errors.Is(err, io.EOF) {
				return nil, err
			}
			f.Cut = size
			break
		}
		p := piece{offset: be.Uint64(b[:]), size: be.Uint64(b[8:]), at: at + flatPiece, order: len(all)}
		if p.offset == ^uint64(0) {
			break
		}
		if p.offset > 1<<62 || p.size == 0 || p.size > 1<<62 {
			return nil, corrupt(at, "a piece of %#x bytes for offset %#x", p.size, p.offset)
		}
		if len(all) == maxFlatPieces {
			return nil, corrupt(at, "more than %d pieces", maxFlatPieces)
		}
		cut := !within(p.at, p.size, size)
		if cut {
			f.Cut, p.size = size, size-p.at
		}
		if p.size > 0 {
			all = append(all, p)
			f.size = max(f.size, p.offset+p.size)
		}
		if cut {
			break
		}
		at = p.at + p.size
	}
	if err := f.sort(all); err != nil {
		return nil, err
	}
	return f, nil
}

// sort tells pieces from what was written over them.
func (f *Flat) sort(all []piece) error {
	slices.SortFunc(all, func(a, b piece) int {
		return cmp.Or(cmp.Compare(a.offset, b.offset), cmp.Compare(a.order, b.order))
	})
	for _, p := range all {
		n := len(f.pieces)
		if n == 0 || f.pieces[n-1].offset+f.pieces[n-1].size <= p.offset {
			f.pieces = append(f.pieces, p)
			continue
		}
		last := &f.pieces[n-1]
		if last.order > p.order {
			*last, p = p, *last
		}
		if len(f.overlays) == maxOverlays {
			return corrupt(p.at, "more than %d pieces that overlap", maxOverlays)
		}
		f.overlays = append(f.overlays, p)
	}
	slices.SortFunc(f.overlays, func(a, b piece) int { return cmp.Compare(a.order, b.order) })
	return nil
}

// Size is that of the file that is described, in bytes.
func (f *Flat) Size() uint64 { return f.size }

// ReadAt implements io.ReaderAt. What was never written reads as zero, as in a file.
func (f *Flat) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || uint64(off) >= f.size {
		return 0, io.EOF
	}
	var end error
	if left := f.size - uint64(off); uint64(len(p)) > left {
		p, end = p[:left], io.EOF
	}
	clear(p)
	if _, err := f.read(p, uint64(off)); err != nil {
		return 0, err
	}
	return len(p), end
}

// read copies the pieces in a range, and says whether they cover it.
func (f *Flat) read(p []byte, off uint64) (whole bool, err error) {
	end, next := off+uint64(len(p)), off
	i := sort.Search(len(f.pieces), func(i int) bool { return f.pieces[i].offset+f.pieces[i].size > off })
	for ; i < len(f.pieces) && f.pieces[i].offset < end; i++ {
		q := f.pieces[i]
		if err := f.copyPiece(p, off, q); err != nil {
			return false, err
		}
		if q.offset <= next {
			next = max(next, q.offset+q.size)
		}
	}
	for _, q := range f.overlays {
		if q.offset < end && q.offset+q.size > off {
			if err := f.copyPiece(p, off, q); err != nil {
				return false, err
			}
			if q.offset <= next {
				next = max(next, q.offset+q.size)
			}
		}
	}
	return next >= end, nil
}

// copyPiece copies the part of a piece that lies in p.
func (f *Flat) copyPiece(p []byte, off uint64, q piece) error {
	first, last := max(off, q.offset), min(off+uint64(len(p)), q.offset+q.size)
	_, err := f.r.ReadAt(p[first-off:last-off], int64(q.at+(first-q.offset)))
	if errors.Is(err, io.EOF) && q.at+(last-q.offset) > 0 {
		err = nil // checked against the size before
	}
	return err
}

// readWhole reads bytes of which each was written.
func (f *Flat) readWhole(p []byte, off uint64) error {
	whole, err := f.read(p, off)
	if err == nil && !whole {
		err = corrupt(off, "%#x bytes there were never written to the flattened file", len(p))
	}
	return err
}
