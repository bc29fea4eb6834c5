package memtest

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"nestdbg/internal/mem"
)

// Shortened is a memory of size bytes, mapped from a file of which only the first left
// bytes are there any more: touching the others is a fault, see mem.Catch.
func Shortened(t testing.TB, size, left int) *mem.Image {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "ram"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(size)); err != nil {
		t.Fatal(err)
	}
	data, err := syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	mem.Mapped(data, f.Name(), 0)
	t.Cleanup(func() {
		mem.Unmapped(data)
		syscall.Munmap(data)
	})
	if err := f.Truncate(int64(left)); err != nil {
		t.Fatal(err)
	}
	image, err := mem.NewImage([]mem.Segment{{Data: data}})
	if err != nil {
		t.Fatal(err)
	}
	return image
}
