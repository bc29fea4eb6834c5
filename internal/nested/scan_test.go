package nested

import (
	"errors"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
)

// TestSweepOfAShortenedFile: a fault of any worker is told to whoever asked for the search.
func TestSweepOfAShortenedFile(t *testing.T) {
	m := &machine.Machine{Name: "l1", Arch: arch.X86, Phys: memtest.Shortened(t, 4*sweepPiece, 3*sweepPiece)}
	search := func() (err error) {
		defer mem.Catch(&err)()
		sweep(m, []pageTest{func(page []byte) bool { return page[0] == 0 }}, nil)
		return nil
	}
	var lost *mem.LostError
	if err := search(); !errors.As(err, &lost) || lost.Offset != 3*sweepPiece {
		t.Errorf("%v", err)
	}
}
