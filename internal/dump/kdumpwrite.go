package dump

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
)

// KdumpOptions say how a kdump-compressed file is written.
type KdumpOptions struct {
	Method  Method
	Workers int // that compress at the same time, at least one
	// Left are pages that are left out, ascending, of whole pages; Level says which
	// kinds those are, and NoZero that pages of zeros are left out too.
	Left   []mem.Range
	Level  DumpLevel
	NoZero bool
	// Progress is told bytes done and in all, from several goroutines; nil: nobody asks.
	Progress func(done, all uint64)
}

// Method is how pages are compressed.
type Method uint32

// The methods that are written.
const (
	Zlib Method = pageZlib
	Zstd Method = pageZstd
)

// DumpLevel is makedumpfile's word for what is left out (its man page, "-d").
type DumpLevel uint32

// Parts of a level.
const (
	LevelZero         DumpLevel = 1
	LevelCache        DumpLevel = 2 // without private pages
	LevelCachePrivate DumpLevel = 4
	LevelUser         DumpLevel = 8
	LevelFree         DumpLevel = 16
)

// Written is what became of a file that was written.
type Written struct {
	Size     int64  // of the file, bytes
	Stored   int64  // of it, what is not in a hole
	Zero     uint64 // bytes in pages of zeros, if they were told apart
	Problems []string
}

// window is how many page numbers one worker takes at a time: their bytes fit a
// cache, and what all workers hold is bounded by it.
const window = 256

// kdumpWriter is one file under way. Windows are compressed at the same time, and get
// their places in the file in their order, so that a file is the same every time.
type kdumpWriter struct {
	*Core
	KdumpOptions
	w io.WriterAt

	machine, here []uint64 // a bit per page number: what there is, and what the file has
	table         uint64   // offset of the page descriptors
	zero          uint64   // offset of the page of zeros

	mu     sync.Mutex
	turn   *sync.Cond // on mu: next has moved, or err is set
	next   uint64     // window whose turn it is; guarded by mu
	end    uint64     // of the file so far; guarded by mu
	index  uint64     // of the next descriptor; guarded by mu
	lost   uint64     // bytes that could not be read; guarded by mu
	zeros  uint64     // pages; guarded by mu
	stored int64      // guarded by mu
	done   uint64     // guarded by mu
	all    uint64
	err    error // guarded by mu
}

// WriteKdump writes the machine as a kdump-compressed file that is not flattened, as
// makedumpfile and dump-guest-memory do: version 6, pages of zeros once. Memory that
// cannot be read any more is left out, and told as a problem. Of w nothing but
// WriteAt is used, from several goroutines; what was never written must read as zero.
func (c *Core) WriteKdump(w io.WriterAt, o KdumpOptions) (*Written, error) {
	if c.Arch != arch.X86 {
		return nil, fmt.Errorf("a kdump-compressed file of %s: %w", c.Arch.Name, ErrUnsupported)
	}
	k := &kdumpWriter{Core: c, KdumpOptions: o, w: w}
	k.turn = sync.NewCond(&k.mu)
	if err := k.plan(); err != nil {
		return nil, err
	}
	var group sync.WaitGroup
	var claim windows
	for range max(o.Workers, 1) {
		group.Go(func() { k.work(&claim) })
	}
	group.Wait()
	if k.err != nil {
		return nil, k.err
	}
	if err := k.writeHead(); err != nil {
		return nil, err
	}
	out := &Written{Size: int64(k.end), Stored: k.stored + int64(k.table), Zero: k.zeros * pageSize, Problems: c.unknownRegisters()}
	if k.lost > 0 {
		out.Problems = append(out.Problems, fmt.Sprintf("%d bytes of memory could not be read when it was their turn, and are not in the file", k.lost))
	}
	return out, nil
}

// windows hands out windows in their order.
type windows struct {
	mu   sync.Mutex
	next uint64 // guarded by mu
}

func (c *windows) take() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	return c.next - 1
}

// plan says which pages there are and where the parts of the file begin.
func (k *kdumpWriter) plan() error {
	if len(k.Ranges) == 0 {
		return errNothing
	}
	pages := k.pages()
	if pages > 8*maxBitmap {
		return fmt.Errorf("memory up to %#x is too far for a kdump-compressed file: %w", pages*pageSize, ErrUnsupported)
	}
	k.machine, k.here = make([]uint64, (pages+63)/64), make([]uint64, (pages+63)/64)
	setPages(k.machine, k.Ranges, true)
	setPages(k.here, k.Ranges, true)
	setPages(k.here, k.Left, false)
	descriptors := uint64(0)
	for _, w := range k.here {
		descriptors += uint64(bits.OnesCount64(w))
	}
	if descriptors == 0 {
		return errors.New("all memory is left out")
	}
	k.all = descriptors * pageSize
	k.table = k.bitmapsAt() + 2*k.bitmapSize()
	k.zero = (k.table + descriptors*pageDescriptor + pageSize - 1) &^ (pageSize - 1)
	k.end = k.zero + pageSize
	return nil
}

// pages is one more than the highest page number.
func (c *Core) pages() uint64 { return c.Ranges[len(c.Ranges)-1].Last/pageSize + 1 }

// setPages sets or clears the bits of pages.
func setPages(set []uint64, ranges []mem.Range, on bool) {
	for _, r := range ranges {
		for n := r.First / pageSize; n <= r.Last/pageSize && n/64 < uint64(len(set)); n++ {
			if on {
				set[n/64] |= 1 << (n % 64)
			} else {
				set[n/64] &^= 1 << (n % 64)
			}
		}
	}
}

// subBlocks is how many blocks the sub header and what it leads to have.
func (k *kdumpWriter) subBlocks() uint64 {
	return (subHeader + uint64(len(k.notes())+len(k.VMCoreInfo)) + pageSize - 1) / pageSize
}

func (k *kdumpWriter) bitmapsAt() uint64 { return (1 + k.subBlocks()) * pageSize }

// bitmapSize is that of one bitmap, of whole blocks.
func (k *kdumpWriter) bitmapSize() uint64 {
	return (uint64(8*len(k.here)) + pageSize - 1) &^ (pageSize - 1)
}

// writeHead writes everything before the descriptors: the last thing, since only then
// it is known which pages are there.
func (k *kdumpWriter) writeHead() error {
	b := make([]byte, k.table)
	le := binary.LittleEndian
	notes, maps, size := k.notes(), k.bitmapsAt(), k.bitmapSize()
	copy(b, kdumpSignatures[0])
	le.PutUint32(b[atVersion:], versionMaxPages)
	for i, s := range []string{"Linux", "", k.Release, k.Version, "x86_64"} { // utsname; drgn wants all but the second
		copy(b[atSystem+nameSize*i:atSystem+nameSize*(i+1)-1], s)
	}
	le.PutUint32(b[atStatus:], uint32(k.Method))
	le.PutUint32(b[atBlockSize:], pageSize)
	le.PutUint32(b[atSubSize:], uint32(k.subBlocks()))
	le.PutUint32(b[atBitmapSize:], uint32(2*size/pageSize))
	le.PutUint32(b[atMaxPage:], uint32(min(k.pages(), 1<<32-1)))
	le.PutUint32(b[atCPUs:], uint32(len(k.CPUs)))
	sub := b[pageSize:]
	le.PutUint64(sub[atPhysBase:], k.PhysBase)
	level := k.Level
	if k.NoZero {
		level |= LevelZero
	}
	le.PutUint32(sub[atLevel:], uint32(level))
	at := uint64(pageSize + subHeader)
	put := func(field int, data []byte) {
		if len(data) > 0 {
			le.PutUint64(sub[field:], at)
			le.PutUint64(sub[field+8:], uint64(len(data)))
			at += uint64(copy(b[at:], data))
		}
	}
	put(atNotes, notes)
	// crash and drgn find the text by itself as well as in the notes.
	put(atVMCoreInfo, k.VMCoreInfo)
	le.PutUint64(sub[atMaxPage64:], k.pages())
	for i := range k.here {
		le.PutUint64(b[maps+8*uint64(i):], k.machine[i])
		le.PutUint64(b[maps+size+8*uint64(i):], k.here[i])
	}
	_, err := k.w.WriteAt(b, 0)
	return err
}

// work compresses windows until there are no more, or one failed.
func (k *kdumpWriter) work(claim *windows) {
	p, err := newPacker(k.Method)
	if err != nil {
		k.fail(err)
		return
	}
	buf := make([]byte, window*pageSize)
	for {
		i := claim.take()
		if i >= (k.pages()+window-1)/window {
			return
		}
		if err := k.compress(i, p, buf); err != nil {
			k.fail(err)
		}
		if !k.commit(i, p) {
			return
		}
	}
}

// fail makes everybody stop.
func (k *kdumpWriter) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err == nil {
		k.err = err
	}
	k.turn.Broadcast()
}

// compress reads the pages of a window, and packs them.
func (k *kdumpWriter) compress(i uint64, p *packer, buf []byte) (err error) {
	defer mem.Catch(&err)()
	p.reset()
	end := min((i+1)*window, k.pages())
	for n := i * window; n < end; {
		if k.here[n/64]>>(n%64)&1 == 0 {
			n++
			continue
		}
		first := n
		for n < end && k.here[n/64]>>(n%64)&1 == 1 {
			n++
		}
		b := buf[:(n-first)*pageSize]
		lost := k.ReadPages(b, mem.Phys(first*pageSize))
		for page := first; page < n; page++ {
			at := (page - first) * pageSize
			if _, gone := lost[at]; gone {
				p.lost = append(p.lost, page)
			} else if err := p.add(page, b[at:at+pageSize], k.NoZero); err != nil {
				return err
			}
		}
	}
	return nil
}

// commit gives what was packed its places when all windows before have theirs, and
// writes it. false: it is of no use to go on.
func (k *kdumpWriter) commit(i uint64, p *packer) bool {
	k.mu.Lock()
	for k.next != i && k.err == nil {
		k.turn.Wait()
	}
	if k.err != nil {
		k.mu.Unlock()
		return false
	}
	data, table := k.end, k.table+k.index*pageDescriptor
	k.end += uint64(len(p.data))
	k.index += uint64(len(p.pages))
	k.lost += uint64(len(p.lost)) * pageSize
	k.zeros += p.zeros
	k.stored += int64(len(p.data) + len(p.pages)*pageDescriptor)
	for _, n := range p.left {
		k.here[n/64] &^= 1 << (n % 64)
	}
	// What was lost is no page of the machine to a reader: it would take one that is
	// there and not in the file for one that was left out, and that may mean zeros.
	for _, n := range p.lost {
		k.here[n/64] &^= 1 << (n % 64)
		k.machine[n/64] &^= 1 << (n % 64)
	}
	k.done += uint64(len(p.pages)+len(p.lost)+len(p.left)) * pageSize
	done := k.done
	k.next++
	k.turn.Broadcast()
	k.mu.Unlock()
	if k.Progress != nil && done > 0 {
		k.Progress(done, k.all)
	}
	if len(p.pages) == 0 {
		return true
	}
	_, err := k.w.WriteAt(p.descriptors(data, k.zero), int64(table))
	if err == nil && len(p.data) > 0 {
		_, err = k.w.WriteAt(p.data, int64(data))
	}
	if err != nil {
		k.fail(err)
	}
	return err == nil
}
