package vmstate

import (
	"fmt"
	"math/bits"
	"slices"

	"nestdbg/internal/mem"
)

// RAM says where in a stream each page of RAM is. Of a page that was sent again, as a
// running machine's are, the last one counts.
type RAM struct {
	Blocks   []*RAMBlock // in the order of the stream
	PageSize uint64

	data    []byte // the stream
	limit   uint64 // pages of all blocks
	pages   uint64 // of all blocks so far
	current *RAMBlock
}

// RAMBlock is a part of RAM by QEMU's name. Addresses in it begin at 0.
type RAMBlock struct {
	Name string
	Size uint64 // bytes

	ram    *RAM
	pages  []pageRef // by number; shorter than the block if the last are not there
	mapped bool      // they have places of their own
}

// pageRef says where a page is: its offset in the stream, which is never 0, or that
// all its bytes are one.
type pageRef uint64

const (
	absent   pageRef = 0
	isFilled pageRef = 1 << 63
)

func filled(b byte) pageRef { return isFilled | pageRef(b) }

// Bounds of what a stream may claim to have: each page takes a record of 9 bytes at
// least, or its own size where pages have their places; and what was cut short may
// claim this much.
const (
	minPage  = 9
	minPages = 1 << 20
	maxNames = 1 << 12
)

// add takes note of a block. A nil index forgets it.
func (x *RAM) add(name string, size uint64, c configuration) error {
	if x == nil {
		return nil
	}
	n := size >> c.pageBits
	switch {
	case size == 0 || n<<c.pageBits != size:
		return fmt.Errorf("%w: block %.40q of %#x bytes", ErrCorrupt, name, size)
	case len(x.Blocks) == maxNames:
		return fmt.Errorf("%w: more than %d blocks", ErrUnsupported, maxNames)
	case slices.ContainsFunc(x.Blocks, func(b *RAMBlock) bool { return b.Name == name }):
		return fmt.Errorf("%w: block %.40q is there twice", ErrCorrupt, name)
	}
	x.Blocks = append(x.Blocks, &RAMBlock{Name: name, Size: size, ram: x})
	return nil
}

// enter makes the block of this name that of the following pages.
func (x *RAM) enter(name string) {
	if x == nil {
		return
	}
	x.current = nil
	for _, b := range x.Blocks {
		if b.Name == name {
			x.current = b
		}
	}
}

// put says where the page at an address of the current block is.
func (x *RAM) put(addr uint64, ref pageRef) error {
	if x == nil {
		return nil
	}
	if x.current == nil {
		return fmt.Errorf("%w: a page of no block that was listed", ErrCorrupt)
	}
	return x.current.put(addr/x.PageSize, ref)
}

func (b *RAMBlock) put(n uint64, ref pageRef) error {
	if n >= b.Size/b.ram.PageSize {
		return fmt.Errorf("%w: page %#x of block %.40q of %#x bytes", ErrCorrupt, n, b.Name, b.Size)
	}
	if have := uint64(len(b.pages)); n >= have {
		if n+1-have > b.ram.limit-b.ram.pages {
			return fmt.Errorf("%w: blocks of more pages than the stream can have", ErrCorrupt)
		}
		b.ram.pages += n + 1 - have
		b.pages = append(b.pages, make([]pageRef, n+1-have)...)
	}
	b.pages[n] = ref
	return nil
}

// any reports whether there is a page.
func (x *RAM) any() bool {
	return slices.ContainsFunc(x.Blocks, func(b *RAMBlock) bool { return len(b.pages) > 0 })
}

// interrupted forgets the pages of blocks with places of their own if none of any has
// its bit set, and reports whether it did: the bits are written last of all (QEMU 10.0
// migration/ram.c: ram_save_complete), and without them what was written and what is
// zero look alike.
func (x *RAM) interrupted() bool {
	forget := false
	for _, b := range x.Blocks {
		if b.mapped && slices.ContainsFunc(b.pages, func(ref pageRef) bool { return ref != filled(0) }) {
			return false
		}
		forget = forget || b.mapped
	}
	for _, b := range x.Blocks {
		if b.mapped {
			b.pages = nil
		}
	}
	return forget
}

// A mapped block (QEMU 10.0 migration/ram.c: MappedRamHeader, mapped_ram_setup_ramblock):
//
//	0  be32 version, 1
//	4  be64 page size
//	12 be64 offset of a bitmap of the pages that are there, in the host's long words;
//	   the others are zero
//	20 be64 offset of page 0; behind the last page the stream goes on
const mappedVersion = 1

// mappedBlock reads the places of the pages of the block that was listed last.
func mappedBlock(r *reader, size uint64, index *RAM) error {
	at := r.at
	version, pageSize, bitmap, first := r.u32(), r.u64(), r.u64(), r.u64()
	if r.short {
		return nil // and end there
	}
	have, pages := uint64(len(r.b)), size/max(pageSize, 1)
	switch {
	case version != mappedVersion:
		return fmt.Errorf("%w: mapped RAM of version %d at offset %#x", ErrUnsupported, version, at)
	case bitmap == 0 && first == 0:
		return nil // shared, and not here
	case bits.OnesCount64(pageSize) != 1 || size%pageSize != 0:
		return fmt.Errorf("%w: mapped RAM of %#x bytes in pages of %#x at offset %#x", ErrCorrupt, size, pageSize, at)
	case bitmap < uint64(r.at) || first < bitmap || first+size < first:
		return fmt.Errorf("%w: mapped RAM at offset %#x: %#x bytes at %#x, bitmap at %#x", ErrCorrupt, at, size, first, bitmap)
	case (pages+63)/64*8 > first-bitmap:
		return fmt.Errorf("%w: mapped RAM at offset %#x: no room for a bitmap of %d pages", ErrCorrupt, at, pages)
	case first > have:
		return fmt.Errorf("%w: mapped RAM at offset %#x: the file ends at %#x, and pages begin at %#x", ErrCorrupt, at, have, first)
	}
	if r.at = int(min(first+size, have)); first+size > have {
		r.short = true // and what there is counts
	}
	if index == nil {
		return nil
	}
	if pageSize != index.PageSize {
		return fmt.Errorf("%w: mapped RAM in pages of %#x, the machine's have %#x", ErrUnsupported, pageSize, index.PageSize)
	}
	b := index.Blocks[len(index.Blocks)-1]
	b.mapped = true
	for n := range pages {
		ref := filled(0)
		if r.b[bitmap+n/8]>>(n%8)&1 != 0 { // little-endian, as all hosts here
			if ref = pageRef(first + n*pageSize); uint64(ref)+pageSize > have {
				continue // absent
			}
		}
		if err := b.put(n, ref); err != nil {
			return err
		}
	}
	return nil
}

// Ranges are the addresses in the block whose bytes the stream tells.
func (b *RAMBlock) Ranges() []mem.Range {
	return b.rangesOf(func(ref pageRef) bool { return ref != absent })
}

// Populated are those of the ranges with bytes other than zero, page by page.
func (b *RAMBlock) Populated() []mem.Range {
	return b.rangesOf(func(ref pageRef) bool { return ref != absent && ref != filled(0) })
}

func (b *RAMBlock) rangesOf(in func(pageRef) bool) []mem.Range {
	var out []mem.Range
	for n, ref := range b.pages {
		if !in(ref) {
			continue
		}
		first := uint64(n) * b.ram.PageSize
		if k := len(out); k > 0 && out[k-1].Last+1 == first {
			out[k-1].Last += b.ram.PageSize
		} else {
			out = append(out, mem.Range{First: first, Last: first + b.ram.PageSize - 1})
		}
	}
	return out
}

// Offset tells where in the stream the byte at an address of the block is, if it is
// there as it is.
func (b *RAMBlock) Offset(addr uint64) (uint64, bool) {
	n := addr / b.ram.PageSize
	if n >= uint64(len(b.pages)) || b.pages[n] == absent || b.pages[n]&isFilled != 0 {
		return 0, false
	}
	return uint64(b.pages[n]) + addr%b.ram.PageSize, true
}

// zeroPage is what all pages of zeros share.
var zeroPage [1 << 16]byte

// Slice returns the bytes from an address of the block on, to the end of its page at
// most; nil if the stream does not have the page. They must not be written.
func (b *RAMBlock) Slice(addr uint64) []byte {
	n, in := addr/b.ram.PageSize, addr%b.ram.PageSize
	if n >= uint64(len(b.pages)) {
		return nil
	}
	switch ref := b.pages[n]; {
	case ref == absent:
		return nil
	case ref == filled(0):
		return zeroPage[in:b.ram.PageSize:b.ram.PageSize]
	case ref&isFilled != 0:
		page := make([]byte, b.ram.PageSize-in)
		for i := range page {
			page[i] = byte(ref)
		}
		return page
	default:
		return b.ram.data[uint64(ref)+in : uint64(ref)+b.ram.PageSize : uint64(ref)+b.ram.PageSize]
	}
}
