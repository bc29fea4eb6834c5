package paging

import "sync/atomic"

// tableCache remembers tables by the addresses they translate: a direct-mapped
// cache for each level, that of the last level large enough for 4 GiB of 4 KiB
// pages, those above for whatever is in use. Tables are never changed once they
// are in it, so that readers need no lock; who wants an empty cache takes a new
// one.
type tableCache struct {
	last  [1 << lastSlotBits]atomic.Pointer[table]
	above [maxLevels - 1][1 << aboveSlotBits]atomic.Pointer[table]
}

const (
	lastSlotBits  = 11
	aboveSlotBits = 7
	maxLevels     = 5
)

// table is one table. key is the addresses it translates, without the bits below
// its span.
type table struct {
	key   uint64
	bytes []byte
}

// slot is where a table belongs. The multiplication (Fibonacci hashing) keeps
// regions at round distances, as kernels lay them out, from sharing slots.
func (c *tableCache) slot(level int, key uint64) *atomic.Pointer[table] {
	h := key * 0x9e37_79b9_7f4a_7c15
	if level == 1 {
		return &c.last[h>>(64-lastSlotBits)]
	}
	return &c.above[level-2][h>>(64-aboveSlotBits)]
}

func (c *tableCache) lookup(level int, key uint64) *table {
	if t := c.slot(level, key).Load(); t != nil && t.key == key {
		return t
	}
	return nil
}

func (c *tableCache) store(level int, t *table) { c.slot(level, t.key).Store(t) }
