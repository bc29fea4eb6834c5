package pagingtest

import (
	"math/rand/v2"

	"nestdbg/internal/mem"
)

// Frames hands out free pages of 4 KiB.
type Frames struct {
	free []mem.Phys // the next one last
}

// NewFrames returns the pages of a range, ascending if seed is 0, otherwise in a
// random order that depends on the seed alone.
func NewFrames(in mem.Range, seed uint64) *Frames {
	f := &Frames{}
	for a := in.Last + 1; a > in.First; a -= 4096 {
		f.free = append(f.free, mem.Phys(a-4096))
	}
	if seed != 0 {
		r := rand.New(rand.NewPCG(seed, 0))
		r.Shuffle(len(f.free), func(i, j int) { f.free[i], f.free[j] = f.free[j], f.free[i] })
	}
	return f
}

// Take returns a page that nobody has. That there is none left is a bug in the
// test.
func (f *Frames) Take() mem.Phys {
	if len(f.free) == 0 {
		panic("pagingtest: no frames left")
	}
	a := f.free[len(f.free)-1]
	f.free = f.free[:len(f.free)-1]
	return a
}
