package pagingtest

import (
	"fmt"
	"strings"

	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
)

// shape is what a builder knows of a format.
type shape struct {
	name    string
	levels  int
	entry   int // size of an entry in bytes
	bits    int // index bits of a table, except the root of PAE
	largest int // level of the largest pages

	ept, mbec, nested, nx, pse, pae bool
}

func shapeOf(name string) shape {
	s := shape{name: name, entry: 8, bits: 9, largest: 2}
	kind, rest, _ := strings.Cut(name, "-")
	switch {
	case kind == "ept4" || kind == "ept5":
		s.ept, s.mbec, s.levels, s.largest = true, rest == "mbec", int(kind[3]-'0'), 3
		return s
	case kind == "npt4" || kind == "npt5":
		s.nested, s.levels, s.largest = true, int(kind[3]-'0'), 3
		s.nx = rest == ""
		return s
	}
	s.nested = kind == "npt"
	mode, variant, _ := strings.Cut(rest, "-")
	s.nx = variant == ""
	switch {
	case mode == "4level" || mode == "5level":
		s.levels, s.largest = int(mode[0]-'0'), 3
	case mode == "pae":
		s.pae, s.levels = true, 3
	case mode == "2level":
		s.levels, s.entry, s.bits, s.nx = 2, 4, 10, false
		s.pse = variant == "pse"
		if !s.pse {
			s.largest = 1
		}
	default:
		panic(fmt.Sprintf("pagingtest: no format %q", name))
	}
	return s
}

// shift is the number of address bits below the index of a level.
func (s shape) shift(level int) int { return 12 + s.bits*(level-1) }

func (s shape) index(level int, addr uint64) uint64 {
	n := uint64(1) << s.bits
	if s.pae && level == 3 {
		n = 4
	}
	return addr >> s.shift(level) % n
}

// table is the entry of a level that points to table t and allows everything.
func (s shape) table(level int, t mem.Phys) uint64 {
	switch {
	case s.pae && level == 3:
		return uint64(t) | 0x1
	case s.mbec:
		return uint64(t) | 0x407
	default:
		return uint64(t) | 0x7 // P, R/W, U/S; in EPT R, W, X
	}
}

// leaf is the entry of a level that maps a page.
func (s shape) leaf(level int, phys mem.Phys, perm paging.Perm) uint64 {
	e := uint64(phys)
	if level > 1 {
		e |= 0x80
		if s.pse {
			e = e&0xffffffff | e>>32<<13
		}
	}
	set := func(p paging.Perm, bits uint64) {
		if perm&p != 0 {
			e |= bits
		}
	}
	if s.ept {
		e |= 0x30 // write-back
		set(paging.Read, 0x1)
		set(paging.Write, 0x2)
		set(paging.Exec, 0x4)
		set(paging.UserExec, 0x400)
		return e
	}
	e |= 0x1
	set(paging.Write, 0x2)
	set(paging.User, 0x4)
	if s.nested {
		e |= 0x4
	}
	if s.nx && perm&paging.Exec == 0 {
		e |= 0x8000000000000000
	}
	return e
}
