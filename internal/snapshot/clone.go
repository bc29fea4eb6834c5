package snapshot

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"nestdbg/internal/mem"
)

// Filed is memory whose bytes are in files.
type Filed interface {
	// FileAt is the file that has all bytes of a range one after the other, and where
	// the first of them is; nil if there is none.
	FileAt(r mem.Range) (f *os.File, offset uint64)
}

// CloneRAM takes the memory as it is now without a copy of it, where the file system can
// let two files share their blocks (FICLONERANGE: btrfs, xfs): the machine need not stand
// still for longer. It reports whether it did, and then SumRAM has to follow. Why it did
// not is of no account: CopyRAM is for all memory, and meets what is really wrong.
func (w *Writer) CloneRAM(ram RAM) bool {
	files, ok := ram.(Filed)
	if !ok || w.layOut(ram) != nil {
		return false
	}
	for _, r := range w.m.Ranges {
		f, at := files.FileAt(mem.Range{First: r.First, Last: r.Last})
		if f == nil || w.clone(w.ram, f, at, r.Last-r.First+1, r.Offset) != nil {
			return false
		}
	}
	return true
}

// cloneRange makes n bytes of a file those of another one.
func cloneRange(to, from *os.File, fromAt, n, toAt uint64) error {
	return unix.IoctlFileCloneRange(int(to.Fd()), &unix.FileCloneRange{
		Src_fd: int64(from.Fd()), Src_offset: fromAt, Src_length: n, Dest_offset: toAt,
	})
}

// SumRAM sums what CloneRAM took. progress is as for CopyRAM.
func (w *Writer) SumRAM(ctx context.Context, progress func(done, all uint64)) error {
	return w.copy(ctx, cloned{w}, nowhere{}, progress)
}

// cloned is the memory that CloneRAM took.
type cloned struct{ w *Writer }

func (c cloned) ReadPhys(p []byte, a mem.Phys) (int, error) {
	for _, r := range c.w.m.Ranges {
		if uint64(a) >= r.First && uint64(a) <= r.Last {
			return c.w.ram.ReadAt(p, int64(r.Offset+uint64(a)-r.First))
		}
	}
	return 0, mem.ErrNoRAM
}

func (c cloned) PopulatedRanges() []mem.Range { return populated(c.w.ram, c.w.m.Ranges) }

// nowhere is a file to which nothing need be written.
type nowhere struct{}

func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
