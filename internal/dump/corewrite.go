package dump

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
)

// Core is what is written as an ELF core: the form of QEMU's dump-guest-memory,
// which crash, drgn, gdb and makedumpfile read.
type Core struct {
	Arch *arch.Arch
	CPUs []*arch.Registers
	// Tasks are the numbers of the tasks that the CPUs run, 0 if that is not known or is
	// the idle task; nil: not known of any. drgn finds a task's registers by them.
	Tasks []int
	// VMCoreInfo is the kernel's own text about itself, nil if it has none.
	VMCoreInfo []byte
	// Ranges is the memory, ascending, of whole pages.
	Ranges []mem.Range
	Memory mem.PhysReader
	// Populated are the ranges outside which all bytes of Ranges are zero, ascending:
	// the rest is not read, which in a file of QEMU's would fill its holes. nil: all.
	Populated []mem.Range
	// Direct is where the kernel has all physical memory, and Image where it runs; 0
	// and nil if not known. drgn needs both to begin with.
	Direct mem.Virt
	Image  *Image
	// Release and Version are the kernel's own words (uname -r, -v), and PhysBase its
	// variable phys_base; "" and 0 if not known. Only kdump-compressed files have a
	// place for them.
	Release, Version string
	PhysBase         uint64
}

// Image is where the kernel's own text and data are.
type Image struct {
	Virt mem.Virt
	Phys mem.Range
}

// ErrTooManyRanges says that memory is in more pieces than the format can have.
var ErrTooManyRanges = errors.New("memory is in more pieces than an ELF file can have")

var errNothing = errors.New("there is no memory to write")

// dataOffset is where memory begins, at a page of the file.
func (c *Core) dataOffset() uint64 {
	head := headersEnd(1+len(c.loads(0))) + uint64(len(c.notes()))
	return (head + pageSize - 1) &^ (pageSize - 1)
}

// headersEnd is where the headers of so many segments end. More than e_phnum can count
// are counted in a section header behind them (ELF gABI "ELF Header", e_phnum; Linux
// 6.1 fs/binfmt_elf.c:fill_extnum_info).
func headersEnd(segments int) uint64 {
	end := uint64(elfHeaderSize + progHeaderSize*segments)
	if segments >= headersElse {
		end += sectionHeaderSize
	}
	return end
}

// checkELF refuses what the form cannot have.
func (c *Core) checkELF() error {
	if c.Arch != arch.X86 {
		return fmt.Errorf("an ELF core of %s: %w", c.Arch.Name, ErrUnsupported)
	}
	if len(c.loads(0))+1 > maxHeaders {
		return fmt.Errorf("%w: %d", ErrTooManyRanges, len(c.Ranges))
	}
	return nil
}

// populated are the parts of a range that may not be zero.
func (c *Core) populated(r mem.Range) iter.Seq[mem.Range] {
	return func(yield func(mem.Range) bool) {
		if c.Populated == nil {
			yield(r)
			return
		}
		i, _ := slices.BinarySearchFunc(c.Populated, r.First, func(p mem.Range, at uint64) int { return cmp.Compare(p.Last, at) })
		for ; i < len(c.Populated) && c.Populated[i].First <= r.Last; i++ {
			p := c.Populated[i]
			if !yield(mem.Range{First: max(p.First, r.First), Last: min(p.Last, r.Last)}) {
				return
			}
		}
	}
}

// ReadPages fills b, and clears the pages that cannot be read: those at the offsets
// lost.
func (c *Core) ReadPages(b []byte, a mem.Phys) (lost map[uint64]bool) {
	lost = map[uint64]bool{}
	done := uint64(0)
	for p := range c.populated(mem.Range{First: uint64(a), Last: uint64(a) + uint64(len(b)) - 1}) {
		from, to := p.First-uint64(a), p.Last-uint64(a)+1
		clear(b[done:from])
		c.readSome(b[from:to], mem.Phys(p.First), from, lost)
		done = to
	}
	clear(b[done:])
	return lost
}

// readSome is ReadPages for a part of the pages, which begins at an offset of them.
func (c *Core) readSome(b []byte, a mem.Phys, offset uint64, lost map[uint64]bool) {
	for done := 0; done < len(b); {
		n, err := c.Memory.ReadPhys(b[done:], a+mem.Phys(done))
		done += n
		if err == nil || done == len(b) {
			continue
		}
		into := (uint64(a) + uint64(done)) % pageSize
		page := max(done-int(into), 0)
		done = min(len(b), done+pageSize-int(into))
		clear(b[page:done])
		lost[(offset+uint64(page))&^(pageSize-1)] = true
	}
}

// unknownRegisters says of which CPUs something is missing.
func (c *Core) unknownRegisters() (problems []string) {
	for i, r := range c.CPUs {
		if missing := missingRegisters(r); len(missing) > 0 {
			problems = append(problems, fmt.Sprintf("CPU %d: %s and others are not known, and zero in the file", i, missing[0]))
		}
	}
	return problems
}

// head is everything before the memory.
func (c *Core) head() []byte {
	le := binary.LittleEndian
	notes, data := c.notes(), c.dataOffset()
	loads := c.loads(data)
	b := make([]byte, 0, data)
	b = append(b, 0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0) // 64 bits, little-endian, version 1
	b = le.AppendUint16(b, elfTypeCore)
	b = le.AppendUint16(b, machineX86)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, 0)             // entry
	b = le.AppendUint64(b, elfHeaderSize) // segments
	segments := 1 + len(loads)
	count := []uint16{progHeaderSize, uint16(segments), 0, 0, 0} // and of sections
	sections := uint64(0)
	if segments >= headersElse {
		count = []uint16{progHeaderSize, headersElse, sectionHeaderSize, 1, 0}
		sections = elfHeaderSize + progHeaderSize*uint64(segments)
	}
	b = le.AppendUint64(b, sections)
	b = le.AppendUint32(b, 0)
	for _, v := range append([]uint16{elfHeaderSize}, count...) {
		b = le.AppendUint16(b, v)
	}
	segment := func(kind, flags uint32, values ...uint64) {
		b = le.AppendUint32(le.AppendUint32(b, kind), flags)
		for _, v := range values { // offset, virtual, physical, size in the file, in memory, alignment
			b = le.AppendUint64(b, v)
		}
	}
	segment(progNote, 0, headersEnd(segments), 0, 0, uint64(len(notes)), uint64(len(notes)), 4)
	for _, l := range loads {
		segment(progLoad, 7, l.offset, uint64(l.virt), l.phys.First, l.phys.Size(), l.phys.Size(), 0)
	}
	if sections != 0 { // all zero but for their number and that of segments
		header := make([]byte, sectionHeaderSize)
		le.PutUint64(header[sectionSize:], 1)
		le.PutUint32(header[sectionInfo:], uint32(segments))
		b = append(b, header...)
	}
	b = append(b, notes...)
	return append(b, make([]byte, c.dataOffset()-uint64(len(b)))...)
}

// load is a PT_LOAD: where in the file, and where in the kernel's address space, a
// piece of memory is.
type load struct {
	offset uint64
	virt   mem.Virt
	phys   mem.Range
}

// loads are the kernel's image, as the kernel's own dumps have it, and all memory,
// whose bytes begin at an offset of the file. The image's bytes are in the file once.
func (c *Core) loads(data uint64) []load {
	var image, out []load
	for _, r := range c.Ranges {
		l := load{offset: data, phys: r}
		if c.Direct != 0 {
			l.virt = c.Direct + mem.Virt(r.First)
		}
		out = append(out, l)
		if i := c.Image; i != nil && i.Phys.First <= r.Last && r.First <= i.Phys.Last {
			part := mem.Range{First: max(i.Phys.First, r.First), Last: min(i.Phys.Last, r.Last)}
			image = append(image, load{data + (part.First - r.First), i.Virt + mem.Virt(part.First-i.Phys.First), part})
		}
		data += r.Size()
	}
	return append(image, out...)
}

// notes are the registers of every CPU in both forms, and the kernel's text.
func (c *Core) notes() []byte {
	var b []byte
	for i, r := range c.CPUs {
		b = appendNote(b, "CORE", noteStatus, statusNote(r, c.threadOf(i)))
	}
	for _, r := range c.CPUs {
		b = appendNote(b, "QEMU", noteQEMU, qemuNote(r))
	}
	if len(c.VMCoreInfo) > 0 {
		b = appendNote(b, "VMCOREINFO", 0, c.VMCoreInfo)
	}
	return b
}

func appendNote(b []byte, name string, kind uint32, data []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, uint32(len(name)+1))
	b = le.AppendUint32(b, uint32(len(data)))
	b = le.AppendUint32(b, kind)
	b = append(b, name...)
	b = append(b, make([]byte, 4-len(name)%4)...) // the end of the name, and padding
	b = append(b, data...)
	return append(b, make([]byte, -len(data)&3)...)
}

// missingRegisters are those of the notes that are not known.
func missingRegisters(r *arch.Registers) []string {
	var out []string
	for _, name := range statusRegs {
		if _, ok := r.Get(name); !ok && name != "" {
			out = append(out, name)
		}
	}
	return out
}

// value is a register, zero if it is not known.
func value(r *arch.Registers, name string) uint64 {
	v, _ := r.Get(name)
	return v
}

// threadOf is the process number of a CPU's note: gdb makes it a thread of that number,
// so it must differ from the others. What has none gets one that no task of Linux can
// have (Linux include/linux/threads.h:PID_MAX_LIMIT).
func (c *Core) threadOf(cpu int) uint32 {
	const limit = 4 << 20
	if cpu < len(c.Tasks) {
		if pid := c.Tasks[cpu]; pid > 0 && pid < limit && slices.Index(c.Tasks, pid) == cpu {
			return uint32(pid)
		}
	}
	return uint32(limit + 1 + cpu)
}

// statusNote is a struct elf_prstatus.
func statusNote(r *arch.Registers, pid uint32) []byte {
	b := make([]byte, statusSize)
	const pidAt = 32
	binary.LittleEndian.PutUint32(b[pidAt:], pid)
	for i, name := range statusRegs {
		if name != "" {
			binary.LittleEndian.PutUint64(b[statusRegsAt+8*i:], value(r, name))
		}
	}
	return b
}

// qemuNote is a struct QEMUCPUState with the kernel's GS base.
func qemuNote(r *arch.Registers) []byte {
	le := binary.LittleEndian
	b := make([]byte, qemuKernelGSAt+8)
	le.PutUint32(b, qemuVersion)
	le.PutUint32(b[4:], uint32(len(b)))
	for i, name := range qemuGeneral {
		le.PutUint64(b[qemuGeneralAt+8*i:], value(r, name))
	}
	for i, s := range qemuSegments {
		p := b[qemuSegmentsAt+qemuSegment*i:]
		if s.selector != "" {
			le.PutUint32(p, uint32(value(r, s.selector)))
		}
		if s.limit != "" {
			le.PutUint32(p[4:], uint32(value(r, s.limit)))
		}
		le.PutUint64(p[segmentBase:], value(r, s.base))
	}
	if efer := value(r, "efer"); efer&eferLong == eferLong {
		le.PutUint32(b[qemuSegmentsAt+segmentFlags:], flagLong)
	}
	for i, name := range []string{"cr0", "", "cr2", "cr3", "cr4"} {
		if name != "" {
			le.PutUint64(b[qemuControlAt+8*i:], value(r, name))
		}
	}
	le.PutUint64(b[qemuKernelGSAt:], value(r, "k_gs_base"))
	return b
}
