package dump

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
)

// fileOf is a file in memory that fails when it would be longer than limit, as a disk
// does that is full.
type fileOf struct {
	mu    sync.Mutex
	b     []byte
	limit int // 0: none
}

var errFull = errors.New("no space left")

func (f *fileOf) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	end := int(off) + len(p)
	if f.limit > 0 && end > f.limit {
		return 0, errFull
	}
	f.b = append(f.b, make([]byte, max(0, end-len(f.b)))...)
	return copy(f.b[off:], p), nil
}

// patchy is memory of many windows in two pieces: text, pages of zeros, and bytes that
// no method makes smaller.
func patchy() (*Core, *memtest.Memory) {
	c, _ := newCore()
	c.Ranges = []mem.Range{{First: 0x1000, Last: 0x3fffff}, {First: 1 << 32, Last: 1<<32 + 0x2fffff}}
	ram := memtest.NewMemory(c.Ranges...)
	c.Memory, c.Release, c.Version, c.PhysBase = ram, "6.1", "#1 SMP", 0x29a00000
	noise := uint64(1)
	for _, r := range c.Ranges {
		for at := r.First; at < r.Last; at += pageSize {
			switch at / pageSize % 3 {
			case 0:
				ram.Put(mem.Phys(at), bytes.Repeat(fmt.Appendf(nil, "page %#x ", at), 100))
			case 1:
				b := make([]byte, pageSize)
				for i := 0; i < len(b); i += 8 {
					noise = noise*6364136223846793005 + 1442695040888963407
					binary.LittleEndian.PutUint64(b[i:], noise^noise>>29)
				}
				ram.Put(mem.Phys(at), b)
			}
		}
	}
	return c, ram
}

// TestKdumpIsReadAgain: what is written is what ReadKdump finds, by every method, and
// the same file however many worked at it.
func TestKdumpIsReadAgain(t *testing.T) {
	for _, m := range []Method{Zlib, Zstd} {
		var first []byte
		for _, workers := range []int{1, 4} {
			c, ram := patchy()
			var file fileOf
			told := uint64(0)
			var mu sync.Mutex
			out, err := c.WriteKdump(&file, KdumpOptions{Method: m, Workers: workers, Progress: func(done, all uint64) {
				mu.Lock()
				defer mu.Unlock()
				told = max(told, done)
				if all != 0x6ff000 {
					t.Errorf("%#x bytes in all", all)
				}
			}})
			if err != nil {
				t.Fatal(err)
			}
			if out.Size < int64(len(file.b)) || told != 0x6ff000 {
				t.Errorf("method %#x: %d bytes, %d are written, progress %#x", m, out.Size, len(file.b), told)
			}
			if first == nil {
				first = file.b
				readBack(t, c, ram, file.b, nil)
			}
			if !bytes.Equal(first, file.b) {
				t.Errorf("method %#x: %d workers write another file than one", m, workers)
			}
			if half := int64(0x6ff000 * 2 / 3); out.Stored > half {
				t.Errorf("method %#x: %#x bytes stored of %#x that are not zero", m, out.Stored, half)
			}
		}
	}
}

// readBack checks every page of a file, and its notes. left are pages that are not in
// it, with the error for reading them; nil: they read as zero.
func readBack(t *testing.T, c *Core, ram *memtest.Memory, b []byte, left map[mem.Phys]error) {
	t.Helper()
	k, err := ReadKdump(bytes.NewReader(b), uint64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if string(k.VMCoreInfo) != "OSRELEASE=6.1\n" || len(k.CPUs) != 2 || !k.QEMU || len(k.Problems) > 0 {
		t.Errorf("%q, %d CPUs, %q", k.VMCoreInfo, len(k.CPUs), k.Problems)
	}
	if v, _ := k.CPUs[1].Get("cr3"); v != 0x5000 {
		t.Errorf("CR3 of CPU 1 is %#x", v)
	}
	want := make([]byte, pageSize)
	for _, r := range c.Ranges {
		for at := mem.Phys(r.First); at < mem.Phys(r.Last); at += pageSize {
			ram.ReadPhys(want, at)
			got, err := k.Page(at)
			if reason, gone := left[at]; gone {
				if !errors.Is(err, reason) {
					t.Fatalf("page %#x, which was left out: %v", at, err)
				}
				continue
			}
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("page %#x: %v", at, err)
			}
		}
	}
	if _, err := k.Page(0); !errors.Is(err, mem.ErrNoRAM) {
		t.Errorf("page 0, which is not there: %v", err)
	}
}

// TestKdumpLeavesOut: pages that were to be left out, those of zeros, and those that
// cannot be read are told from memory that is not there.
func TestKdumpLeavesOut(t *testing.T) {
	c, ram := patchy()
	left := map[mem.Phys]error{0x2000: ErrExcluded, 0x3000: ErrExcluded, 1<<32 + 0x100000: ErrExcluded}
	o := KdumpOptions{Method: Zlib, Workers: 2, Level: LevelFree,
		Left: []mem.Range{{First: 0x2000, Last: 0x3fff}, {First: 1<<32 + 0x100000, Last: 1<<32 + 0x100fff}}}
	var file fileOf
	if _, err := c.WriteKdump(&file, o); err != nil {
		t.Fatal(err)
	}
	readBack(t, c, ram, file.b, left)

	// Pages of zeros alone are left out: a reader knows what they are.
	file = fileOf{}
	out, err := c.WriteKdump(&file, KdumpOptions{Method: Zstd, Workers: 2, NoZero: true})
	if err != nil || out.Zero != 0x6ff/3*pageSize {
		t.Fatalf("%#x bytes of zeros, %v", out.Zero, err)
	}
	readBack(t, c, ram, file.b, nil)

	// Together with others they cannot be told from those.
	file, o.NoZero = fileOf{}, true
	if _, err := c.WriteKdump(&file, o); err != nil {
		t.Fatal(err)
	}
	k, err := ReadKdump(bytes.NewReader(file.b), uint64(len(file.b)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Page(0x5000); !errors.Is(err, ErrExcluded) {
		t.Errorf("a page of zeros that was left out beside free ones: %v", err)
	}

	// What cannot be read is not in the file, and no page of zeros in any.
	for _, o := range []KdumpOptions{{}, {NoZero: true}, {NoZero: true, Level: LevelFree}} {
		file, o.Method, o.Workers = fileOf{}, Zlib, 1
		bad := mem.Phys(1 << 32)
		c.Memory = readerFunc(func(p []byte, a mem.Phys) (int, error) {
			if a <= bad && bad < a+mem.Phys(len(p)) {
				n, _ := ram.ReadPhys(p[:bad-a], a)
				return n, &mem.FaultError{Addr: uint64(bad)}
			}
			return ram.ReadPhys(p, a)
		})
		out, err = c.WriteKdump(&file, o)
		if err != nil || !strings.Contains(strings.Join(out.Problems, "\n"), "4096 bytes of memory could not be read") {
			t.Errorf("%+v: %v, %+v", o, err, out)
		}
		k, err := ReadKdump(bytes.NewReader(file.b), uint64(len(file.b)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Page(bad); !errors.Is(err, mem.ErrNoRAM) {
			t.Errorf("%+v: a page that could not be read: %v", o, err)
		}
	}
}

// TestKdumpDiskFull: wherever the disk is full, writing ends with that error.
func TestKdumpDiskFull(t *testing.T) {
	c, _ := patchy()
	var whole fileOf
	if _, err := c.WriteKdump(&whole, KdumpOptions{Method: Zlib, Workers: 2}); err != nil {
		t.Fatal(err)
	}
	for limit := 1; limit < len(whole.b); limit += len(whole.b) / 40 {
		out, err := c.WriteKdump(&fileOf{limit: limit}, KdumpOptions{Method: Zlib, Workers: 2})
		if !errors.Is(err, errFull) || out != nil {
			t.Errorf("at %#x of %#x: %+v, %v", limit, len(whole.b), out, err)
		}
	}
}

// TestKdumpRefuses: what the format cannot have.
func TestKdumpRefuses(t *testing.T) {
	c, _ := newCore()
	for name, ranges := range map[string][]mem.Range{"nothing": nil, "too far up": {{First: 1 << 50, Last: 1<<50 + 0xfff}}} {
		c.Ranges = ranges
		if out, err := c.WriteKdump(&fileOf{}, KdumpOptions{Method: Zlib}); err == nil {
			t.Errorf("%s: %+v", name, out)
		}
	}
	c, _ = newCore()
	if out, err := c.WriteKdump(&fileOf{}, KdumpOptions{Method: Zlib, Left: c.Ranges}); err == nil {
		t.Errorf("all is left out: %+v", out)
	}
	if out, err := c.WriteKdump(&fileOf{}, KdumpOptions{Method: pageLZO}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("a method that is not written: %+v, %v", out, err)
	}
}
