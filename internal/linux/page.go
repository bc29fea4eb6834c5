package linux

import (
	"fmt"

	"nestdbg/internal/mem"
)

// pageLayout is where the kernel keeps the struct page of a physical page.
type pageLayout struct {
	structSize uint64
	refcount   uint64 // offset of the reference count, an int
	head       uint64 // offset of compound_head, or compound_info
}

// PageFree asks the kernel's page allocator about the page at a physical address
// of its machine: how many references the page has, and whether it is free, which
// is when there are none. It tells whether what is found in a page is alive or
// left over. ErrNotFound if the kernel does not manage the page.
func (k *Kernel) PageFree(pa mem.Phys) (free bool, refcount int, err error) {
	l, err := k.pageLayout()
	if err != nil {
		return false, 0, fmt.Errorf("page %#x: %w", pa, err)
	}
	at, err := k.structPage(l, pa)
	if err != nil {
		return false, 0, fmt.Errorf("page %#x: %w", pa, err)
	}
	head, err := mem.VirtUint64(k.space, at+mem.Virt(l.head))
	if err != nil {
		return false, 0, fmt.Errorf("struct page of %#x: %w", pa, err)
	}
	n, err := mem.VirtUint32(k.space, compoundHead(at, head)+mem.Virt(l.refcount))
	if err != nil {
		return false, 0, fmt.Errorf("struct page of %#x: %w", pa, err)
	}
	return int32(n) == 0, int(int32(n)), nil
}

// compoundHead is the struct page that counts the references of the page at: the
// first of the larger page it is in, if it is in one. Then bit 0 of info is set, and
// the rest is the address of the first (Linux 6.1 include/linux/page-flags.h:
// _compound_head), or a mask that makes it from that of any (Linux 7.2, by its
// member compound_info). A mask is larger than any address before it.
func compoundHead(at mem.Virt, info uint64) mem.Virt {
	switch head := mem.Virt(info &^ 1); {
	case info&1 == 0:
		return at
	case head <= at:
		return head
	default:
		return at & head
	}
}

// pageLayout takes the offsets from VMCOREINFO, else from the types.
func (k *Kernel) pageLayout() (pageLayout, error) {
	size, ok1 := k.VMCoreInfo.SizeOf("page")
	refcount, ok2 := k.VMCoreInfo.Offset("page._refcount")
	head, ok3 := k.VMCoreInfo.Offset("page.compound_head")
	if !ok3 {
		head, ok3 = k.VMCoreInfo.Offset("page.compound_info")
	}
	if !ok1 || !ok2 || !ok3 {
		t, err := k.Types()
		if err != nil {
			return pageLayout{}, err
		}
		s := newShape(t, "page")
		n, err := t.SizeOf("page")
		size, refcount, head = uint64(n), uint64(s.need("_refcount").Offset), uint64(s.need("compound_info", "compound_head").Offset)
		if err != nil || s.err != nil {
			return pageLayout{}, fmt.Errorf("layout of struct page: %w", ErrUnsupported)
		}
	}
	if size == 0 || size > pageSize || refcount > size-4 || head > size-8 {
		return pageLayout{}, fmt.Errorf("struct page of %d bytes: %w", size, ErrCorrupt)
	}
	return pageLayout{size, refcount, head}, nil
}

// structPage is the address of the struct page of a physical address: through the
// memory sections, or where one array describes all memory, in that.
func (k *Kernel) structPage(l pageLayout, pa mem.Phys) (mem.Virt, error) {
	pfn := uint64(pa) / pageSize
	if base, err := k.sectionMap(pa); err == nil {
		return base + mem.Virt(pfn*l.structSize), nil
	} else if _, ok := k.VMCoreInfo.Symbol("mem_section"); ok {
		return 0, err
	}
	at, ok := k.lookupCore("vmemmap_base")
	if !ok {
		return 0, fmt.Errorf("neither mem_section nor vmemmap_base: %w", ErrUnsupported)
	}
	base, err := mem.VirtUint64(k.space, at)
	if err != nil {
		return 0, fmt.Errorf("read vmemmap_base: %w", err)
	}
	return mem.Virt(base + pfn*l.structSize), nil
}

// sectionMap is what the section of a physical address has stored as its array of
// struct page: biased, so that the page number is the index (Linux 6.1
// mm/sparse.c:sparse_encode_mem_map). VMCOREINFO lists the table of roots itself
// as mem_section, whether that is an array or a pointer to one (Linux 6.1
// kernel/crash_core.c, VMCOREINFO_SYMBOL_ARRAY).
func (k *Kernel) sectionMap(pa mem.Phys) (mem.Virt, error) {
	const (
		hasMemMap = 1 << 1 // SECTION_HAS_MEM_MAP
		flags     = 1<<6 - 1
	)
	roots, ok1 := k.VMCoreInfo.Symbol("mem_section")
	length, ok2 := k.VMCoreInfo.Length("mem_section")
	size, ok3 := k.VMCoreInfo.SizeOf("mem_section")
	off, ok4 := k.VMCoreInfo.Offset("mem_section.section_mem_map")
	shift, ok5 := k.VMCoreInfo.Number("SECTION_SIZE_BITS")
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 {
		return 0, fmt.Errorf("memory sections in VMCOREINFO: %w", ErrNotFound)
	}
	if size == 0 || size > pageSize || off > size-8 || shift < 12 || shift > 62 {
		return 0, fmt.Errorf("memory sections in VMCOREINFO: %w", ErrCorrupt)
	}
	nr, perRoot := uint64(pa)>>shift, pageSize/size
	if nr/perRoot >= length {
		return 0, fmt.Errorf("beyond the last memory section: %w", ErrNotFound)
	}
	root, err := mem.VirtUint64(k.space, roots+mem.Virt(8*(nr/perRoot)))
	if err != nil {
		return 0, fmt.Errorf("memory section %d: %w", nr, err)
	}
	if root == 0 {
		return 0, fmt.Errorf("no memory section %d: %w", nr, ErrNotFound)
	}
	coded, err := mem.VirtUint64(k.space, mem.Virt(root+nr%perRoot*size+off))
	if err != nil {
		return 0, fmt.Errorf("memory section %d: %w", nr, err)
	}
	if coded&hasMemMap == 0 {
		return 0, fmt.Errorf("no pages in memory section %d: %w", nr, ErrNotFound)
	}
	return mem.Virt(coded &^ flags), nil
}
