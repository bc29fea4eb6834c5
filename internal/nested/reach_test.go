package nested

import (
	"math/rand/v2"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
)

// pages is a list of pieces as a map from page to permissions, and whether the addresses in
// it are among those that were given.
type pages map[uint64]paging.Perm

func piece(first, n, addr uint64, perm paging.Perm) Piece {
	return Piece{mem.Range{First: first, Last: first + n - 1}, addr, perm}
}

// TestFlatten compares with the same done page by page.
func TestFlatten(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		var in []Piece
		want, where := pages{}, map[uint64]map[uint64]bool{}
		for range 1 + r.IntN(12) {
			p := piece(r.Uint64N(40), 1+r.Uint64N(20), 1000+r.Uint64N(50), paging.Perm(1+r.IntN(7)))
			in = append(in, p)
			for a := p.First; a <= p.Last; a++ {
				want[a] |= p.Perm
				if where[a] == nil {
					where[a] = map[uint64]bool{}
				}
				where[a][p.at(a)] = true
			}
		}
		got := pages{}
		last := uint64(0)
		for i, p := range flatten(in) {
			if i > 0 && p.First <= last {
				t.Fatalf("%v overlaps", p)
			}
			last = p.Last
			for a := p.First; a <= p.Last; a++ {
				got[a] = p.Perm
				if !where[a][p.at(a)] {
					t.Fatalf("%d is not at %d", a, p.at(a))
				}
			}
		}
		if len(got) != len(want) {
			t.Fatalf("%d pages, want %d", len(got), len(want))
		}
		for a, perm := range want {
			if got[a] != perm {
				t.Fatalf("%d: %v, want %v", a, got[a], perm)
			}
		}
	}
}

// TestOverlaps compares with the same done page by page.
func TestOverlaps(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	list := func() []Piece {
		var in []Piece
		for range 1 + r.IntN(8) {
			in = append(in, piece(r.Uint64N(60), 1+r.Uint64N(9), 1000+r.Uint64N(50), paging.Perm(1+r.IntN(7))))
		}
		return flatten(in)
	}
	for range 500 {
		a, b := list(), list()
		got := map[uint64]bool{}
		for _, o := range overlaps(a, b) {
			for x := o.First; x <= o.Last; x++ {
				got[x] = true
				pa, _ := find(a, mem.Phys(x))
				pb, _ := find(b, mem.Phys(x))
				if o.A.at(x) != pa.at(x) || o.B.at(x) != pb.at(x) || o.A.Perm != pa.Perm || o.B.Perm != pb.Perm {
					t.Fatalf("%d: %v, in %v and %v", x, o, pa, pb)
				}
			}
		}
		for x := range uint64(100) {
			_, inA := find(a, mem.Phys(x))
			_, inB := find(b, mem.Phys(x))
			if got[x] != (inA && inB) {
				t.Fatalf("%d is in both: %v", x, !got[x])
			}
		}
	}
}

// Many mappings of the same page are one piece, and cost no more than sorting them.
func TestFlattenOfOnePage(t *testing.T) {
	var in []Piece
	for i := range uint64(200000) {
		in = append(in, piece(0x1000, 0x1000, i<<12, paging.Read))
	}
	if out := flatten(in); len(out) != 1 || out[0].Range != in[0].Range {
		t.Errorf("%d pieces", len(out))
	}
}

func TestThrough(t *testing.T) {
	rw, r := paging.Read|paging.Write, paging.Read
	inner := []Piece{piece(0x1000, 0x3000, 0x70000, rw), piece(0x9000, 0x1000, 0x80000, rw)}
	stage := flatten([]Piece{piece(0x50000, 0x2000, 0x1000, r), piece(0x20000, 0x1000, 0x3000, rw)})
	got := flatten(through(inner, stage))
	want := []Piece{piece(0x20000, 0x1000, 0x72000, rw), piece(0x50000, 0x2000, 0x70000, r)}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("%v, want %v", got, want)
	}
}
