// Package memfile opens files that hold the memory of a machine that is no more, and
// makes physical memory of them: ELF and kdump-compressed dumps, the streams of QEMU's
// migration, and its bare memory. What a file is, its content tells. Files are mapped, never read as a
// whole.
package memfile

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"nestdbg/internal/arch"
	"nestdbg/internal/dump"
	"nestdbg/internal/mem"
	"nestdbg/internal/vmstate"
)

// ErrForeign is the class of files that are no memory of a machine, and
// ErrUnsupported that of files of a kind that is not read.
var (
	ErrForeign     = errors.New("no memory of a machine")
	ErrUnsupported = errors.New("not supported")
)

// File is an open file. Reading its memory is safe for concurrent use until Close.
// If somebody cuts the file short while it is open, reading the lost part is a
// SIGBUS.
type File struct {
	Path string
	Kind string // in words
	Arch *arch.Arch
	// CPUs are the registers that are in the file, one of all CPUs each. DeviceState
	// says that they are all that QEMU knows of them, and not notes of a dump.
	CPUs        []*arch.Registers
	DeviceState bool
	// Problems is what was not as it should be, or is a guess.
	Problems []string

	file   *os.File
	size   uint64 // of the file
	data   []byte // of the file
	memory memory
}

// memory is physical memory made of a file.
type memory interface {
	mem.PhysSlicer
	mem.PhysRanger
	FileOffset(a mem.Phys) (uint64, bool)
}

// headSize is how much of a file tells what it is.
const headSize = 4096

// Options say what a person knows of the file.
type Options struct {
	Layout *Layout // of a bare memory file; nil: find it
}

// Open opens a file by what it is.
func Open(path string, opt Options) (_ *File, err error) {
	f := &File{Path: path}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
		}
	}()
	if f.file, err = os.Open(path); err != nil {
		return nil, err
	}
	st, err := f.file.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("it is no regular file: %w", ErrForeign)
	}
	f.size = uint64(st.Size())
	if f.size == 0 {
		return nil, fmt.Errorf("it is empty: %w", ErrForeign)
	}
	if f.data, err = unix.Mmap(int(f.file.Fd()), 0, int(f.size), unix.PROT_READ, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("map: %w", err)
	}
	mem.Mapped(f.data, path, 0)
	head := f.data[:min(headSize, f.size)]
	switch {
	case dump.IsELF(head):
		return f, f.openELF()
	case dump.IsFlat(head), dump.IsKdump(head):
		return f, f.openKdump()
	case vmstate.IsStream(head):
		return f, f.openMigration(opt.Layout)
	default:
		return f, f.openRaw(opt.Layout)
	}
}

// Close unmaps the file. Nothing may be read after that.
func (f *File) Close() error {
	var errs []error
	if m, ok := f.memory.(*pages); ok {
		m.close()
	}
	if f.data != nil {
		mem.Unmapped(f.data)
		errs = append(errs, unix.Munmap(f.data))
		f.data = nil
	}
	if f.file != nil {
		errs = append(errs, f.file.Close())
		f.file = nil
	}
	return errors.Join(errs...)
}

// Size is the machine's memory as far as the file has it, in bytes.
func (f *File) Size() uint64 {
	var n uint64
	for _, r := range f.PhysRanges() {
		n += r.Size()
	}
	return n
}

// PhysRanges implements mem.PhysRanger.
func (f *File) PhysRanges() []mem.Range { return f.memory.PhysRanges() }

// ReadPhys implements mem.PhysReader.
func (f *File) ReadPhys(p []byte, a mem.Phys) (int, error) { return f.memory.ReadPhys(p, a) }

// SlicePhys implements mem.PhysSlicer.
func (f *File) SlicePhys(a mem.Phys, max int) []byte { return f.memory.SlicePhys(a, max) }

// FileOffset tells where in the file the byte at a lies, if it lies there as it is.
func (f *File) FileOffset(a mem.Phys) (uint64, bool) { return f.memory.FileOffset(a) }

// openELF opens a core with physical memory.
func (f *File) openELF() error {
	e, err := dump.ReadELF(bytes.NewReader(f.data), f.size)
	if err != nil {
		return err
	}
	f.Kind, f.Arch, f.CPUs, f.Problems = "ELF dump", e.Arch, e.CPUs, e.Problems
	var segments []mem.Segment
	var missing uint64
	for _, s := range e.Segments {
		missing += s.Range.Size() - s.Present
		segments = append(segments, mem.Segment{
			Base: mem.Phys(s.Range.First), Data: f.data[s.Offset : s.Offset+s.Present], FileOffset: s.Offset,
		})
	}
	if missing > 0 {
		f.Problems = append(f.Problems, fmt.Sprintf("%#x bytes of the machine's memory are not in the file", missing))
	}
	image, err := mem.NewImage(segments)
	f.memory = image
	return err
}
