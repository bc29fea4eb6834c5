package snapshot

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"nestdbg/internal/mem"
)

// chunkSize is what one worker copies at a time, and what has one checksum: small
// enough for a cache, large enough that ranges and system calls do not count.
const chunkSize = 1 << 20

// workers copy chunks at the same time.
const workers = 2

// RAM is the memory that is saved.
type RAM interface {
	mem.PhysReader
	mem.PhysRanger
	// PopulatedRanges are the ranges outside which every byte is zero.
	PopulatedRanges() []mem.Range
}

// Writer is a snapshot under way. It is in a directory beside its own until
// Commit; Abort removes it, and does nothing after Commit.
type Writer struct {
	dir, temp string
	own       *os.File // temp, locked
	ram       *os.File
	sums      []byte
	stored    atomic.Uint64
	m         Manifest
	clone     func(to, from *os.File, fromAt, n, toAt uint64) error // cloneRange
}

// Create begins a snapshot at dir, which must not be there.
func Create(dir string) (*Writer, error) {
	dir = filepath.Clean(dir)
	if _, err := os.Lstat(dir); err == nil {
		return nil, fmt.Errorf("%s: %w", dir, os.ErrExist)
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	temp, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+incomplete) // mode 0700: it holds memory
	if err != nil {
		return nil, err
	}
	w := &Writer{dir: dir, temp: temp, clone: cloneRange}
	if w.own, err = os.Open(temp); err == nil && lock(w.own) == errLocked {
		err = fmt.Errorf("%s: somebody removes it", temp)
	}
	if err != nil {
		w.Abort()
		return nil, err
	}
	if w.ram, err = os.OpenFile(filepath.Join(temp, ramFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		w.Abort()
		return nil, err
	}
	return w, nil
}

// Abort removes everything that was written.
func (w *Writer) Abort() {
	if w.temp == "" {
		return
	}
	if w.ram != nil {
		w.ram.Close()
	}
	os.RemoveAll(w.temp)
	if w.own != nil {
		w.own.Close()
	}
	w.temp = ""
}

// layOut gives every range its place in an empty file ram.
func (w *Writer) layOut(ram RAM) error {
	w.m.Ranges = nil
	offset := uint64(0)
	for _, r := range ram.PhysRanges() {
		w.m.Ranges = append(w.m.Ranges, Range{r.First, r.Last, offset})
		offset += r.Size()
	}
	w.m.RAMSize, w.m.ChunkSize = offset, chunkSize
	return errors.Join(w.ram.Truncate(0), w.ram.Truncate(int64(offset)))
}

// CopyRAM copies the memory and sums it. progress, if not nil, is told bytes done
// and in all, from several goroutines.
func (w *Writer) CopyRAM(ctx context.Context, ram RAM, progress func(done, all uint64)) error {
	if err := w.layOut(ram); err != nil {
		return err
	}
	return w.copy(ctx, ram, w.ram, progress)
}

// source is what copying needs of memory.
type source interface {
	mem.PhysReader
	PopulatedRanges() []mem.Range
}

// copy copies to a file and sums.
func (w *Writer) copy(ctx context.Context, from source, to io.WriterAt, progress func(done, all uint64)) error {
	w.sums = make([]byte, 4*w.m.chunks())
	c := &copying{w: w, ram: from, to: to, populated: apart(from.PopulatedRanges()), progress: progress,
		zeroSum: crc32.Checksum(make([]byte, chunkSize), castagnoli)}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			if err := c.work(ctx); err != nil {
				cancel(err)
			}
		})
	}
	group.Wait()
	w.m.RAMStored = w.stored.Load()
	return context.Cause(ctx)
}

// copying is one copy.
type copying struct {
	w         *Writer
	ram       source
	to        io.WriterAt
	populated []mem.Range // ascending, and apart from each other
	progress  func(done, all uint64)
	zeroSum   uint32        // of a chunk of zeros
	next      atomic.Uint64 // the chunk that nobody has begun
	done      atomic.Uint64 // bytes
}

// work copies chunks until there are no more.
func (c *copying) work(ctx context.Context) (err error) {
	defer mem.Catch(&err)()
	buf := make([]byte, chunkSize)
	for {
		i := c.next.Add(1) - 1
		if i >= c.w.m.chunks() {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		first := i * chunkSize
		chunk := buf[:min(chunkSize, c.w.m.RAMSize-first)]
		sum := c.zeroSum
		if len(chunk) < chunkSize || c.populatedIn(first, chunkSize) {
			if err := c.read(chunk, first); err != nil {
				return err
			}
			sum = crc32.Checksum(chunk, castagnoli)
			stored, err := writeSparse(c.to, chunk, int64(first))
			if err != nil {
				return err
			}
			c.w.stored.Add(stored)
		}
		binary.LittleEndian.PutUint32(c.w.sums[4*i:], sum)
		if done := c.done.Add(uint64(len(chunk))); c.progress != nil {
			c.progress(done, c.w.m.RAMSize)
		}
	}
}

// spansAt calls do for the parts of physical memory that n bytes at an offset of the
// file to be are of, each with its offset, until do returns false.
func (c *copying) spansAt(offset, n uint64, do func(span mem.Range, offset uint64) bool) {
	ranges := c.w.m.Ranges
	first, _ := slices.BinarySearchFunc(ranges, offset, func(r Range, at uint64) int {
		return cmp.Compare(r.Offset+(r.Last-r.First), at) // its last byte
	})
	for _, r := range ranges[first:] {
		from, to := max(r.Offset, offset), min(r.Offset+(r.Last-r.First+1), offset+n)
		if from >= to || !do(mem.Range{First: r.First + (from - r.Offset), Last: r.First + (to - r.Offset) - 1}, from) {
			return
		}
	}
}

// populatedFrom are the populated ranges that are not all before an address.
func (c *copying) populatedFrom(addr uint64) []mem.Range {
	i, _ := slices.BinarySearchFunc(c.populated, addr, func(p mem.Range, at uint64) int { return cmp.Compare(p.Last, at) })
	return c.populated[i:]
}

// populatedIn reports whether some of the bytes at an offset of the file to be may not
// be zero.
func (c *copying) populatedIn(offset, n uint64) (some bool) {
	c.spansAt(offset, n, func(span mem.Range, _ uint64) bool {
		rest := c.populatedFrom(span.First)
		some = len(rest) > 0 && rest[0].First <= span.Last
		return !some
	})
	return some
}

// read fills chunk with what is at offset of the file to be: what is populated
// from memory, the rest with zeros.
func (c *copying) read(chunk []byte, offset uint64) (err error) {
	clear(chunk)
	c.spansAt(offset, uint64(len(chunk)), func(span mem.Range, from uint64) bool {
		err = c.readSpan(chunk[from-offset:][:span.Size()], span)
		return err == nil
	})
	return err
}

// readSpan reads the populated parts of span into b, which is as long as span.
func (c *copying) readSpan(b []byte, span mem.Range) error {
	for _, p := range c.populatedFrom(span.First) {
		if p.First > span.Last {
			break
		}
		first, last := max(p.First, span.First), min(p.Last, span.Last)
		part := b[first-span.First : last-span.First+1]
		if n, err := c.ram.ReadPhys(part, mem.Phys(first)); err != nil {
			return fmt.Errorf("physical memory at %#x: %w", first+uint64(n), err)
		}
	}
	return nil
}

// apart sorts ranges and joins those that overlap.
func apart(ranges []mem.Range) []mem.Range {
	slices.SortFunc(ranges, func(a, b mem.Range) int { return cmp.Compare(a.First, b.First) })
	out := ranges[:0]
	for _, r := range ranges {
		if n := len(out); n > 0 && r.First <= out[n-1].Last {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out
}

var zeroPage [pageSize]byte

// writeSparse writes the pages of b that are not zero, runs of them at once, and
// returns how many bytes those are.
func writeSparse(f io.WriterAt, b []byte, at int64) (stored uint64, err error) {
	for i := 0; i < len(b); {
		end := i
		for end < len(b) && !isZero(b[end:min(end+pageSize, len(b))]) {
			end = min(end+pageSize, len(b))
		}
		if end == i {
			i += pageSize
			continue
		}
		if _, err := f.WriteAt(b[i:end], at+int64(i)); err != nil {
			return stored, err
		}
		stored += uint64(end - i)
		i = end
	}
	return stored, nil
}

func isZero(page []byte) bool { return bytes.Equal(page, zeroPage[:len(page)]) }

// Commit writes what is left and gives the snapshot its name.
func (w *Writer) Commit(m Manifest, devices []byte) (*Manifest, error) {
	m.Format = Format
	m.Ranges, m.RAMSize, m.RAMStored, m.ChunkSize = w.m.Ranges, w.m.RAMSize, w.m.RAMStored, w.m.ChunkSize
	m.SumsHash, m.DevicesHash = hashOf(w.sums), hashOf(devices)
	var err error
	if m.Checksum, err = m.sum(); err != nil {
		return nil, err
	}
	text, err := m.encode()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(w.ram.Sync(), w.ram.Close()); err != nil {
		return nil, err
	}
	w.ram = nil
	for _, f := range []struct {
		name string
		b    []byte
	}{{sumsFile, w.sums}, {devicesFile, devices}, {manifestFile, text}} {
		if err := writeSynced(filepath.Join(w.temp, f.name), f.b); err != nil {
			return nil, err
		}
	}
	if err := syncDir(w.own); err != nil {
		return nil, err
	}
	if err := os.Rename(w.temp, w.dir); err != nil {
		return nil, err
	}
	w.temp = ""
	return &m, errors.Join(w.own.Close(), syncParent(w.dir))
}

// syncParent brings the name of a file or directory to the disk.
func syncParent(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if errors.Is(err, os.ErrPermission) {
		return nil // it may be written and not read
	}
	if err != nil {
		return err
	}
	return errors.Join(syncDir(d), d.Close())
}

// syncDir brings the names in a directory to the disk, if its file system has a way.
func syncDir(d *os.File) error {
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return nil
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}
