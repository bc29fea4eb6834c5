package vmstatetest

// Block is a RAM block by its name and size in bytes.
type Block struct {
	Name string
	Size uint64
}

// Page is a page of a block: 4096 bytes, or one that fills it.
type Page struct {
	Block string
	Addr  uint64
	Data  []byte
}

// RAM appends the section "ram" with the pages in this order: a piece that lists the
// blocks, one with the first half of the pages, one with the rest.
func (s *Builder) RAM(blocks []Block, pages ...Page) *Builder {
	s.Piece(1, "ram", 4, append(list(blocks, nil), be64(nil, 0x10)...))
	half := len(pages) / 2
	s.Piece(2, "ram", 4, records(pages[:half]))
	return s.Piece(3, "ram", 4, records(pages[half:]))
}

func list(blocks []Block, more func(b []byte, size uint64) []byte) []byte {
	total := uint64(0)
	for _, b := range blocks {
		total += b.Size
	}
	out := be64(nil, total|4)
	for _, b := range blocks {
		out = be64(counted(out, b.Name), b.Size)
		if more != nil {
			out = more(out, b.Size)
		}
	}
	return out
}

func records(pages []Page) []byte {
	var out []byte
	last := ""
	for _, p := range pages {
		flags := uint64(8)
		if len(p.Data) == 1 {
			flags = 2
		}
		if p.Block == last {
			out = be64(out, p.Addr|flags|0x20)
		} else {
			out = counted(be64(out, p.Addr|flags), p.Block)
		}
		out, last = append(out, p.Data...), p.Block
	}
	return be64(out, 0x10)
}

// MappedRAM appends the section "ram" as the capability mapped-ram has it (QEMU 10.0
// docs/devel/migration/mapped-ram.rst), with pages at multiples of align,
// which is 1 MiB there.
func (s *Builder) MappedRAM(align uint64, blocks []Block, pages ...Page) *Builder {
	start := SectionHeader(s.nextID, "ram", 0, 4)
	base := uint64(len(s.b) + len(start)) // of the payload in the stream
	var names []string
	places := make(map[string][2]uint64) // of bitmap and pages in the payload
	payload := list(blocks, func(b []byte, size uint64) []byte {
		const header = 28
		name := blocks[len(names)].Name
		names = append(names, name)
		bitmap := base + uint64(len(b)) + header
		first := (bitmap + (size/4096+63)/64*8 + align - 1) &^ (align - 1)
		b = be64(be64(be64(be32(b, 1), 4096), bitmap), first)
		places[name] = [2]uint64{bitmap - base, first - base}
		return append(b, make([]byte, first+size-base-uint64(len(b)))...)
	})
	for _, p := range pages {
		at := places[p.Block]
		n := p.Addr / 4096
		payload[at[0]+n/8] |= 1 << (n % 8)
		copy(payload[at[1]+p.Addr:], p.Data)
	}
	s.Piece(1, "ram", 4, be64(payload, 0x10))
	return s.Piece(3, "ram", 4, be64(be64(nil, 0x200), 0x10))
}
