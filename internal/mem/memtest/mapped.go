package memtest

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"nestdbg/internal/mem"
)

// Map maps size bytes of a new file from offset on, which is a multiple of the page size,
// until the test ends. They read as zero.
func Map(t testing.TB, size, offset int) (*os.File, []byte) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "ram"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(int64(offset + size)); err != nil {
		t.Fatal(err)
	}
	data, err := syscall.Mmap(int(f.Fd()), int64(offset), size, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	mem.Mapped(data, f.Name(), uint64(offset))
	t.Cleanup(func() {
		mem.Unmapped(data)
		syscall.Munmap(data)
	})
	return f, data
}

// Shortened is a memory of size bytes, mapped from a file of which only the first left
// bytes are there any more: touching the others is a fault, see mem.Catch.
func Shortened(t testing.TB, size, left int) *mem.Image {
	t.Helper()
	f, data := Map(t, size, 0)
	if err := f.Truncate(int64(left)); err != nil {
		t.Fatal(err)
	}
	image, err := mem.NewImage([]mem.Segment{{Data: data}})
	if err != nil {
		t.Fatal(err)
	}
	return image
}
