// Package mem is the vocabulary of memory: typed addresses, inclusive ranges,
// readers that say exactly what they could not read.
package mem

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Phys is a physical address of one machine. A nested machine's Phys is a
// guest-physical address; whose it is follows from the reader it is used with.
type Phys uint64

// Virt is a virtual address in one address space of one machine.
type Virt uint64

// Range is a span of addresses with both ends included, so that it can end at
// 2^64-1.
type Range struct{ First, Last uint64 }

// Contains reports whether a lies in the range.
func (r Range) Contains(a uint64) bool { return r.First <= a && a <= r.Last }

// Size is the number of bytes in the range; the whole 64-bit space has size 0.
func (r Range) Size() uint64 { return r.Last - r.First + 1 }

func (r Range) String() string { return fmt.Sprintf("%#x-%#x", r.First, r.Last) }

// PhysReader reads physical memory. Like io.ReaderAt with an unsigned address:
// n < len(p) implies err != nil, the bytes before n are valid, and an address
// that cannot be read gives a *FaultError for the first byte that failed.
// Readers in this project are safe for concurrent use unless they say otherwise.
type PhysReader interface {
	ReadPhys(p []byte, a Phys) (n int, err error)
}

// VirtReader reads virtual memory, by the rules of PhysReader.
type VirtReader interface {
	ReadVirt(p []byte, a Virt) (n int, err error)
}

// PhysSlicer is a PhysReader that can hand out its bytes without a copy.
// SlicePhys returns the bytes from a on, as many as are contiguous and at most
// max; an empty slice means "use ReadPhys". The bytes belong to the reader, may
// change at any time when the machine runs, and must not be written.
type PhysSlicer interface {
	PhysReader
	SlicePhys(a Phys, max int) []byte
}

// PhysRanger knows which physical addresses hold RAM, in ascending order.
type PhysRanger interface {
	PhysRanges() []Range
}

// ErrFault is the class of every "this address could not be read".
var ErrFault = errors.New("memory fault")

// ErrNoRAM is the reason for a fault at a physical address where no RAM is.
var ErrNoRAM = errors.New("no RAM at this physical address")

// FaultError is a read that failed at an address. Space names whose address it
// is ("physical memory", "ept", "va of vm0"); Err says why and may be nil.
type FaultError struct {
	Space string
	Addr  uint64
	Err   error
}

func (e *FaultError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("%s: cannot read %#x", e.Space, e.Addr)
	}
	return fmt.Sprintf("%s: cannot read %#x: %v", e.Space, e.Addr, e.Err)
}

// Is makes every FaultError an ErrFault.
func (e *FaultError) Is(target error) bool { return target == ErrFault }

func (e *FaultError) Unwrap() error { return e.Err }

// Uint64 reads a little-endian 64-bit word, the byte order of every
// architecture nestdbg knows.
func Uint64(r PhysReader, a Phys) (uint64, error) {
	if s, ok := r.(PhysSlicer); ok {
		if b := s.SlicePhys(a, 8); len(b) == 8 {
			return binary.LittleEndian.Uint64(b), nil
		}
	}
	var b [8]byte
	if _, err := r.ReadPhys(b[:], a); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// Uint32 reads a little-endian 32-bit word.
func Uint32(r PhysReader, a Phys) (uint32, error) {
	var b [4]byte
	if _, err := r.ReadPhys(b[:], a); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b[:]), nil
}

// VirtUint64 reads a little-endian 64-bit word of virtual memory.
func VirtUint64(r VirtReader, a Virt) (uint64, error) {
	var b [8]byte
	if _, err := r.ReadVirt(b[:], a); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// VirtUint32 reads a little-endian 32-bit word of virtual memory.
func VirtUint32(r VirtReader, a Virt) (uint32, error) {
	var b [4]byte
	if _, err := r.ReadVirt(b[:], a); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b[:]), nil
}

// CString reads a NUL-terminated string of at most max bytes. A string that is
// not terminated within max, or runs into a hole, is an error: half a name is
// no answer.
func CString(r VirtReader, a Virt, max int) (string, error) {
	var s []byte
	for len(s) < max {
		// Pieces end at 64-byte boundaries, so a short string beside an unmapped
		// page is still readable.
		n := min(64-int(uint64(a)%64), max-len(s))
		piece := make([]byte, n)
		got, err := r.ReadVirt(piece, a)
		for i, c := range piece[:got] {
			if c == 0 {
				return string(append(s, piece[:i]...)), nil
			}
		}
		if err != nil {
			return "", err
		}
		s = append(s, piece...)
		a += Virt(n)
	}
	return "", &FaultError{Space: "string", Addr: uint64(a), Err: fmt.Errorf("no end within %d bytes", max)}
}
