package linux

import (
	"encoding/binary"
	"errors"
	"fmt"

	"nestdbg/internal/mem"
)

// PageUse is what the kernel has a page for, as far as a dump may do without it.
type PageUse uint8

// The uses. What is not known for certain is PageKernel.
const (
	PageKernel PageUse = iota
	PageFree           // in the lists of the page allocator
	PageUser           // anonymous memory of processes
	PageCache          // of files, without what the file system keeps beside them
)

// useLayout is where struct page says what a page is for, as VMCOREINFO has it for
// this very purpose (Linux 6.1 kernel/crash_core.c; Documentation/admin-guide/kdump).
type useLayout struct {
	pageLayout
	flags, mapping, mapcount, private uint64 // offsets
	buddy                             uint32 // mapcount of a free page
	lru, hasPrivate                   uint   // bits of flags
	slab                              uint64 // mask of flags, 0: such pages have a type
	orders                            uint64 // sizes of free blocks
}

// Bits of page.mapping (Linux 6.1 include/linux/page-flags.h: PAGE_MAPPING_ANON).
const mappingAnon = 1

// maxOrders bounds the orders of free blocks; kernels have 11 to 14.
const maxOrders = 19

func (k *Kernel) useLayout() (l useLayout, err error) {
	if k.VMCoreInfo == nil {
		return l, fmt.Errorf("the kernel has no VMCOREINFO: %w", ErrUnsupported)
	}
	if l.pageLayout, err = k.pageLayout(); err != nil {
		return l, err
	}
	for name, to := range map[string]*uint64{"flags": &l.flags, "mapping": &l.mapping, "_mapcount": &l.mapcount, "private": &l.private} {
		v, ok := k.VMCoreInfo.Offset("page." + name)
		if !ok || v > l.structSize-8 {
			return l, fmt.Errorf("VMCOREINFO has no OFFSET(page.%s): %w", name, ErrUnsupported)
		}
		*to = v
	}
	var ok bool
	if l.orders, ok = k.VMCoreInfo.Length("zone.free_area"); !ok || l.orders > maxOrders {
		return l, fmt.Errorf("VMCOREINFO has no LENGTH(zone.free_area): %w", ErrUnsupported)
	}
	number := func(name string, limit int64) (v int64) {
		v, ok := k.VMCoreInfo.Number(name)
		if (!ok || limit > 0 && (v < 0 || v >= limit)) && err == nil {
			err = fmt.Errorf("VMCOREINFO has no NUMBER(%s): %w", name, ErrUnsupported)
		}
		return v
	}
	l.buddy = uint32(number("PAGE_BUDDY_MAPCOUNT_VALUE", 0))
	l.lru, l.hasPrivate = uint(number("PG_lru", 64)), uint(number("PG_private", 64))
	// Slab pages have a flag, or since Linux 6.10 a type, which stands where others
	// count how often they are mapped.
	if _, typed := k.VMCoreInfo.Number("PAGE_SLAB_MAPCOUNT_VALUE"); !typed {
		l.slab = 1 << uint(number("PG_slab", 64))
	}
	return l, err
}

// useWalk goes through the struct pages of ascending page numbers.
type useWalk struct {
	k *Kernel
	l useLayout
	// free is one more than the last page of the free block that the walk is in.
	free uint64
	// head is the struct page that was looked at last for a page inside of it.
	head    mem.Virt
	headUse PageUse
	unknown uint64 // pages whose struct page cannot be read
}

// PageUses calls visit for runs of pages of ranges, ascending, that the kernel has for
// something else than itself. unknown are pages that the kernel says nothing of.
// ErrUnsupported: it does not say how to read what it says of pages.
func (k *Kernel) PageUses(ranges []mem.Range, visit func(run mem.Range, use PageUse)) (unknown uint64, err error) {
	l, err := k.useLayout()
	if err != nil {
		return 0, fmt.Errorf("what pages are used for: %w", err)
	}
	w := &useWalk{k: k, l: l}
	var run mem.Range
	var use PageUse
	emit := func() {
		if use != PageKernel {
			visit(run, use)
		}
	}
	for _, r := range ranges {
		for at := r.First &^ (pageSize - 1); at <= r.Last; {
			uses, err := w.some(at, min(r.Last, at|(usePages*pageSize-1)))
			if err != nil {
				return 0, err
			}
			for _, u := range uses {
				if u != use || run.Last+1 != at {
					emit()
					run.First, use = at, u
				}
				run.Last = at + pageSize - 1
				at += pageSize
			}
			if at == 0 {
				break
			}
		}
	}
	emit()
	return w.unknown, nil
}

// usePages is how many pages are looked at together: they are in one memory section.
const usePages = 512

// some returns the uses of the pages from first to last.
func (w *useWalk) some(first, last uint64) ([]PageUse, error) {
	n := (last-first)/pageSize + 1
	out := make([]PageUse, n)
	at, err := w.k.structPage(w.l.pageLayout, mem.Phys(first))
	if errors.Is(err, ErrNotFound) {
		w.unknown += n
		return out, nil
	}
	if err != nil {
		return nil, fmt.Errorf("what pages are used for: %w", err)
	}
	b := make([]byte, n*w.l.structSize)
	got, err := w.k.space.ReadVirt(b, at)
	if err != nil {
		w.unknown += n - uint64(got)/w.l.structSize
		out = out[:uint64(got)/w.l.structSize]
	}
	for i := range out {
		size := w.l.structSize
		out[i] = w.use(first/pageSize+uint64(i), at+mem.Virt(uint64(i)*size), b[uint64(i)*size:][:size])
	}
	return out[:n], nil
}

// use says what one page is for.
func (w *useWalk) use(pfn uint64, at mem.Virt, page []byte) PageUse {
	le := binary.LittleEndian
	if pfn < w.free {
		return PageFree
	}
	count := le.Uint32(page[w.l.mapcount:])
	if count == w.l.buddy && le.Uint32(page[w.l.refcount:]) == 0 {
		order := le.Uint64(page[w.l.private:])
		if order >= w.l.orders || pfn&(1<<order-1) != 0 {
			return PageKernel // no free block looks like this
		}
		w.free = pfn + 1<<order
		return PageFree
	}
	if head := compoundHead(at, le.Uint64(page[w.l.head:])); head != at {
		return w.ofHead(head)
	}
	return w.l.single(page)
}

// ofHead is the use of a larger page, by its first.
func (w *useWalk) ofHead(head mem.Virt) PageUse {
	if head != w.head {
		w.head, w.headUse = head, PageKernel
		b := make([]byte, w.l.structSize)
		if _, err := w.k.space.ReadVirt(b, head); err == nil {
			w.headUse = w.l.single(b)
		}
	}
	return w.headUse
}

// single is the use that a struct page tells which is in no larger one, or its first.
func (l *useLayout) single(page []byte) PageUse {
	le := binary.LittleEndian
	flags, mapping := le.Uint64(page[l.flags:]), le.Uint64(page[l.mapping:])
	typed := int32(le.Uint32(page[l.mapcount:])) < -1 // page tables, slabs, ballooned pages
	switch {
	case typed, flags&l.slab != 0, int32(le.Uint32(page[l.refcount:])) <= 0, mapping == 0:
		return PageKernel
	case mapping&mappingAnon != 0:
		return PageUser
	case flags>>l.lru&1 != 0 && flags>>l.hasPrivate&1 == 0:
		return PageCache
	}
	return PageKernel
}
