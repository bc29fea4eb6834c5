package linux

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"nestdbg/internal/mem"
)

// Values of Linux 6.1, as the fake has them.
const (
	fakeBuddy   = 0xffffff7f // PAGE_BUDDY_MAPCOUNT_VALUE of Linux 6.1
	fakeTable   = 0xfffffbff // a page table
	fakeLRU     = 1 << 4
	fakePrivate = 1 << 13
	fakeSlab    = 1 << 9
)

// describeUses adds what VMCOREINFO says of struct page and pages of every kind.
func describeUses(s *fakeSystem) {
	for _, member := range []string{"flags", "mapping", "_mapcount", "private", "_refcount", "compound_head"} {
		s.info["OFFSET(page."+member+")"] = fmt.Sprint(s.types.offset("page", member))
	}
	s.info["SIZE(page)"] = fmt.Sprint(s.types.size("page"))
	s.info["LENGTH(zone.free_area)"] = "11"
	for name, v := range map[string]int{"PG_lru": 4, "PG_private": 13, "PG_slab": 9, "PAGE_BUDDY_MAPCOUNT_VALUE": -129} {
		s.info["NUMBER("+name+")"] = fmt.Sprint(v)
	}
	set := func(pfn, mapcount, refcount, flags, mapping, private uint64) {
		s.page(pfn).set("_mapcount", mapcount).set("_refcount", refcount).set("flags", flags).
			set("mapping", mapping).set("private", private)
	}
	const none, anon, file = 0xffffffff, 0xffff888000001001, 0xffff888000002000
	set(64, fakeBuddy, 0, 0, 0, 2)
	set(65, 0, 1, fakeLRU, anon, 0) // left over inside of the block
	set(70, none, 2, fakeLRU, anon, 0)
	for tail := range uint64(3) {
		s.page(71+tail).set("compound_head", s.page(70).va|1)
	}
	set(80, 0, 1, fakeLRU, file, 0)
	set(81, none, 1, fakeLRU, file, 0)
	set(82, 0, 1, fakeLRU|fakePrivate, file, 0)
	set(90, none, 1, fakeSlab, anon, 0)
	set(91, fakeTable, 1, 0, anon, 0)
	set(92, none, 0, fakeLRU, anon, 0)    // on its way
	set(93, fakeBuddy, 0, 0, 0, 2)        // not aligned to its size
	set(96, fakeBuddy, 0, 0, 0, 11)       // larger than any
	set(1022, fakeBuddy, 0, 0, 0, 1)      // the last two
	set(100, none, 1, fakeLRU, anon|2, 0) // merged with others
}

func TestPageUses(t *testing.T) {
	s := newFakeSystem(t, true)
	describeUses(s)
	k := s.find()
	names := map[PageUse]string{PageFree: "free", PageUser: "user", PageCache: "cache"}
	var got []string
	unknown, err := k.PageUses([]mem.Range{{First: 0, Last: 0x3fffff}, {First: 0x800000, Last: 0x801fff}},
		func(r mem.Range, use PageUse) {
			got = append(got, fmt.Sprintf("%d-%d %s", r.First/pageSize, r.Last/pageSize, names[use]))
		})
	want := "64-67 free; 70-73 user; 80-81 cache; 100-100 user; 1022-1023 free"
	if text := strings.Join(got, "; "); err != nil || unknown != 2 || text != want {
		t.Errorf("%s, %d unknown, %v; want %s", text, unknown, err, want)
	}
}

// TestPageUsesRefused: without the numbers that say what flags mean nothing is said.
func TestPageUsesRefused(t *testing.T) {
	for _, key := range []string{"NUMBER(PG_lru)", "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)", "NUMBER(PG_slab)", "OFFSET(page.mapping)",
		"LENGTH(zone.free_area)"} {
		s := newFakeSystem(t, true)
		describeUses(s)
		delete(s.info, key)
		_, err := s.find().PageUses([]mem.Range{{First: 0, Last: 0xffff}}, func(mem.Range, PageUse) {
			t.Errorf("without %s: a page is said to be of no use", key)
		})
		if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), key) {
			t.Errorf("without %s: %v", key, err)
		}
	}
}
