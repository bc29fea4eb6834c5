package dump

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
)

// A kdump-compressed file (QEMU 7.2 include/sysemu/dump.h: DiskDumpHeader64,
// KdumpSubHeader64, PageDescriptor; makedumpfile diskdump_mod.h), in blocks of
// block_size bytes: the header, a sub header, a bitmap of the pages that the machine
// has, one of those that are in the file, a descriptor for each of the latter, and the
// pages. Offsets of fields:
const (
	kdumpHeader  = 464
	atVersion    = 8
	atSystem     = 12 // utsname: six names
	nameSize     = 65
	atMachine    = atSystem + 4*nameSize // utsname.machine
	atStatus     = 424
	atBlockSize  = 428
	atSubSize    = 432
	atBitmapSize = 436
	atMaxPage    = 440
	atCPUs       = 460

	subHeader       = 104
	atPhysBase      = 0
	atLevel         = 8
	atSplit         = 12
	atStart         = 16 // first page number of a part, and behind it the end
	atVMCoreInfo    = 32
	atNotes         = 48
	atStart64       = 80
	atMaxPage64     = 96
	versionSplit    = 2
	versionNotes    = 4
	versionMaxPages = 6

	pageDescriptor = 24
)

// Flags of a page descriptor.
const (
	pageZlib   = 1
	pageLZO    = 2
	pageSnappy = 4
	pageZstd   = 0x20
)

// incomplete is the bit of the status that says that the dump was not finished
// (makedumpfile: DUMP_DH_COMPRESSED_INCOMPLETE).
const incomplete = 8

// maxBitmap bounds a bitmap: 2 TiB of memory.
const maxBitmap = 64 << 20

var kdumpSignatures = []string{"KDUMP   ", "DISKDUMP"}

// Kdump is a kdump-compressed file. Safe for concurrent use.
type Kdump struct {
	Arch *arch.Arch
	State

	r     io.ReaderAt
	flat  *Flat // nil if r is not flattened
	size  uint64
	block uint64 // bytes of a page and of a block

	here    []uint64 // pages that are in the file, a bit each
	machine []uint64 // pages that the machine has
	before  []uint32 // pages in here before each word of it
	zeros   []uint64 // pages that are not in the file because all their bytes are zero; nil: none is known
	table   uint64   // offset of the page descriptors
	// packer undoes compression.
	packer unpacker
}

// IsKdump reports whether a file that begins like this is kdump-compressed.
func IsKdump(head []byte) bool {
	for _, s := range kdumpSignatures {
		if len(head) >= len(s) && string(head[:len(s)]) == s {
			return true
		}
	}
	return false
}

// machineNames are the architectures by utsname.machine. QEMU 10.0 writes no name of
// any (dump/dump.c: create_header64, ELF_MACHINE_UNAME); then the notes tell, since only
// x86 has QEMU's own (target/i386/arch_dump.c).
var machineNames = map[string]*arch.Arch{"x86_64": arch.X86, unnamed: arch.X86}

const unnamed = "Unknown"

// ReadKdump reads the headers, bitmaps and notes of a file, flattened or not.
func ReadKdump(r io.ReaderAt, size uint64) (*Kdump, error) {
	head, err := readAt(r, 0, kdumpHeader, "header")
	if err != nil {
		return nil, err
	}
	k := &Kdump{r: r, size: size}
	if IsFlat(head) {
		if k.flat, err = ReadFlat(r, size); err != nil {
			return nil, err
		}
		k.r, k.size = k.flat, k.flat.Size()
		if head, err = readAt(k.r, 0, kdumpHeader, "header in the flattened file"); err != nil {
			return nil, err
		}
	}
	if !IsKdump(head) {
		return nil, fmt.Errorf("at 0x0: no kdump signature: %w", ErrForeign)
	}
	le := binary.LittleEndian
	name := cString(head[atMachine : atMachine+nameSize])
	if k.Arch = machineNames[name]; k.Arch == nil {
		return nil, fmt.Errorf("at %#x: a dump of machine %q: %w", atMachine, name, ErrUnsupported)
	}
	k.State = newState(k.Arch)
	if k.flat != nil && k.flat.Cut != 0 {
		k.problem("the flattened file is cut short at %#x", k.flat.Cut)
	}
	if s := le.Uint32(head[atStatus:]); s&incomplete != 0 {
		k.problem("whoever wrote the dump did not finish it (status %#x)", s)
	}
	if k.block = uint64(le.Uint32(head[atBlockSize:])); k.block != pageSize {
		return nil, corrupt(atBlockSize, "blocks of %d bytes, pages here have %d", k.block, pageSize)
	}
	h, err := k.readSubHeader(head)
	if err != nil {
		return nil, err
	}
	if name == unnamed && !k.QEMU {
		return nil, fmt.Errorf("at %#x: a dump of machine %q without notes of an x86's CPUs: %w", atMachine, name, ErrUnsupported)
	}
	if err := k.readBitmaps(head, h); err != nil {
		return nil, err
	}
	return k, nil
}

// kdumpPages is what the sub header says of the pages.
type kdumpPages struct {
	count      uint64 // page numbers
	first, end uint64 // of them, those whose pages are in this file: a part has a few
	noZero     bool   // what is not in the file is pages of zeros, and nothing else
}

// split is what the sub header says of a part (makedumpfile diskdump_mod.h: split,
// start_pfn, start_pfn_64 and their ends, which are excluded). A part has the bitmaps
// of all pages, and descriptors of its own only.
func (p *kdumpPages) split(sub []byte, version uint32) error {
	le := binary.LittleEndian
	p.end = p.count
	if version < versionSplit || le.Uint32(sub[atSplit:]) == 0 {
		return nil
	}
	at := atStart
	if version >= versionMaxPages {
		at = atStart64
	}
	first, end := le.Uint64(sub[at:]), le.Uint64(sub[at+8:])
	if first > end || end > p.count {
		return corrupt(pageSize+uint64(at), "a part from page %#x to %#x of %#x", first, end, p.count)
	}
	p.first, p.end = first, end
	return nil
}

// readSubHeader reads the sub header and what it leads to.
func (k *Kdump) readSubHeader(head []byte) (p kdumpPages, err error) {
	le := binary.LittleEndian
	version := le.Uint32(head[atVersion:])
	p.count = uint64(le.Uint32(head[atMaxPage:]))
	sub, err := readAt(k.r, k.block, subHeader, "sub header")
	if err != nil {
		return p, err
	}
	p.noZero = le.Uint32(sub[atLevel:]) == uint32(LevelZero)
	if version >= versionMaxPages {
		p.count = le.Uint64(sub[atMaxPage64:])
	}
	if err := p.split(sub, version); err != nil {
		return p, err
	}
	if version < versionNotes {
		return p, nil
	}
	part := func(at int, what string) []byte {
		offset, size := le.Uint64(sub[at:]), le.Uint64(sub[at+8:])
		if size == 0 {
			return nil
		}
		if size > maxNotes || !within(offset, size, k.size) {
			k.problem("at %#x: %s of %#x bytes at %#x of %#x", k.block+uint64(at), what, size, offset, k.size)
			return nil
		}
		b, err := readAt(k.r, offset, size, what)
		if err != nil {
			k.problem("%v", err)
		}
		return b
	}
	if notes := part(atNotes, "notes"); notes != nil {
		k.readNotes(notes, le.Uint64(sub[atNotes:]))
	}
	if info := part(atVMCoreInfo, "VMCOREINFO"); info != nil {
		k.VMCoreInfo = info
	}
	return p, nil
}

func (k *Kdump) readBitmaps(head []byte, p kdumpPages) error {
	le := binary.LittleEndian
	sub, blocks := uint64(le.Uint32(head[atSubSize:])), uint64(le.Uint32(head[atBitmapSize:]))
	first := (1 + sub) * k.block
	half := blocks * k.block / 2
	if half == 0 || half > maxBitmap || sub > 1<<20 {
		return corrupt(atBitmapSize, "bitmaps of %d blocks behind a sub header of %d", blocks, sub)
	}
	if !within(first, 2*half, k.size) && k.flat == nil {
		return corrupt(k.size, "the file ends before its bitmaps do, at %#x", first+2*half)
	}
	if p.count == 0 || p.count > 8*half {
		return corrupt(atMaxPage, "%#x pages in bitmaps of %#x", p.count, 8*half)
	}
	var err error
	if k.machine, err = k.readBits(first, half, p.count); err != nil {
		return err
	}
	if k.here, err = k.readBits(first+half, half, p.count); err != nil {
		return err
	}
	k.keepPart(p)
	k.table = first + 2*half
	k.before = make([]uint32, len(k.here))
	n := uint32(0)
	for i, w := range k.here {
		k.before[i] = n
		n += uint32(bits.OnesCount64(w))
	}
	switch text := p.ofWhole(); {
	case n == 0 && text != "":
		return fmt.Errorf("at %#x: no page is in the file%s: %w", first+half, text, ErrUnsupported)
	case n == 0:
		return corrupt(first+half, "no page is in the file")
	}
	if end := k.table + uint64(n)*pageDescriptor; end > k.size {
		k.problem("the file is cut short at %#x: the descriptors of its %d pages would end at %#x", k.size, n, end)
	}
	return nil
}

// ofWhole says that a file is a part, and how to have the whole; "" of a whole.
func (p kdumpPages) ofWhole() string {
	if p.end-p.first == p.count {
		return ""
	}
	return fmt.Sprintf(", the part from %#x to %#x of a dump of pages up to %#x that was split: makedumpfile --reassemble makes one of all parts",
		p.first*pageSize, p.end*pageSize, p.count*pageSize)
}

// keepPart forgets what other parts have, before anything is counted: they have the
// descriptors of that.
func (k *Kdump) keepPart(p kdumpPages) {
	if text := p.ofWhole(); text != "" {
		k.problem("the file is not all of a dump%s", text)
	}
	if p.noZero {
		k.zeros = make([]uint64, len(k.here))
	}
	for i := range k.here {
		part := bitsFrom(p.first, i) &^ bitsFrom(p.end, i)
		k.here[i] &= part
		if p.noZero {
			k.zeros[i] = k.machine[i] & part &^ k.here[i]
		}
	}
}

// bitsFrom are those bits of word i of a set that are for the numbers from n on.
func bitsFrom(n uint64, i int) uint64 {
	switch first := uint64(i) * 64; {
	case n <= first:
		return ^uint64(0)
	case n-first < 64:
		return ^uint64(0) << (n - first)
	}
	return 0
}

func (k *Kdump) readBits(offset, size, pages uint64) ([]uint64, error) {
	size = min(size, (pages+63)/64*8)
	b, err := readAt(k.r, offset, size, "bitmap")
	if err != nil {
		return nil, err
	}
	out := make([]uint64, (len(b)+7)/8)
	for i, c := range b {
		out[i/8] |= uint64(c) << (i % 8 * 8)
	}
	if rest := pages % 64; rest != 0 && len(out) > 0 {
		out[len(out)-1] &= 1<<rest - 1
	}
	return out, nil
}

// Ranges are the physical addresses whose bytes the file tells.
func (k *Kdump) Ranges() []mem.Range {
	return k.rangesOf(func(i int) uint64 { return k.here[i] | k.zerosOf(i) })
}

// Excluded are the physical addresses that the machine has and whoever wrote the dump
// left out, or put into another part of it.
func (k *Kdump) Excluded() []mem.Range {
	return k.rangesOf(func(i int) uint64 { return k.machine[i] &^ k.here[i] &^ k.zerosOf(i) })
}

func (k *Kdump) rangesOf(word func(i int) uint64) []mem.Range {
	out := make([]uint64, len(k.machine))
	for i := range out {
		out[i] = word(i)
	}
	return ranges(out)
}

// zerosOf is a word of zeros.
func (k *Kdump) zerosOf(i int) uint64 {
	if k.zeros == nil {
		return 0
	}
	return k.zeros[i]
}

func ranges(set []uint64) []mem.Range {
	var out []mem.Range
	for i, w := range set {
		for w != 0 {
			from := bits.TrailingZeros64(w)
			run := bits.TrailingZeros64(^(w >> from))
			first := (uint64(i)*64 + uint64(from)) * pageSize
			last := first + uint64(run)*pageSize - 1
			if n := len(out); n > 0 && out[n-1].Last+1 == first {
				out[n-1].Last = last
			} else {
				out = append(out, mem.Range{First: first, Last: last})
			}
			if from+run >= 64 {
				break
			}
			w &^= (1<<run - 1) << from
		}
	}
	return out
}

// ErrExcluded is the class of memory that whoever wrote the dump left out.
var ErrExcluded = fmt.Errorf("left out of the dump")

// Page returns the bytes of the page at a page-aligned physical address, which belong
// to the caller. Without such a page in the file the error is mem.ErrNoRAM or
// ErrExcluded; ErrCorrupt if it cannot be made of what is there.
func (k *Kdump) Page(a mem.Phys) ([]byte, error) {
	n := uint64(a) / pageSize
	word, bit := n/64, n%64
	if word >= uint64(len(k.here)) || k.machine[word]>>bit&1 == 0 && k.here[word]>>bit&1 == 0 {
		return nil, mem.ErrNoRAM
	}
	if k.here[word]>>bit&1 == 0 {
		if k.zerosOf(int(word))>>bit&1 == 1 {
			return make([]byte, k.block), nil
		}
		return nil, ErrExcluded
	}
	index := uint64(k.before[word]) + uint64(bits.OnesCount64(k.here[word]&(1<<bit-1)))
	at := k.table + index*pageDescriptor
	var d [pageDescriptor]byte
	if err := k.readWhole(d[:], at, "page descriptor"); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	offset, size, flags := le.Uint64(d[:]), uint64(le.Uint32(d[8:])), le.Uint32(d[12:])
	if size == 0 || size > k.block || offset == 0 {
		return nil, corrupt(at, "descriptor of page %#x: %#x bytes at %#x", a, size, offset)
	}
	b := make([]byte, size)
	if err := k.readWhole(b, offset, "page"); err != nil {
		return nil, fmt.Errorf("page %#x: %w", a, err)
	}
	page, err := k.packer.unpack(b, flags, int(k.block))
	if err != nil {
		return nil, fmt.Errorf("page %#x at %#x: %w", a, offset, err)
	}
	return page, nil
}

// readWhole reads bytes that must be there.
func (k *Kdump) readWhole(p []byte, off uint64, what string) error {
	if !within(off, uint64(len(p)), k.size) {
		return corrupt(k.size, "%s: the file ends here, and it is at %#x", what, off)
	}
	if k.flat != nil {
		if err := k.flat.readWhole(p, off); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	}
	if n, err := k.r.ReadAt(p, int64(off)); n < len(p) {
		return fmt.Errorf("%s at %#x: %w", what, off, err)
	}
	return nil
}
