package symfile

import (
	"cmp"
	"slices"
	"sort"

	"nestdbg/internal/mem"
)

// places answers what lies at an address.
type places struct {
	sections []Section
	order    []int    // indices in sections, ascending by address
	code     []uint64 // addresses of code symbols, ascending, each once
	image    mem.Range
	keep     bool // somebody wants to know what moves with the image
}

// moves reports whether an address moves with the image, and somebody wants to know.
func (p *places) moves(a uint64) bool { return p.keep && p.image.Contains(a) }

func newPlaces(f *File) places {
	p := places{sections: f.Sections, order: make([]int, len(f.Sections)), image: f.image()}
	for i := range p.order {
		p.order[i] = i
	}
	slices.SortStableFunc(p.order, func(a, b int) int {
		return cmp.Compare(f.Sections[a].First, f.Sections[b].First)
	})
	for _, u := range f.Units {
		for i := range u.Symbols {
			if s := &u.Symbols[i]; s.Code {
				p.code = append(p.code, s.Addr)
			}
		}
	}
	slices.Sort(p.code)
	p.code = slices.Compact(p.code)
	return p
}

// section returns the index of the section at an address, or of the one that
// ends there, for symbols like _etext; -1 if there is none.
func (p *places) section(a uint64) int {
	i := sort.Search(len(p.order), func(i int) bool { return p.sections[p.order[i]].First > a }) - 1
	if i < 0 {
		return -1
	}
	if s := &p.sections[p.order[i]]; a-s.First > s.Size {
		return -1
	}
	return p.order[i]
}

// extent is the number of bytes from the start of code at an address to the next
// code symbol or the end of its section, whichever comes first; 0 if unknown.
func (p *places) extent(a uint64) uint64 {
	i := p.section(a)
	if i < 0 {
		return 0
	}
	n := p.sections[i].First + p.sections[i].Size - a
	if next := p.nextCode(a); next > a {
		n = min(n, next-a)
	}
	return n
}

// nextCode is the first address of code above a; 0 if there is none.
func (p *places) nextCode(a uint64) uint64 {
	i := sort.Search(len(p.code), func(i int) bool { return p.code[i] > a })
	if i == len(p.code) {
		return 0
	}
	return p.code[i]
}
