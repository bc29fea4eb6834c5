package dump

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
)

// notZero is a file of which only pages that are not zero may be written.
type notZero struct {
	*testing.T
	fileOf
}

func (f *notZero) WriteAt(p []byte, off int64) (int, error) {
	if bytes.Equal(p[:min(len(p), pageSize)], zeroPage[:min(len(p), pageSize)]) {
		f.Errorf("zeros are written at %#x", off)
	}
	return f.fileOf.WriteAt(p, off)
}

// inPieces is patchy in pieces of some pages with gaps of one, as when pages are left out.
func inPieces(pages uint64) *Core {
	c, _ := patchy()
	var gaps []mem.Range
	for _, r := range c.Ranges {
		for at := r.First; at <= r.Last; at += (pages + 1) * pageSize {
			gaps = append(gaps, mem.Range{First: at, Last: at + pageSize - 1})
		}
	}
	c.Ranges = mem.Subtract(c.Ranges, gaps)
	return c
}

// TestCopies: whatever the memory is like and however many work at it, the same file is
// written: every byte at its place, nothing that is zero, all of it told.
func TestCopies(t *testing.T) {
	whole, ram := patchy()
	var segments []mem.Segment
	for _, r := range whole.Ranges {
		b := make([]byte, r.Size())
		ram.ReadPhys(b, mem.Phys(r.First))
		segments = append(segments, mem.Segment{Base: mem.Phys(r.First), Data: b})
	}
	image, err := mem.NewImage(segments)
	if err != nil {
		t.Fatal(err)
	}
	populated := []mem.Range{{First: 0, Last: 0x200fff}, {First: 0x203000, Last: 0x3fefff}, {First: 1<<32 + 0x1000, Last: 1 << 40}}
	zeros := mem.Subtract(whole.Ranges, populated)
	for name, c := range map[string]*Core{"whole": whole, "single pages": inPieces(1), "seven pages": inPieces(7)} {
		for _, memory := range []mem.PhysReader{ram, image, readerFunc(ram.ReadPhys)} {
			for _, c.Populated = range [][]mem.Range{nil, populated} {
				c.Memory = memory
				want := rawOf(c.Ranges, image, c.Populated, zeros)
				for _, workers := range []int{0, 3} {
					about := fmt.Sprintf("%s, %T, %d populated, %d workers", name, memory, len(c.Populated), workers)
					checkCopies(t, about, c, want, workers)
				}
			}
		}
	}
}

// rawOf are the bytes of ranges, one after the other.
func rawOf(ranges []mem.Range, memory mem.PhysReader, populated, zeros []mem.Range) []byte {
	var out []byte
	for _, r := range ranges {
		b := make([]byte, r.Size())
		memory.ReadPhys(b, mem.Phys(r.First))
		for _, z := range zeros {
			if from, to := max(z.First, r.First), min(z.Last, r.Last); populated != nil && from <= to {
				clear(b[from-r.First : to-r.First+1])
			}
		}
		out = append(out, b...)
	}
	return out
}

// checkCopies writes both forms; want is the memory in the ELF file.
func checkCopies(t *testing.T, about string, c *Core, want []byte, workers int) {
	t.Helper()
	var mu sync.Mutex
	told, all := uint64(0), uint64(0)
	o := CopyOptions{Workers: workers, Progress: func(done, of uint64) {
		mu.Lock()
		defer mu.Unlock()
		told, all = max(told, done), of
	}}
	file := &notZero{T: t}
	out, err := c.WriteELF(t.Context(), file, o)
	if err != nil {
		t.Errorf("%s: %v", about, err)
		return
	}
	head := c.head()
	got := append(file.b, make([]byte, max(0, int(out.Size)-len(file.b)))...)
	if !bytes.Equal(got, append(head, want...)) || uint64(len(want)) != told || told != all {
		t.Errorf("%s: another file, or %#x of %#x bytes are told of %#x", about, told, all, len(want))
	}
	stored := int64(len(head))
	for at := 0; at < len(want); at += pageSize {
		if !bytes.Equal(want[at:at+pageSize], zeroPage[:]) {
			stored += pageSize
		}
	}
	if out.Stored != stored {
		t.Errorf("%s: %#x bytes stored, want %#x", about, out.Stored, stored)
	}

	low := *c // what is far up would make a long file
	low.Ranges = nil
	for _, r := range c.Ranges {
		if r.Last < 1<<32 {
			low.Ranges = append(low.Ranges, r)
		}
	}
	told = 0
	raw := &notZero{T: t}
	if out, err = low.WriteRaw(t.Context(), raw, o); err != nil || told != all {
		t.Errorf("%s: %#x of %#x, %v", about, told, all, err)
		return
	}
	got = append(raw.b, make([]byte, max(0, int(out.Size)-len(raw.b)))...)
	for _, r := range low.Ranges {
		if !bytes.Equal(got[r.First:r.Last+1], want[:r.Size()]) {
			t.Errorf("%s: raw memory %v is another", about, r)
			return
		}
		want = want[r.Size():]
	}
}

// TestCopyLost: pages that cannot be read are counted, zero in an ELF file, and an error
// that names the first in a raw one.
func TestCopyLost(t *testing.T) {
	c, ram := patchy()
	c.Ranges = c.Ranges[:1]
	bad := map[mem.Phys]bool{0x3000: true, 0x123000: true, 0x3fe000: true}
	c.Memory = readerFunc(func(p []byte, a mem.Phys) (int, error) {
		for at := a &^ (pageSize - 1); at < a+mem.Phys(len(p)); at += pageSize {
			if bad[at] {
				n, _ := ram.ReadPhys(p[:max(at, a)-a], a)
				return n, &mem.FaultError{Addr: uint64(max(at, a))}
			}
		}
		return ram.ReadPhys(p, a)
	})
	var file fileOf
	out, err := c.WriteELF(t.Context(), &file, CopyOptions{Workers: 3})
	if err != nil || !strings.Contains(strings.Join(out.Problems, "\n"), "12288 bytes of memory could not be read") {
		t.Fatalf("%+v, %v", out, err)
	}
	at := int(c.dataOffset()) + 0x3000 - 0x1000
	if !bytes.Equal(file.b[at:at+pageSize], zeroPage[:]) {
		t.Error("a page that was lost is not zero")
	}
	if out, err := c.WriteRaw(t.Context(), &fileOf{}, CopyOptions{Workers: 3}); err == nil || !strings.Contains(err.Error(), "0x3000 ") {
		t.Errorf("raw: %+v, %v", out, err)
	}
}

// TestCopyEnds: a full disk and an end of ctx end the work with that error, and leave no
// file that anybody takes for a dump.
func TestCopyEnds(t *testing.T) {
	c, _ := patchy()
	var whole fileOf
	if _, err := c.WriteELF(t.Context(), &whole, CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	for limit := 1; limit < len(whole.b); limit += len(whole.b) / 20 {
		file := &fileOf{limit: limit}
		out, err := c.WriteELF(t.Context(), file, CopyOptions{Workers: 2})
		if !errors.Is(err, errFull) || out != nil || IsELF(file.b) {
			t.Errorf("full at %#x of %#x: %+v, %v", limit, len(whole.b), out, err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	file := &fileOf{}
	out, err := c.WriteELF(ctx, file, CopyOptions{Workers: 2, Progress: func(uint64, uint64) { stop() }})
	if !errors.Is(err, context.Canceled) || out != nil || IsELF(file.b) {
		t.Errorf("stopped: %+v, %v", out, err)
	}
	c.Ranges = nil
	if out, err := c.WriteRaw(t.Context(), &fileOf{}, CopyOptions{}); err == nil {
		t.Errorf("without memory: %+v", out)
	}
}

// TestShortenedFile: memory that is lost while it is copied ends the copy, whoever meets it.
func TestShortenedFile(t *testing.T) {
	c, _ := patchy()
	c.Ranges = []mem.Range{{First: 0, Last: 8<<20 - 1}}
	c.Memory = memtest.Shortened(t, 8<<20, 3<<20)
	writes := map[string]func(*fileOf) error{
		"raw": func(f *fileOf) error {
			_, err := c.WriteRaw(context.Background(), f, CopyOptions{Workers: 3})
			return err
		},
		"ELF": func(f *fileOf) error {
			_, err := c.WriteELF(context.Background(), f, CopyOptions{Workers: 3})
			return err
		},
		"kdump": func(f *fileOf) error { _, err := c.WriteKdump(f, KdumpOptions{Method: Zlib, Workers: 3}); return err },
	}
	for name, write := range writes {
		var lost *mem.LostError
		if err := write(new(fileOf)); !errors.As(err, &lost) || lost.Offset < 3<<20 {
			t.Errorf("%s: %v", name, err)
		}
	}
}
