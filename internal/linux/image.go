package linux

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"nestdbg/internal/mem"
)

// image is a kernel image in memory: size bytes from va on that lie at pa. The
// kernel loads itself in one piece, so one physical range serves, also for the
// parts it unmapped after boot.
type image struct {
	phys mem.PhysReader
	va   mem.Virt
	pa   mem.Phys
	size uint64

	bannerAt uint64 // offset of the banner, once it was found
}

// imageRunsMax bounds how many places are tried that an image may be at. A sound
// kernel has one.
const imageRunsMax = 64

// locateImage finds the image that an address space maps: from the first step of
// the image area that is mapped, all that is mapped in line with it. Holes are normal:
// init code is unmapped after boot. Of several such it is the one with the most steps:
// an entry that was overwritten maps one anywhere.
func locateImage(l *layout, phys mem.PhysReader, space AddressSpace) (image, error) {
	type run struct {
		image
		steps int
	}
	var runs []run
	for va := l.imageArea.First; va <= l.imageArea.Last; va += l.imageStep {
		pa, _, err := space.Translate(va)
		if err != nil {
			continue
		}
		i := slices.IndexFunc(runs, func(r run) bool {
			off := va - uint64(r.va)
			return off < l.imageMax && uint64(pa-r.pa) == off
		})
		switch {
		case i >= 0:
			runs[i].size = va - uint64(runs[i].va) + l.imageStep
			runs[i].steps++
		case uint64(pa)%l.imageStep == 0 && len(runs) < imageRunsMax:
			runs = append(runs, run{image{phys: phys, va: mem.Virt(va), pa: pa, size: l.imageStep}, 1})
		}
	}
	if len(runs) == 0 {
		return image{}, fmt.Errorf("no kernel image mapped in %s: %w", l.imageArea, ErrNotFound)
	}
	// The first of those with the most.
	return slices.MaxFunc(runs, func(a, b run) int { return cmp.Compare(a.steps, b.steps) }).image, nil
}

// physBase is x86's phys_base: the physical address minus its offset in the kernel mapping.
func (im *image) physBase(l *layout) int64 { return int64(uint64(im.pa) - (uint64(im.va) - l.mapBase)) }

// contains reports whether a virtual address is in the image.
func (im *image) contains(a uint64) bool { return a-uint64(im.va) < im.size }

// windowSize is how much of an image is looked at in one piece, bytes: little enough
// for a copy to stay in the processor's caches.
const windowSize = 256 << 10

// window returns the readable bytes at an offset of the image, at most n, without
// a copy where the memory allows it. It is short at the end of the image and
// before a page that cannot be read. Copies are in buf, which is made when needed.
func (im *image) window(off uint64, n int, buf *[]byte) []byte {
	if off >= im.size {
		return nil
	}
	n = int(min(uint64(n), im.size-off))
	if s, ok := im.phys.(mem.PhysSlicer); ok {
		if b := s.SlicePhys(im.pa+mem.Phys(off), n); len(b) == n {
			return b
		}
	}
	if len(*buf) < n {
		*buf = make([]byte, n)
	}
	got, _ := im.phys.ReadPhys((*buf)[:n], im.pa+mem.Phys(off))
	return (*buf)[:got]
}

// windows calls visit with consecutive windows that overlap by overlap bytes, until
// it returns true. Pages that cannot be read are skipped. It begins behind the first
// third of the image, which is code, and comes to that last: what is searched is data.
func (im *image) windows(overlap int, visit func(off uint64, b []byte) bool) {
	data := im.size / 3 &^ (windowSize - 1)
	if !im.windowsIn(data, im.size, overlap, visit) {
		im.windowsIn(0, data, overlap, visit)
	}
}

// windowsIn is windows for those that begin from an offset up to another.
func (im *image) windowsIn(off, end uint64, overlap int, visit func(off uint64, b []byte) bool) (done bool) {
	var buf []byte
	for off < end {
		b := im.window(off, windowSize+overlap, &buf)
		if len(b) > 0 && visit(off, b) {
			return true
		}
		switch {
		case len(b) >= windowSize:
			off += windowSize
		default: // a hole or the end
			off = (off+uint64(len(b)))&^(pageSize-1) + pageSize
		}
	}
	return false
}

var bannerStart = []byte("Linux version ")

// bannerMax bounds a banner, in bytes; real ones are under 300.
const bannerMax = 1024

// banner finds the kernel's banner: the copy in read-only data, which unlike the
// one in the log ends with a newline and NUL (Linux 6.1 init/version.c). Since 6.2
// there can be two: what was linked first, before the build had a number, is weak
// and stays behind (Linux 6.12 init/version.c, init/version-timestamp.c).
func (im *image) banner() (string, error) {
	var found string
	im.windows(bannerMax, func(off uint64, b []byte) bool {
		end := off + uint64(len(b))
		for {
			i := bytes.Index(b, bannerStart)
			if i < 0 {
				return false
			}
			b = b[i:]
			if s, ok := parseBanner(b); ok && (found == "" || numbered(s)) {
				found, im.bannerAt = s, end-uint64(len(b))
				if numbered(s) {
					return true
				}
			}
			b = b[len(bannerStart):]
		}
	})
	if found == "" {
		return "", fmt.Errorf("no Linux banner in the image at %#x: %w", im.va, ErrNotFound)
	}
	return found, nil
}

// numbered reports whether a banner has the number of the build: "#1 SMP".
func numbered(banner string) bool {
	_, version, ok := strings.Cut(banner, ") #")
	return ok && version != "" && '0' <= version[0] && version[0] <= '9'
}

// parseBanner accepts "Linux version DIGIT...\n\0" of printable bytes.
func parseBanner(b []byte) (string, bool) {
	line, _, ok := bytes.Cut(b[:min(len(b), bannerMax)], []byte("\n\x00"))
	if !ok || len(line) <= len(bannerStart) || !printable(line) {
		return "", false
	}
	c := line[len(bannerStart)]
	return string(line), '0' <= c && c <= '9'
}

// releaseOf is the release in a banner: its third word.
func releaseOf(banner string) string {
	release, _, _ := strings.Cut(strings.TrimPrefix(banner, string(bannerStart)), " ")
	return release
}

// vmcoreinfo finds VMCOREINFO through the kernel's own pointer to it, the variable
// vmcoreinfo_data, without knowing where that is: variables stand at the end of
// the image, so every pointer to a page is followed from there backwards. The
// method is ours; it costs a few milliseconds where the search of all memory
// costs a second. Before Linux 4.13 the text itself is in the image.
func (im *image) vmcoreinfo(l *layout, space AddressSpace) (VMCoreInfo, error) {
	var buf []byte
	seen := pointerCache{}
	last := (im.size - 1) / windowSize
	for i := range last + 1 {
		base := (last - i) * windowSize
		for off := base; off < min(base+windowSize, im.size); {
			b := im.window(off, int(base+windowSize-off), &buf)
			if info := vmcoreinfoFrom(b, l, im, space, &seen); info != nil {
				return info, nil
			}
			off = (off+uint64(len(b)))&^(pageSize-1) + pageSize
		}
	}
	return nil, &MissingError{What: "VMCOREINFO", Option: optionInfo}
}

// pointerCache remembers which pages were looked at, a few thousand of the latest.
type pointerCache [4096]uint64

// add reports whether p is new, as far as it is remembered.
func (c *pointerCache) add(p uint64) bool {
	slot := &c[p>>12*0x9e3779b97f4a7c15>>52]
	old := *slot
	*slot = p
	return old != p
}

// vmcoreinfoFrom looks for VMCOREINFO in a window of the image: at the start of
// its pages, and behind its words that are pointers to a page outside the image.
func vmcoreinfoFrom(b []byte, l *layout, im *image, space AddressSpace, seen *pointerCache) VMCoreInfo {
	for i := 0; i+8 <= len(b); i += 8 {
		w := binary.LittleEndian.Uint64(b[i:])
		if w%pageSize != 0 {
			if i%pageSize == 0 {
				if text := vmcoreinfoIn(b[i:]); text != nil {
					if info, err := ParseVMCoreInfo(text); err == nil {
						return info
					}
				}
			}
			continue
		}
		if w < l.kernelMin || im.contains(w) || !seen.add(w) {
			continue
		}
		if info := vmcoreinfoAt(space, im.phys, w); info != nil {
			return info
		}
	}
	return nil
}

// vmcoreinfoAt reads VMCOREINFO at a virtual address, nil if it is not there.
func vmcoreinfoAt(space AddressSpace, phys mem.PhysReader, va uint64) VMCoreInfo {
	pa, contiguous, err := space.Translate(va)
	if err != nil || contiguous < pageSize {
		return nil
	}
	return vmcoreinfoInPage(phys, pa)
}

// vmcoreinfoInPage reads VMCOREINFO in a physical page, nil if it is not there.
func vmcoreinfoInPage(phys mem.PhysReader, pa mem.Phys) VMCoreInfo {
	if head := head(phys, pa); vmcoreinfoIn(head) == nil {
		return nil
	}
	page := make([]byte, pageSize)
	if _, err := phys.ReadPhys(page, pa); err != nil {
		return nil
	}
	info, err := ParseVMCoreInfo(vmcoreinfoIn(page))
	if err != nil {
		return nil
	}
	return info
}

// headSize is enough to recognise either form of VMCOREINFO.
const headSize = noteText + 10

// head returns the first bytes of a page, nil if it cannot be read.
func head(phys mem.PhysReader, pa mem.Phys) []byte {
	if s, ok := phys.(mem.PhysSlicer); ok {
		if b := s.SlicePhys(pa, headSize); len(b) == headSize {
			return b
		}
	}
	b := make([]byte, headSize)
	if _, err := phys.ReadPhys(b, pa); err != nil {
		return nil
	}
	return b
}
