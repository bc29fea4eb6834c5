package dump

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sort"
	"sync"
	"sync/atomic"

	"nestdbg/internal/mem"
)

// CopyOptions say how memory is copied into a file.
type CopyOptions struct {
	Workers int // that copy at the same time, at least one
	// Progress is told bytes done and in all, from several goroutines; nil: nobody asks.
	Progress func(done, all uint64)
}

// copyWindow is how much of the memory in a file one worker takes at a time. Windows
// are those of the file, so that memory in many small pieces is few of them as well.
const copyWindow = 1 << 20

// copier is one copy of all ranges into a file.
type copier struct {
	*Core
	CopyOptions
	w    io.WriterAt
	base func(i int) uint64 // offset in the file of a range
	ends []uint64           // bytes of memory up to the end of each range

	next   atomic.Uint64 // the window that nobody has begun
	done   atomic.Uint64 // bytes
	stored atomic.Int64  // bytes
	failed atomic.Bool   // err is set

	mu     sync.Mutex
	lost   uint64   // pages that could not be read; guarded by mu
	lowest mem.Phys // address of one of them; guarded by mu
	err    error    // the first; guarded by mu
}

// copyTo writes the ranges' pages that are not zero, each range at its place. What is
// never written must read as zero, which is also what pages that cannot be read become.
func (c *Core) copyTo(ctx context.Context, w io.WriterAt, base func(i int) uint64, o CopyOptions) (*copier, error) {
	if len(c.Ranges) == 0 {
		return nil, errNothing
	}
	k := &copier{Core: c, CopyOptions: o, w: w, base: base}
	end := uint64(0)
	for _, r := range c.Ranges {
		end += r.Size()
		k.ends = append(k.ends, end)
	}
	var group sync.WaitGroup
	for range max(o.Workers, 1) {
		group.Go(func() {
			if err := k.work(ctx, end); err != nil {
				k.fail(err)
			}
		})
	}
	group.Wait()
	return k, k.err
}

// fail makes everybody stop.
func (k *copier) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err == nil {
		k.err = err
	}
	k.failed.Store(true)
}

// work copies windows until there are no more.
func (k *copier) work(ctx context.Context, all uint64) (err error) {
	defer mem.Catch(&err)()
	var buf []byte
	var list []stretch
	for {
		first := (k.next.Add(1) - 1) * copyWindow
		if first >= all || k.failed.Load() {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		end := min(first+copyWindow, all)
		list = k.stretches(list[:0], first, end)
		if len(list) > 0 && buf == nil {
			buf = make([]byte, copyWindow)
		}
		for left := list; len(left) > 0; {
			n := 1
			for n < len(left) && left[n].offset == left[n-1].offset+left[n-1].Size() {
				n++
			}
			if err := k.write(k.bytes(left[:n], buf), left[0].offset); err != nil {
				return err
			}
			left = left[n:]
		}
		if done := k.done.Add(end - first); k.Progress != nil {
			k.Progress(done, all)
		}
	}
}

// stretch is memory that may not be zero, and its offset in the file.
type stretch struct {
	mem.Range
	offset uint64
}

// stretches appends those of the memory from its byte first on and before end, counted
// over all ranges.
func (k *copier) stretches(list []stretch, first, end uint64) []stretch {
	i := sort.Search(len(k.ends), func(i int) bool { return k.ends[i] > first })
	for ; first < end; i++ {
		r := k.Ranges[i]
		from := r.First + (r.Size() - (k.ends[i] - first))
		n := min(k.ends[i], end) - first
		for p := range k.populated(mem.Range{First: from, Last: from + n - 1}) {
			list = append(list, stretch{p, k.base(i) + (p.First - r.First)})
		}
		first += n
	}
	return list
}

// bytes are those of stretches that follow each other in the file: in place if they are
// at hand, or read into buf.
func (k *copier) bytes(list []stretch, buf []byte) []byte {
	if s, ok := k.Memory.(mem.PhysSlicer); ok && len(list) == 1 {
		if b := s.SlicePhys(mem.Phys(list[0].First), int(list[0].Size())); uint64(len(b)) == list[0].Size() {
			return b
		}
	}
	n := uint64(0)
	for _, p := range list {
		lost := k.ReadPages(buf[n:n+p.Size()], mem.Phys(p.First))
		if len(lost) > 0 {
			k.lose(mem.Phys(p.First), lost)
		}
		n += p.Size()
	}
	return buf[:n]
}

// lose takes note of pages that could not be read, at offsets from an address.
func (k *copier) lose(a mem.Phys, lost map[uint64]bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for off := range lost {
		if at := a + mem.Phys(off); k.lost == 0 || at < k.lowest {
			k.lowest = at
		}
		k.lost++
	}
}

// write writes the pages that are not zero, those that follow each other at once.
func (k *copier) write(b []byte, offset uint64) error {
	from := 0
	for at := 0; at <= len(b); {
		next := min(len(b), at+pageSize-int((offset+uint64(at))%pageSize))
		if at < len(b) && !bytes.Equal(b[at:next], zeroPage[:next-at]) {
			at = next
			continue
		}
		if from < at {
			n, err := k.w.WriteAt(b[from:at], int64(offset)+int64(from))
			k.stored.Add(int64(n))
			if err != nil {
				return err
			}
		}
		if at == len(b) {
			return nil
		}
		at, from = next, next
	}
	return nil
}

// WriteELF writes the machine as an ELF core. Memory that cannot be read any more is
// zero in the file, and told as a problem: the form has no word for it. Of w nothing
// but WriteAt is used, from several goroutines, and the headers are written last; what
// was never written must read as zero.
func (c *Core) WriteELF(ctx context.Context, w io.WriterAt, o CopyOptions) (*Written, error) {
	if err := c.checkELF(); err != nil {
		return nil, err
	}
	data := c.dataOffset()
	starts := make([]uint64, len(c.Ranges))
	size := data
	for i, r := range c.Ranges {
		starts[i] = size
		size += r.Size()
	}
	k, err := c.copyTo(ctx, w, func(i int) uint64 { return starts[i] }, o)
	if err != nil {
		return nil, err
	}
	if _, err := w.WriteAt(c.head(), 0); err != nil {
		return nil, err
	}
	out := &Written{Size: int64(size), Stored: int64(data) + k.stored.Load(), Problems: c.unknownRegisters()}
	if k.lost > 0 {
		out.Problems = append(out.Problems, fmt.Sprintf("%d bytes of memory could not be read when it was their turn, and are zero in the file", k.lost*pageSize))
	}
	return out, nil
}

// WriteRaw writes the memory alone, each byte at its address, under the conditions of
// WriteELF. Memory that cannot be read any more is an error.
func (c *Core) WriteRaw(ctx context.Context, w io.WriterAt, o CopyOptions) (*Written, error) {
	k, err := c.copyTo(ctx, w, func(i int) uint64 { return c.Ranges[i].First }, o)
	if err != nil {
		return nil, err
	}
	if k.lost > 0 {
		return nil, fmt.Errorf("physical memory at %#x could not be read when it was its turn", k.lowest)
	}
	return &Written{Size: int64(c.Ranges[len(c.Ranges)-1].Last + 1), Stored: k.stored.Load()}, nil
}
