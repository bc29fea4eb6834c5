package dump

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
)

// Segment is a piece of physical memory in an ELF file. Of its bytes, those from
// Present on are not in the file.
type Segment struct {
	Range   mem.Range // physical
	Offset  uint64    // of Range.First in the file; 0 if nothing is Present
	Present uint64    // bytes
}

// ELF is what the headers of an ELF core say.
type ELF struct {
	Arch     *arch.Arch
	Segments []Segment // ascending, without overlap, within the file
	State
}

// Bounds of what the headers may ask for.
const (
	maxHeaders = 1 << 20
	maxNotes   = 64 << 20
)

// ELF64 (gABI): offsets in the file header, the program header and the section
// header, and values.
const (
	elfHeaderSize  = 64
	progHeaderSize = 56
	elfTypeCore    = 4
	machineX86     = 62
	headersElse    = 0xffff // PN_XNUM: the count is in section header 0, sh_info
	progLoad       = 1
	progNote       = 4

	sectionHeaderSize = 64
	sectionSize       = 32 // sh_size: of header 0, the number of sections
	sectionInfo       = 44 // sh_info: of header 0, the number of segments
)

// architectures by e_machine.
var architectures = map[uint16]*arch.Arch{machineX86: arch.X86}

type progHeader struct {
	kind                         uint32
	offset, paddr, filesz, memsz uint64
}

// IsELF reports whether a file that begins like this is an ELF file.
func IsELF(head []byte) bool { return len(head) >= 4 && string(head[:4]) == "\x7fELF" }

// ReadELF reads the headers and notes of an ELF core of this size. Memory that the
// headers promise and the file does not have is left out, and Problems says so.
func ReadELF(r io.ReaderAt, size uint64) (*ELF, error) {
	head, err := readAt(r, 0, elfHeaderSize, "ELF header")
	if err != nil {
		return nil, err
	}
	if !IsELF(head) {
		return nil, fmt.Errorf("no ELF: %w", ErrForeign)
	}
	le := binary.LittleEndian
	if head[4] != 2 || head[5] != 1 {
		return nil, fmt.Errorf("at 0x4: ELF of class %d, byte order %d; 64 bits little-endian are: %w", head[4], head[5], ErrUnsupported)
	}
	if t := le.Uint16(head[16:]); t != elfTypeCore {
		return nil, fmt.Errorf("at 0x10: ELF of type %d, a dump is a core (4): %w", t, ErrForeign)
	}
	e := &ELF{Arch: architectures[le.Uint16(head[18:])]}
	if e.Arch == nil {
		return nil, fmt.Errorf("at 0x12: ELF machine %d: %w", le.Uint16(head[18:]), ErrUnsupported)
	}
	headers, err := readProgHeaders(r, head, size)
	if err != nil {
		return nil, err
	}
	e.State = newState(e.Arch)
	for i, h := range headers {
		switch h.kind {
		case progNote:
			if h.filesz > maxNotes {
				return nil, corrupt(h.offset, "notes of %#x bytes", h.filesz)
			}
			notes, err := readAt(r, h.offset, h.filesz, "notes")
			if err != nil {
				return nil, err
			}
			e.readNotes(notes, h.offset)
		case progLoad:
			e.add(i, h, size)
		}
	}
	e.separate()
	if len(e.Segments) == 0 {
		return nil, corrupt(le.Uint64(head[32:]), "no memory in it (%d program headers)", len(headers))
	}
	return e, nil
}

func readProgHeaders(r io.ReaderAt, head []byte, size uint64) ([]progHeader, error) {
	le := binary.LittleEndian
	at, entry, count := le.Uint64(head[32:]), le.Uint16(head[54:]), uint64(le.Uint16(head[56:]))
	if entry != progHeaderSize {
		return nil, corrupt(54, "program headers of %d bytes", entry)
	}
	if count == headersElse {
		section, err := readAt(r, le.Uint64(head[40:]), sectionHeaderSize, "section header 0")
		if err != nil {
			return nil, err
		}
		count = uint64(le.Uint32(section[sectionInfo:]))
	}
	if count == 0 || count > maxHeaders {
		return nil, corrupt(56, "%d program headers", count)
	}
	if !within(at, count*progHeaderSize, size) {
		return nil, corrupt(size, "program headers: the file ends here, and %d begin at %#x", count, at)
	}
	b, err := readAt(r, at, count*progHeaderSize, "program headers")
	if err != nil {
		return nil, err
	}
	out := make([]progHeader, count)
	for i := range out {
		p := b[i*progHeaderSize:]
		out[i] = progHeader{le.Uint32(p), le.Uint64(p[8:]), le.Uint64(p[24:]), le.Uint64(p[32:]), le.Uint64(p[40:])}
	}
	return out, nil
}

// add takes a PT_LOAD as far as the file has it.
func (e *ELF) add(i int, h progHeader, size uint64) {
	if h.memsz == 0 {
		return
	}
	s := Segment{Range: mem.Range{First: h.paddr, Last: h.paddr + h.memsz - 1}, Offset: h.offset, Present: min(h.filesz, h.memsz)}
	if s.Range.Last < s.Range.First {
		e.problem("program header %d: %#x bytes at %#x pass the end of the address space; left out", i, h.memsz, h.paddr)
		return
	}
	if !within(h.offset, s.Present, size) {
		have := size - min(h.offset, size)
		e.problem("the file is cut short at %#x: of the memory from %#x on, %#x of %#x bytes are there", size, h.paddr, have, s.Present)
		s.Present = have
	}
	e.Segments = append(e.Segments, s)
}

// separate sorts the segments and cuts what an earlier one has already: the
// kernel's own dumps list the memory of its image twice.
func (e *ELF) separate() {
	all := e.Segments
	slices.SortStableFunc(all, func(a, b Segment) int {
		return cmp.Or(cmp.Compare(a.Range.First, b.Range.First), cmp.Compare(b.Range.Last, a.Range.Last))
	})
	e.Segments = nil
	for _, s := range all {
		if n := len(e.Segments); n > 0 {
			last := e.Segments[n-1].Range.Last
			if s.Range.Last <= last {
				continue
			}
			if s.Range.First <= last {
				cut := last + 1 - s.Range.First
				s.Range.First, s.Offset, s.Present = last+1, s.Offset+cut, s.Present-min(cut, s.Present)
			}
		}
		if s.Present == 0 {
			s.Offset = 0 // it may be anywhere
		}
		e.Segments = append(e.Segments, s)
	}
}
