package qemu

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"nestdbg/internal/mem"
)

// RAM is the physical memory of QEMU's machine, read where QEMU itself has it. It
// is a mem.PhysReader, mem.PhysSlicer and mem.PhysRanger, safe for concurrent use.
//
// Memory behind a shared file or memfd is mapped, so that reading it is a copy and
// SlicePhys gives it out as it is. Private memory is read from QEMU's process, or
// written by QEMU if that is not allowed, and has no slices. Reading a hole of a mapped file makes the kernel fill it: a scan
// should keep to PopulatedRanges.
//
// The mapping ends with Machine.Close; nothing may be read after that. If somebody
// cuts the file short while it is mapped, a read of the lost part is a SIGBUS, for
// QEMU as for us.
type RAM struct {
	image  *mem.Image   // what is mapped
	remote []remotePart // what is not, ascending
	ranges []mem.Range  // all of it, ascending
	parts  []*ramPart
	life   life
}

// ramPart is where the bytes of one block are.
type ramPart struct {
	name   string
	size   uint64
	source string
	path   string       // of the file, "" if there is none
	file   *os.File     // nil if not mapped
	data   []byte       // the whole block, nil if not mapped
	base   uint64       // mapped: offset of the block in the file; else its address in QEMU
	saved  *savedMemory // if not nil, it is read so
	err    error        // why it cannot be read at all
	ranges []blockRange
}

// remotePart is a range of physical memory in QEMU's address space.
type remotePart struct {
	span  mem.Range
	addr  uint64       // of span.First
	saved *savedMemory // if not nil, it is read so
	err   error        // why it cannot be read at all
}

// newRAM takes over the parts' files and mappings.
func newRAM(parts []*ramPart, l life) (*RAM, error) {
	r := &RAM{parts: parts, life: l}
	var segments []mem.Segment
	for _, p := range parts {
		for _, b := range p.ranges {
			r.ranges = append(r.ranges, b.span)
			if p.data == nil {
				r.remote = append(r.remote, remotePart{b.span, p.base + b.offset, p.saved, p.err})
				continue
			}
			segments = append(segments, mem.Segment{
				Base:       mem.Phys(b.span.First),
				Data:       p.data[b.offset : b.offset+b.span.Size()],
				FileOffset: p.base + b.offset,
			})
		}
	}
	byFirst := func(a, b mem.Range) int { return cmp.Compare(a.First, b.First) }
	slices.SortFunc(r.ranges, byFirst)
	slices.SortFunc(r.remote, func(a, b remotePart) int { return byFirst(a.span, b.span) })
	var err error
	r.image, err = mem.NewImage(segments)
	return r, err
}

// close unmaps. Preconditions: nobody reads any more.
func (r *RAM) close() {
	for _, p := range r.parts {
		p.close()
	}
}

func (p *ramPart) close() {
	if p.data != nil {
		mem.Unmapped(p.data)
		unix.Munmap(p.data)
		p.data = nil
	}
	if p.file != nil {
		p.file.Close()
		p.file = nil
	}
	if p.saved != nil {
		p.saved.close()
	}
}

// Source says in words where the bytes come from.
func (r *RAM) Source() string {
	var out []string
	for _, p := range r.parts {
		if !slices.Contains(out, p.source) {
			out = append(out, p.source)
		}
	}
	return strings.Join(out, ", ")
}

// File is the path at which other programs can open the memory, or "" if there is
// none or more than one.
func (r *RAM) File() string {
	if len(r.parts) != 1 {
		return ""
	}
	return r.parts[0].path
}

// FileOffset tells where the byte at a lies in File. ok is false if there is no
// such file or no RAM at a.
func (r *RAM) FileOffset(a mem.Phys) (offset uint64, ok bool) {
	if r.File() == "" {
		return 0, false
	}
	return r.image.FileOffset(a)
}

// FileAt is the file that has all bytes of a range one after the other, and where the first
// of them is; nil if none does.
func (r *RAM) FileAt(span mem.Range) (f *os.File, offset uint64) {
	for _, p := range r.parts {
		for _, b := range p.ranges {
			if p.file != nil && b.span.Contains(span.First) && b.span.Contains(span.Last) {
				return p.file, p.base + b.offset + (span.First - b.span.First)
			}
		}
	}
	return nil, 0
}

// Size is the size of the machine's RAM in bytes, with what is hidden behind
// firmware and devices.
func (r *RAM) Size() uint64 {
	var n uint64
	for _, p := range r.parts {
		n += p.size
	}
	return n
}

// PhysRanges implements mem.PhysRanger.
func (r *RAM) PhysRanges() []mem.Range { return slices.Clone(r.ranges) }

// SlicePhys implements mem.PhysSlicer.
func (r *RAM) SlicePhys(a mem.Phys, max int) []byte { return r.image.SlicePhys(a, max) }

// ReadPhys implements mem.PhysReader. When QEMU has ended and its memory with it,
// the error is ErrGone and no memory fault.
func (r *RAM) ReadPhys(p []byte, a mem.Phys) (int, error) {
	n := 0
	for n < len(p) {
		at := a + mem.Phys(n)
		got := copy(p[n:], r.image.SlicePhys(at, len(p)-n))
		if got == 0 {
			var err error
			if got, err = r.readRemote(p[n:], at); err != nil {
				return n + got, err
			}
		}
		n += got
	}
	return n, nil
}

// throughMonitor reports whether reads ask QEMU's monitor.
func (r *RAM) throughMonitor() bool {
	return slices.ContainsFunc(r.parts, func(p *ramPart) bool { return p.saved != nil })
}

// readRemote reads from QEMU's process as much as is contiguous there.
func (r *RAM) readRemote(p []byte, a mem.Phys) (int, error) {
	fault := &mem.FaultError{Space: "physical memory", Addr: uint64(a), Err: mem.ErrNoRAM}
	i, found := slices.BinarySearchFunc(r.remote, uint64(a), func(q remotePart, a uint64) int {
		if q.span.Contains(a) {
			return 0
		}
		return cmp.Compare(q.span.First, a)
	})
	if !found {
		return 0, fault
	}
	part := r.remote[i]
	if part.err != nil {
		return 0, part.err
	}
	if left := part.span.Last - uint64(a); left < uint64(len(p)) {
		p = p[:left+1]
	}
	if part.saved != nil {
		return part.saved.read(p, a)
	}
	n, err := readProcess(r.life.pid, p, part.addr+(uint64(a)-part.span.First))
	if err == nil && n < len(p) {
		err = unix.EFAULT
	}
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, unix.EFAULT) && !r.life.gone(0):
		fault.Addr += uint64(n)
		fault.Err = fmt.Errorf("not mapped in QEMU: %w", err)
		return n, fault
	case errors.Is(err, unix.ESRCH), r.life.gone(0):
		return n, fmt.Errorf("%w: its memory was private and went with it", ErrGone)
	}
	return n, fmt.Errorf("process_vm_readv of QEMU %d: %w", r.life.pid, err)
}

// readProcess reads the memory of another process; n may be less than len(p).
func readProcess(pid int, p []byte, addr uint64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	local := []unix.Iovec{{Base: &p[0], Len: uint64(len(p))}}
	remote := []unix.RemoteIovec{{Base: uintptr(addr), Len: len(p)}}
	n, err := unix.ProcessVMReadv(pid, local, remote, 0)
	return max(n, 0), err
}

// maxExtents bounds the pieces of a sparse file that PopulatedRanges tells apart.
const maxExtents = 1 << 20

// PopulatedRanges returns the physical addresses whose bytes were ever written, in
// ascending order: what a scan has to look at. Where that cannot be told, all of
// the RAM counts. It is as of now: a running machine goes on writing.
func (r *RAM) PopulatedRanges() []mem.Range {
	var out []mem.Range
	for _, p := range r.parts {
		for _, b := range p.ranges {
			out = append(out, p.populated(b)...)
		}
	}
	slices.SortFunc(out, func(a, b mem.Range) int { return cmp.Compare(a.First, b.First) })
	return out
}

// populated returns the parts of b where the file has data (lseek(2), SEEK_DATA).
func (p *ramPart) populated(b blockRange) []mem.Range {
	all := []mem.Range{b.span}
	if p.file == nil {
		return all
	}
	fd := int(p.file.Fd())
	first := p.base + b.offset
	end := first + b.span.Size()
	var out []mem.Range
	for at := first; at < end; {
		data, err := unix.Seek(fd, int64(at), unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && uint64(data) >= end {
			break // only a hole is left
		}
		if err != nil || len(out) == maxExtents {
			return all
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil || hole <= data {
			return all
		}
		stop := min(uint64(hole), end)
		out = append(out, mem.Range{
			First: b.span.First + (uint64(data) - first),
			Last:  b.span.First + (stop - first) - 1,
		})
		at = stop
	}
	return out
}
