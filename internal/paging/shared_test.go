package paging_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
	"nestdbg/internal/paging"
	"nestdbg/internal/paging/pagingtest"
)

// TestLargeReads reads megabytes through two stages, which several goroutines share,
// with a hole in different places: what is before it must be right, and the fault
// must be for its first byte.
func TestLargeReads(t *testing.T) {
	const size, base, ramSize = 5 << 20, 0xffff_8880_0000_0000, 48 << 20
	r := rand.New(rand.NewPCG(3, 3))
	for _, hole := range []uint64{size, 0, 4096, size/2 - 4096, size / 2, size - 4096} {
		ram := make([]byte, ramSize)
		image, err := mem.NewImage([]mem.Segment{{Base: 0, Data: ram}})
		if err != nil {
			t.Fatal(err)
		}
		npt := pagingtest.New("npt4", writable{image, ram}, pagingtest.NewFrames(mem.Range{First: 0, Last: ramSize - 1}, 1))
		l2 := npt.Guest()
		guest := pagingtest.New("x86-4level", l2, pagingtest.NewFrames(mem.Range{First: 0, Last: ramSize - 1}, 2))
		frames := pagingtest.NewFrames(mem.Range{First: ramSize, Last: 2*ramSize - 1}, 3)
		want := make([]byte, size)
		for off := uint64(0); off < size; off += 4096 {
			page := want[off : off+4096]
			for i := range page {
				page[i] = byte(r.Uint32())
			}
			gpa := frames.Take()
			if off != hole {
				guest.Map(base+off, gpa, 4096, paging.Read|paging.Write)
			}
			if _, err := l2.WritePhys(page, gpa); err != nil {
				t.Fatal(err)
			}
		}
		second := paging.NewSpace("npt", paging.NPTFourLevel, image, npt.Root())
		s := paging.NewSpace("va", paging.X86FourLevel, second, guest.Root())
		for _, skip := range []uint64{0, 1, 4096, 5000} { // parts begin anywhere in a page
			got := make([]byte, size-skip)
			n, err := s.ReadVirt(got, mem.Virt(base+skip))
			stop := max(hole, skip)
			if hole < size && hole+4096 > skip { // the hole is in what is read
				var fault *mem.FaultError
				if !errors.As(err, &fault) || fault.Addr != base+stop {
					t.Errorf("hole at %#x, from %#x: %v", hole, skip, err)
				}
			} else if stop = size; err != nil {
				t.Errorf("hole at %#x, from %#x: %v", hole, skip, err)
			}
			if n != int(stop-skip) || !bytes.Equal(got[:n], want[skip:stop]) {
				t.Errorf("hole at %#x, from %#x: %d bytes, want %d; or they differ", hole, skip, n, stop-skip)
			}
		}
	}
}

// TestLargeReadOfAShortenedFile: the fault of whichever goroutine meets it is the error of
// the read.
func TestLargeReadOfAShortenedFile(t *testing.T) {
	const size, base, at = 4 << 20, 0xffff_8880_0000_0000, 16 << 20
	tables := make([]byte, 1<<20)
	image, err := mem.NewImage([]mem.Segment{{Data: tables}, {Base: at, Data: memtest.Shortened(t, size, 1<<20).Segments()[0].Data}})
	if err != nil {
		t.Fatal(err)
	}
	b := pagingtest.New("x86-4level", writable{image, tables}, pagingtest.NewFrames(mem.Range{First: 0, Last: 1<<20 - 1}, 1))
	for off := uint64(0); off < size; off += 4096 {
		b.Map(base+off, at+mem.Phys(off), 4096, paging.Read)
	}
	s := paging.NewSpace("va", paging.X86FourLevel, image, b.Root())
	read := func() (n int, err error) {
		defer mem.Catch(&err)()
		return s.ReadVirt(make([]byte, size), base)
	}
	var lost *mem.LostError
	if n, err := read(); !errors.As(err, &lost) || lost.Offset < 1<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
}
