package paging_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
	"nestdbg/internal/paging/pagingtest"
)

// The benchmark's sizes: virtual memory read in bulk, and the RAM below it, which
// has room for two stages of tables.
const (
	benchBytes = 64 << 20
	benchRAM   = 256 << 20
	benchBase  = 0xffff_8880_0000_0000
)

// writable makes an image over bytes a pagingtest.Memory.
type writable struct {
	*mem.Image
	bytes []byte
}

func (w writable) WritePhys(p []byte, a mem.Phys) (int, error) { return copy(w.bytes[a:], p), nil }

// nested is two stages of 5-level tables with 4 KiB pages, scattered in both
// spaces, over a file that is mapped as QEMU's RAM is.
type nested struct {
	ram   []byte
	image *mem.Image
	va    *paging.Space
	pages []mem.Phys // where each virtual page lies in ram, in order
}

func newNested(b *testing.B) *nested {
	b.Helper()
	n := &nested{ram: mapFile(b, benchRAM)}
	for i := range n.ram {
		n.ram[i] = byte(i >> 8)
	}
	var err error
	if n.image, err = mem.NewImage([]mem.Segment{{Base: 0, Data: n.ram}}); err != nil {
		b.Fatal(err)
	}
	l1 := writable{n.image, n.ram}
	npt := pagingtest.New("npt5", l1, pagingtest.NewFrames(mem.Range{First: 0, Last: benchRAM - 1}, 1))
	l2 := npt.Guest()
	guest := pagingtest.New("x86-5level", l2, pagingtest.NewFrames(mem.Range{First: 0, Last: benchRAM - 1}, 2))
	frames := pagingtest.NewFrames(mem.Range{First: benchRAM, Last: 2*benchRAM - 1}, 3)
	for off := uint64(0); off < benchBytes; off += 4096 {
		gpa := frames.Take()
		guest.Map(benchBase+off, gpa, 4096, paging.Read|paging.Write|paging.User)
		if _, err := l2.WritePhys([]byte{1}, gpa); err != nil {
			b.Fatal(err)
		}
		hpa, _, _ := npt.Lookup(uint64(gpa))
		n.pages = append(n.pages, hpa)
	}
	second := paging.NewSpace("npt", paging.NPTFiveLevel, n.image, npt.Root())
	n.va = paging.NewSpace("va", paging.X86FiveLevel, second, guest.Root())
	return n
}

// mapFile maps a file of size bytes, shared and populated.
func mapFile(b *testing.B, size int) []byte {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "ram"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(size)); err != nil {
		b.Fatal(err)
	}
	ram, err := syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := syscall.Munmap(ram); err != nil {
			b.Error(err)
		}
	})
	return ram
}

// BenchmarkNestedBulk reads 64 MiB through two stages of 5-level tables. Beside it
// stand the same pages copied from known places, which is what the walk adds
// nothing to, and one plain copy of as many bytes.
func BenchmarkNestedBulk(b *testing.B) {
	n := newNested(b)
	out := make([]byte, benchBytes)
	b.Run("memcpy", func(b *testing.B) {
		b.SetBytes(benchBytes)
		for b.Loop() {
			copy(out, n.ram[:benchBytes])
		}
	})
	b.Run("pages", func(b *testing.B) {
		b.SetBytes(benchBytes)
		for b.Loop() {
			for i, a := range n.pages {
				copy(out[i*4096:(i+1)*4096], n.ram[a:])
			}
		}
	})
	b.Run("space", func(b *testing.B) {
		b.SetBytes(benchBytes)
		for b.Loop() {
			if _, err := n.va.ReadVirt(out, benchBase); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("flushed", func(b *testing.B) {
		b.SetBytes(benchBytes)
		for b.Loop() {
			n.va.Flush()
			if _, err := n.va.ReadVirt(out, benchBase); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkNestedRandom reads 8 bytes at random addresses of the same memory, with
// the cache warm, with it emptied before each read, and beside it the same reads
// from known places: most of the time goes into the miss on the data. "walk" only
// translates, without the topmost cache, and touches no data.
func BenchmarkNestedRandom(b *testing.B) {
	n := newNested(b)
	r := rand.New(rand.NewPCG(1, 1))
	next := func() mem.Virt { return benchBase + mem.Virt(r.Uint64N(benchBytes)&^7) }
	b.Run("known", func(b *testing.B) {
		var word [8]byte
		for b.Loop() {
			off := uint64(next()) - benchBase
			copy(word[:], n.ram[n.pages[off>>12]+mem.Phys(off&4095):])
		}
	})
	b.Run("warm", func(b *testing.B) {
		b.ReportAllocs()
		var word [8]byte
		for b.Loop() {
			if _, err := n.va.ReadVirt(word[:], next()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("flushed", func(b *testing.B) {
		var word [8]byte
		for b.Loop() {
			n.va.Flush()
			if _, err := n.va.ReadVirt(word[:], next()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("walk", func(b *testing.B) {
		for b.Loop() {
			if _, err := n.va.Walk(uint64(next())); err != nil {
				b.Fatal(err)
			}
		}
	})
}
