package symfile

import (
	"fmt"
	"io"
	"slices"

	"nestdbg/internal/arch"
)

// Numbers of the ELF-64 Object File Format (System V gABI, "Object Files").
const (
	elfHeaderSize  = 64
	elfProgramSize = 56
	elfSectionSize = 64
	// sectionAddressAt is where in an Elf64_Shdr its sh_addr is.
	sectionAddressAt = 16
	elfSymbolSize    = 24

	elfExec = 2 // ET_EXEC
	ptLoad  = 1

	shtProgbits = 1
	shtSymtab   = 2
	shtStrtab   = 3
	shtNote     = 7
	shtNobits   = 8

	shfWrite = 1
	shfAlloc = 2
	shfExec  = 4

	shnAbs      = 0xfff1
	shnReserved = 0xff00 // the first index that does not mean a section

	sttObject = 1
	sttFunc   = 2
	stbGlobal = 1

	ntGNUBuildID = 3
)

// machineOf returns e_machine of an architecture.
func machineOf(a *arch.Arch) (uint16, bool) {
	switch a {
	case arch.X86:
		return 62, true // EM_X86_64
	}
	return 0, false
}

// maxSections leaves room for our own sections below the reserved indices.
const maxSections = shnReserved - 16

// checkSections refuses what has no place in an ELF file. A section is never
// left out, since the server tells gdb one address for each.
func checkSections(sections []Section) error {
	if len(sections) > maxSections {
		return fmt.Errorf("%d sections: %w", len(sections), ErrCorrupt)
	}
	for _, s := range sections {
		if s.First+s.Size < s.First {
			return fmt.Errorf("section %q of %#x bytes at %#x passes the end of the address space: %w",
				cleanName(s.Name), s.Size, s.First, ErrCorrupt)
		}
	}
	return nil
}

// maxStrings bounds a string table in bytes; ELF and DWARF 32 have 4 for an offset.
const maxStrings = 1 << 30

// part is a section with contents.
type part struct {
	name    string
	kind    uint32
	data    []byte
	moves   []uint32 // see buffer
	link    uint32   // index of another section
	info    uint32
	align   uint64
	element uint64 // size of an element, 0 if they differ
}

// writer assembles a file. Its parts come behind the sections that File has.
type writer struct {
	machine  uint16
	sections []Section
	parts    []part
	places   places
	notes    *notes
	kernel   *table   // that modules continue; nil if it cannot be read to its end
	written  [][]byte // the file, in parts
	moves    []uint32 // in the file, see buffer
	entries  []codeEntry
}

func (w *writer) add(p part) { w.parts = append(w.parts, p) }

// index is the section index that the next part gets; index 0 is no section.
func (w *writer) index() uint32 { return uint32(1 + len(w.sections) + len(w.parts)) }

// buildID adds .note.gnu.build-id. It is not SHF_ALLOC: gdb finds it all the
// same, and it would count as one more section of a library.
func (w *writer) buildID(id []byte) {
	if len(id) == 0 {
		return
	}
	var b buffer
	b.u32(4)
	b.u32(uint32(len(id)))
	b.u32(ntGNUBuildID)
	b.cstring("GNU")
	b.bytes(id...)
	b.align(4)
	w.add(part{name: ".note.gnu.build-id", kind: shtNote, data: b.b, align: 4})
}

// symbols adds .symtab and .strtab. Local symbols come first, as ELF wants it.
func (w *writer) symbols(units []Unit) {
	var table, names buffer
	count, size := 1, 1
	for _, u := range units {
		for i := range u.Symbols {
			size += len(u.Symbols[i].Name) + 1
		}
		count += len(u.Symbols)
	}
	table.grow(count * elfSymbolSize)
	names.grow(size)
	table.bytes(make([]byte, elfSymbolSize)...)
	names.u8(0)
	locals := uint32(1)
	for _, local := range []bool{true, false} {
		for _, u := range units {
			for i := range u.Symbols {
				if s := &u.Symbols[i]; s.Local == local {
					w.symbol(&table, &names, s)
				}
			}
		}
		if local {
			locals = uint32(table.len() / elfSymbolSize)
		}
	}
	w.add(part{name: ".symtab", kind: shtSymtab, data: table.b, moves: table.moves, link: w.index() + 1, info: locals,
		align: 8, element: elfSymbolSize})
	w.add(part{name: ".strtab", kind: shtStrtab, data: names.b, align: 1})
}

func (w *writer) symbol(table, names *buffer, s *Symbol) {
	if s.Name == "" || names.len() > maxStrings {
		w.notes.add("symbol %q at %#x: left out", cleanName(s.Name), s.Addr)
		return
	}
	info := uint8(sttObject)
	if s.Code {
		info = sttFunc
	}
	if !s.Local {
		info |= stbGlobal << 4
	}
	section := uint16(shnAbs)
	if i := w.places.section(s.Addr); i >= 0 {
		section = uint16(1 + i)
	}
	table.u32(uint32(names.len()))
	table.bytes(info, 0)
	table.u16(section)
	table.addr(s.Addr, w.places.moves(s.Addr))
	table.u64(s.Size)
	names.cstring(cleanName(s.Name))
}

// emit writes the file: header, program headers, the data of the parts, section
// headers.
func (w *writer) emit(out io.Writer) error {
	names := w.sectionNames()
	head := elfHeaderSize + elfProgramSize*len(w.sections)
	offset := uint64(head)
	var table buffer
	table.bytes(make([]byte, elfSectionSize)...)
	for i, s := range w.sections {
		table.moves = append(table.moves, uint32(table.len()+sectionAddressAt))
		table.sectionHeader(names[i], shtNobits, s.flags(), s.First, offset, s.Size, part{align: 1})
	}
	for i, p := range w.parts {
		offset = (offset + 7) &^ 7
		table.sectionHeader(names[len(w.sections)+i], p.kind, 0, 0, offset, uint64(len(p.data)), p)
		offset += uint64(len(p.data))
	}
	offset = (offset + 7) &^ 7

	stream := stream{w: out, keep: w.places.keep}
	header := w.header(offset, uint64(head))
	stream.write(header.b, header.moves)
	for _, p := range w.parts {
		stream.align(8)
		stream.write(p.data, p.moves)
	}
	stream.align(8)
	stream.write(table.b, table.moves)
	w.written, w.moves = stream.parts, stream.moves
	return stream.err
}

// sectionNames adds .shstrtab and returns where in it each section's name is.
func (w *writer) sectionNames() []uint32 {
	at := w.index()
	w.add(part{name: ".shstrtab", kind: shtStrtab, align: 1})
	var b buffer
	b.u8(0)
	var names []uint32
	for _, s := range w.sections {
		names = append(names, uint32(b.len()))
		b.cstring(cleanName(s.Name))
	}
	for _, p := range w.parts {
		names = append(names, uint32(b.len()))
		b.cstring(p.name)
	}
	w.parts[int(at)-1-len(w.sections)].data = b.b
	return names
}

func (s *Section) flags() uint64 {
	f := uint64(shfAlloc)
	if s.Write {
		f |= shfWrite
	}
	if s.Exec {
		f |= shfExec
	}
	return f
}

// sectionHeader appends an Elf64_Shdr; of p only link, info, align and element count.
func (b *buffer) sectionHeader(name, kind uint32, flags, addr, offset, size uint64, p part) {
	b.u32(name)
	b.u32(kind)
	b.u64(flags)
	b.u64(addr)
	b.u64(offset)
	b.u64(size)
	b.u32(p.link)
	b.u32(p.info)
	b.u64(p.align)
	b.u64(p.element)
}

// header is the Elf64_Ehdr and an Elf64_Phdr for each section. The segments are
// there because gdb applies "TextSeg=" of qOffsets to segments; like the sections
// they occupy no bytes of the file.
func (w *writer) header(sectionTable, head uint64) buffer {
	var b buffer
	b.bytes(0x7f, 'E', 'L', 'F', 2, 1, 1, 0) // ELFCLASS64, ELFDATA2LSB, EV_CURRENT, System V
	b.u64(0)
	b.u16(elfExec)
	b.u16(w.machine)
	b.u32(1)
	b.u64(0)             // e_entry
	b.u64(elfHeaderSize) // e_phoff
	b.u64(sectionTable)
	b.u32(0)
	b.u16(elfHeaderSize)
	b.u16(elfProgramSize)
	b.u16(uint16(len(w.sections)))
	b.u16(elfSectionSize)
	b.u16(uint16(1 + len(w.sections) + len(w.parts)))
	b.u16(uint16(len(w.sections) + len(w.parts))) // .shstrtab is the last part
	for _, s := range w.sections {
		b.u32(ptLoad)
		b.u32(s.segmentFlags())
		b.u64(head)
		b.addr(s.First, true)
		b.addr(s.First, true)
		b.u64(0)
		b.u64(s.Size)
		b.u64(1)
	}
	return b
}

// segmentFlags are PF_X 1, PF_W 2, PF_R 4.
func (s *Section) segmentFlags() uint32 {
	f := uint32(4)
	if s.Exec {
		f |= 1
	}
	if s.Write {
		f |= 2
	}
	return f
}

// stream writes and counts until the first error.
type stream struct {
	w      io.Writer
	offset int
	keep   bool
	parts  [][]byte // all that was written, and
	moves  []uint32 // in it, see buffer; if keep is set
	err    error
}

func (s *stream) write(b []byte, moves []uint32) {
	if s.keep {
		s.parts, s.moves = append(s.parts, b), slices.Grow(s.moves, len(moves))
		for _, at := range moves {
			s.moves = append(s.moves, uint32(s.offset)+at)
		}
	}
	if s.err == nil {
		_, s.err = s.w.Write(b)
		s.offset += len(b)
	}
}

func (s *stream) align(n int) { s.write(make([]byte, -s.offset&(n-1)), nil) }
