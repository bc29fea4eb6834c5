package pagingtest

import (
	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
)

// Guest is the memory that a builder's tables map, as whoever lives behind them
// sees it: a page that is touched for the first time gets a frame below and is
// mapped. Build tables in it to get two stages.
//
// It finds bytes by the builder's records and not by the tables, so it is an
// oracle for a paging.Space over the same tables.
type Guest struct{ b *Builder }

// Guest returns the memory behind the tables.
func (b *Builder) Guest() *Guest { return &Guest{b} }

// ReadPhys implements mem.PhysReader.
func (g *Guest) ReadPhys(p []byte, a mem.Phys) (int, error) {
	return g.each(p, a, g.b.memory.ReadPhys)
}

// WritePhys implements Memory.
func (g *Guest) WritePhys(p []byte, a mem.Phys) (int, error) {
	return g.each(p, a, g.b.memory.WritePhys)
}

func (g *Guest) each(p []byte, a mem.Phys, do func([]byte, mem.Phys) (int, error)) (int, error) {
	for n := 0; n < len(p); {
		size := min(len(p)-n, 4096-int(a%4096))
		phys, _, ok := g.b.Lookup(uint64(a))
		if !ok {
			page := uint64(a) &^ 4095
			all := paging.Read | paging.Write | paging.Exec | paging.User | paging.UserExec
			g.b.Map(page, g.b.frames.Take(), 4096, g.b.Express(all))
			phys, _, _ = g.b.Lookup(uint64(a))
		}
		if m, err := do(p[n:n+size], phys); err != nil {
			return n + m, err
		}
		n += size
		a += mem.Phys(size)
	}
	return len(p), nil
}
