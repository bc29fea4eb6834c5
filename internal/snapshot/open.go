package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"nestdbg/internal/mem"
)

// ErrDamaged is the class of memory that cannot be read because its checksum is
// wrong.
var ErrDamaged = errors.New("its checksum in the snapshot is wrong")

// maxDevices bounds the device state; a machine with video memory has much.
const maxDevices = 256 << 20

// Snapshot is an open snapshot. Its memory is mapped, and safe for concurrent use
// until Close.
type Snapshot struct {
	Manifest *Manifest
	Devices  []byte // QEMU's device state

	dir   string
	file  *os.File
	data  []byte
	image *mem.Image
	sums  []byte
	state []atomic.Uint32 // of each chunk: unknown, whole or damaged
}

// States of a chunk.
const (
	unknown = iota
	whole
	damaged
)

// Open opens the snapshot in a directory. RAM is not read: its chunks are checked
// when they are.
func Open(dir string) (*Snapshot, error) {
	m, err := readManifest(dir)
	if err != nil {
		return nil, err
	}
	s := &Snapshot{Manifest: m, dir: dir}
	if s.sums, err = readChecked(filepath.Join(dir, sumsFile), int64(4*m.chunks()), m.SumsHash); err != nil {
		return nil, err
	}
	if s.Devices, err = readChecked(filepath.Join(dir, devicesFile), maxDevices, m.DevicesHash); err != nil {
		return nil, err
	}
	if err := s.mapRAM(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// readChecked reads a file of at most limit bytes that has this SHA-256.
func readChecked(path string, limit int64, hash string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if got := hashOf(b); got != hash {
		return nil, fmt.Errorf("%w: %s has %d bytes with SHA-256 %.16s..., and should have %.16s...",
			ErrCorrupt, path, len(b), got, hash)
	}
	return b, nil
}

func (s *Snapshot) mapRAM() (err error) {
	path := filepath.Join(s.dir, ramFile)
	if s.file, err = os.Open(path); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	st, err := s.file.Stat()
	if err != nil {
		return err
	}
	if uint64(st.Size()) != s.Manifest.RAMSize {
		return fmt.Errorf("%w: %s has %d bytes and should have %d", ErrCorrupt, path, st.Size(), s.Manifest.RAMSize)
	}
	s.state = make([]atomic.Uint32, s.Manifest.chunks())
	if s.Manifest.RAMSize > 0 {
		s.data, err = unix.Mmap(int(s.file.Fd()), 0, int(s.Manifest.RAMSize), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return fmt.Errorf("map %s: %w", path, err)
		}
		mem.Mapped(s.data, path, 0)
	}
	var segments []mem.Segment
	for _, r := range s.Manifest.Ranges {
		segments = append(segments, mem.Segment{
			Base: mem.Phys(r.First), Data: s.data[r.Offset : r.Offset+(r.Last-r.First+1)], FileOffset: r.Offset,
		})
	}
	s.image, err = mem.NewImage(segments)
	return err
}

// Close unmaps the memory. Nothing may be read after that.
func (s *Snapshot) Close() error {
	var errs []error
	if s.data != nil {
		mem.Unmapped(s.data)
		errs = append(errs, unix.Munmap(s.data))
		s.data = nil
	}
	if s.file != nil {
		errs = append(errs, s.file.Close())
		s.file = nil
	}
	return errors.Join(errs...)
}

// File is the path of the memory's bytes.
func (s *Snapshot) File() string { return filepath.Join(s.dir, ramFile) }

// FileOffset tells where in File the byte at a lies.
func (s *Snapshot) FileOffset(a mem.Phys) (uint64, bool) { return s.image.FileOffset(a) }

// PhysRanges implements mem.PhysRanger.
func (s *Snapshot) PhysRanges() []mem.Range { return s.image.PhysRanges() }

// SlicePhys implements mem.PhysSlicer. What is damaged has no slice.
func (s *Snapshot) SlicePhys(a mem.Phys, max int) []byte {
	b := s.image.SlicePhys(a, max)
	if len(b) == 0 {
		return nil
	}
	offset, _ := s.image.FileOffset(a)
	chunk := offset / s.Manifest.ChunkSize
	if !s.whole(chunk) {
		return nil
	}
	// The rest is of other chunks, which are checked in their turn.
	if left := (chunk+1)*s.Manifest.ChunkSize - offset; uint64(len(b)) > left {
		b = b[:left:left]
	}
	return b
}

// ReadPhys implements mem.PhysReader.
func (s *Snapshot) ReadPhys(p []byte, a mem.Phys) (int, error) {
	n := 0
	for n < len(p) {
		at := a + mem.Phys(n)
		b := s.SlicePhys(at, len(p)-n)
		if len(b) == 0 {
			fault := &mem.FaultError{Space: "physical memory", Addr: uint64(at), Err: mem.ErrNoRAM}
			if offset, ok := s.image.FileOffset(at); ok {
				fault.Err = fmt.Errorf("byte %#x of %s: %w", offset, s.File(), ErrDamaged)
			}
			return n, fault
		}
		n += copy(p[n:], b)
	}
	return n, nil
}

// whole checks a chunk when it is needed for the first time.
func (s *Snapshot) whole(chunk uint64) bool {
	state := s.state[chunk].Load()
	if state == unknown {
		first := chunk * s.Manifest.ChunkSize
		last := min(first+s.Manifest.ChunkSize, s.Manifest.RAMSize)
		state = damaged
		if crc32.Checksum(s.data[first:last], castagnoli) == binary.LittleEndian.Uint32(s.sums[4*chunk:]) {
			state = whole
		}
		s.state[chunk].Store(state)
	}
	return state == whole
}

// Verify checks every chunk and returns the ranges of the file ram that are
// damaged, chunks side by side as one. Holes of the file are zeros and not read.
func (s *Snapshot) Verify() []mem.Range {
	var out []mem.Range
	var data []mem.Range
	if s.Manifest.RAMSize > 0 {
		data = populated(s.file, []Range{{Last: s.Manifest.RAMSize - 1}})
	}
	for i := range s.Manifest.chunks() {
		first := i * s.Manifest.ChunkSize
		last := min(first+s.Manifest.ChunkSize, s.Manifest.RAMSize) - 1
		for len(data) > 0 && data[0].Last < first {
			data = data[1:]
		}
		if hole := len(data) == 0 || data[0].First > last; hole && s.zeroes(i) || !hole && s.whole(i) {
			continue
		}
		if n := len(out); n > 0 && out[n-1].Last+1 == first {
			out[n-1].Last = last
			continue
		}
		out = append(out, mem.Range{First: first, Last: last})
	}
	return out
}

// zeroes reports whether a chunk's checksum is that of zeros.
func (s *Snapshot) zeroes(chunk uint64) bool {
	size := min(s.Manifest.ChunkSize, s.Manifest.RAMSize-chunk*s.Manifest.ChunkSize)
	sum := uint32(0)
	for left := size; left > 0; left -= min(left, pageSize) {
		sum = crc32.Update(sum, castagnoli, zeroPage[:min(left, pageSize)])
	}
	return sum == binary.LittleEndian.Uint32(s.sums[4*chunk:])
}

// PopulatedRanges are the ranges of physical memory outside which every byte is
// zero (lseek(2), SEEK_DATA).
func (s *Snapshot) PopulatedRanges() []mem.Range { return populated(s.file, s.Manifest.Ranges) }

// maxExtents bounds the pieces of a sparse file that are told apart.
const maxExtents = 1 << 20

func populated(f *os.File, ranges []Range) []mem.Range {
	var out []mem.Range
	for _, r := range ranges {
		all := mem.Range{First: r.First, Last: r.Last}
		end := r.Offset + all.Size()
		for at := r.Offset; at < end; {
			data, err := unix.Seek(int(f.Fd()), int64(at), unix.SEEK_DATA)
			if errors.Is(err, unix.ENXIO) || err == nil && uint64(data) >= end {
				break
			}
			hole := int64(end)
			if err == nil {
				hole, err = unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
			}
			if err != nil || hole <= data || len(out) == maxExtents {
				out = append(out, mem.Range{First: r.First + (at - r.Offset), Last: r.Last})
				break
			}
			stop := min(uint64(hole), end)
			out = append(out, mem.Range{First: r.First + (uint64(data) - r.Offset), Last: r.First + (stop - r.Offset) - 1})
			at = stop
		}
	}
	return out
}
