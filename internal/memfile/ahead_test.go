package memfile_test

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"nestdbg/internal/dump/dumptest"
	"nestdbg/internal/mem"
	"nestdbg/internal/memfile"
)

// TestReadAhead: pages that are made ready before they are asked for are the right
// ones, for several readers at once, and a file can be closed at any moment of it.
func TestReadAhead(t *testing.T) {
	const count = 400
	page := func(n uint64) []byte { return bytes.Repeat(fmt.Appendf(nil, "%08d", n), 512) }
	var pages []dumptest.Page
	for n := range uint64(count) {
		pages = append(pages, dumptest.Page{Number: n, Data: page(n), Method: dumptest.Zlib})
	}
	b := dumptest.Kdump(1024, nil, pages...)
	path := write(t, int64(len(b)), map[int64][]byte{0: b})
	for last := uint64(1); last <= count; last += 21 {
		f, err := memfile.Open(path, memfile.Options{})
		if err != nil {
			t.Fatal(err)
		}
		var readers sync.WaitGroup
		for first := range uint64(2) {
			readers.Go(func() {
				got := make([]byte, 4096)
				for n := first * last / 2; n < last; n++ {
					if _, err := f.ReadPhys(got, mem.Phys(n*4096)); err != nil || !bytes.Equal(got, page(n)) {
						t.Errorf("page %d: %v", n, err)
						return
					}
				}
			})
		}
		readers.Wait()
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}
