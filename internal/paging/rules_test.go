package paging_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
	"nestdbg/internal/paging"
	"nestdbg/internal/paging/pagingtest"
)

// one is a format with a single page mapped, the rest of its tables empty.
type one struct {
	format *paging.Format
	memory *memtest.Memory
	tables *pagingtest.Builder
	addr   uint64
	level  int // of the leaf
}

const onePhys = 0x1_4000_0000

// mapOne maps a page of the level's size with every permission. The address has
// a different index at each level.
func mapOne(f *paging.Format, level int) *one {
	o := &one{format: f, memory: memtest.NewMemory(below1G), level: level}
	o.tables = pagingtest.New(f.Name, o.memory, someFrames(0))
	size := o.tables.PageSizes()[level-1]
	o.addr = canonical(f, 0xffff_8765_4321_0000) &^ (size - 1)
	phys := mem.Phys(onePhys)
	if f.EntrySize == 4 && level == 1 {
		phys = 0x4000_0000
	}
	o.tables.Map(o.addr, phys, size, o.tables.Express(allPerms))
	return o
}

func (o *one) walk() (paging.Translation, error) {
	return o.format.Walk(o.memory, o.tables.Root(), o.addr)
}

// set and clear change bits of the entry of a level.
func (o *one) set(level int, bits uint64) {
	o.tables.Edit(o.addr, level, func(e uint64) uint64 { return e | bits })
}

func (o *one) clear(level int, bits uint64) {
	o.tables.Edit(o.addr, level, func(e uint64) uint64 { return e &^ bits })
}

// refused checks that the page is not mapped, and why.
func (o *one) refused(t *testing.T, level int, cause paging.Cause, reason string) {
	t.Helper()
	tr, err := o.walk()
	var nm *paging.NotMappedError
	if !errors.As(err, &nm) {
		t.Errorf("mapped to %#x, error %v; want %q", tr.Phys, err, reason)
		return
	}
	if nm.Level != level || nm.Cause != cause || !strings.Contains(nm.Reason, reason) {
		t.Errorf("%v (level %d, cause %d), want %q at level %d, cause %d",
			err, nm.Level, nm.Cause, reason, level, cause)
	}
	if !errors.Is(err, mem.ErrFault) {
		t.Errorf("%v is no memory fault", err)
	}
	if n := o.format.Levels() - level + 1; len(nm.Steps) != n || len(tr.Steps) != n {
		t.Errorf("%d and %d steps, want %d", len(nm.Steps), len(tr.Steps), n)
	}
	if nm.Addr != o.addr || nm.Format != o.format.Name {
		t.Errorf("error is about %#x in %s", nm.Addr, nm.Format)
	}
	space := paging.NewSpace("s", o.format, o.memory, o.tables.Root())
	if _, _, err := space.Translate(o.addr); !errors.As(err, &nm) || nm.Cause != cause {
		t.Errorf("the space says %v", err)
	}
	for m, err := range o.format.Ranges(o.memory, o.tables.Root(), everything) {
		t.Errorf("Ranges lists %+v, %v", m, err)
	}
}

var everything = mem.Range{First: 0, Last: ^uint64(0)}

// allowed checks that the page is mapped with these permissions.
func (o *one) allowed(t *testing.T, want paging.Perm) {
	t.Helper()
	tr, err := o.walk()
	if err != nil {
		t.Error(err)
	} else if tr.Perm != want {
		t.Errorf("permissions %v, want %v", tr.Perm, want)
	}
	for m, err := range o.format.Ranges(o.memory, o.tables.Root(), everything) {
		if err != nil || m.Perm != want {
			t.Errorf("Ranges: permissions %v, error %v; want %v", m.Perm, err, want)
		}
	}
}

// eachLeaf runs check for each size of page of each format.
func eachLeaf(t *testing.T, check func(t *testing.T, f *paging.Format, level int)) {
	for _, f := range tabled() {
		sizes := pagingtest.New(f.Name, memtest.NewMemory(), someFrames(0)).PageSizes()
		for level := 1; level <= len(sizes); level++ {
			t.Run(fmt.Sprintf("%s/leaf%d", f.Name, level), func(t *testing.T) { check(t, f, level) })
		}
	}
}

func isEPT(f *paging.Format) bool  { return strings.HasPrefix(f.Name, "ept") }
func isNPT(f *paging.Format) bool  { return strings.HasPrefix(f.Name, "npt") }
func isMBEC(f *paging.Format) bool { return strings.HasSuffix(f.Name, "mbec") }
func isPAE(f *paging.Format) bool  { return strings.Contains(f.Name, "pae") }

// hasNX reports whether bit 63 of the format's entries means no execution.
func hasNX(f *paging.Format) bool {
	return !isEPT(f) && f.EntrySize == 8 && !strings.HasSuffix(f.Name, "nonx")
}

// TestAttributes takes each permission away at each level, one at a time: the
// manuals want it gone from the result whatever the other levels say.
func TestAttributes(t *testing.T) {
	eachLeaf(t, func(t *testing.T, f *paging.Format, leaf int) {
		full := mapOne(f, leaf).tables.Express(allPerms)
		mapOne(f, leaf).allowed(t, full)
		for level := leaf; level <= f.Levels(); level++ {
			if isPAE(f) && level == 3 {
				continue // page-directory-pointer entries have no permissions
			}
			checkAttributes(t, f, leaf, level, full)
		}
	})
}

func checkAttributes(t *testing.T, f *paging.Format, leaf, level int, full paging.Perm) {
	t.Helper()
	clear := func(bits uint64) *one { o := mapOne(f, leaf); o.clear(level, bits); return o }
	switch {
	case isEPT(f):
		clear(0x3).allowed(t, full&^(paging.Read|paging.Write))
		clear(0x2).allowed(t, full&^paging.Write)
		clear(0x4).allowed(t, full&^paging.Exec)
		if isMBEC(f) {
			clear(0x400).allowed(t, full&^paging.UserExec)
			clear(0x7).allowed(t, paging.UserExec)
		}
	default:
		clear(0x2).allowed(t, full&^paging.Write)
		if isNPT(f) {
			clear(0x4).refused(t, level, paging.Malformed, "supervisor entry")
		} else {
			clear(0x4).allowed(t, full&^paging.User)
		}
		if hasNX(f) {
			o := mapOne(f, leaf)
			o.set(level, 1<<63)
			o.allowed(t, full&^paging.Exec)
		}
	}
}

// TestIndifferentBits sets bits that must change nothing: cache control, accessed
// and dirty, global, and those left to software.
func TestIndifferentBits(t *testing.T) {
	eachLeaf(t, func(t *testing.T, f *paging.Format, leaf int) {
		for level := leaf; level <= f.Levels(); level++ {
			bits := uint64(0xe38) // 11:9, 5:3
			if level == leaf {
				bits |= 0x140 // D, G
			}
			switch {
			case isEPT(f):
				bits = 0x07f0_0000_0000_0b00 // 58:52, 11, 9, 8
				if !isMBEC(f) {
					bits |= 0x400
				}
			case isPAE(f) && level == 3:
				bits = 0xe18 // PWT, PCD, 11:9
			case f.EntrySize == 8 && !isPAE(f):
				bits |= 0x7ff0_0000_0000_0000
			}
			if leaf > 1 && level == leaf && !isEPT(f) {
				bits |= 1 << 12 // PAT
			}
			o := mapOne(f, leaf)
			before, _ := o.walk()
			o.set(level, bits)
			after, err := o.walk()
			if err != nil || after.Phys != before.Phys || after.Perm != before.Perm {
				t.Errorf("bits %#x at level %d: %#x %v, %v", bits, level, after.Phys, after.Perm, err)
			}
		}
	})
}

// TestNotPresent clears the present bits at each level, alone and with contents
// that a kernel or a hypervisor leaves there.
func TestNotPresent(t *testing.T) {
	eachLeaf(t, func(t *testing.T, f *paging.Format, leaf int) {
		for level := leaf; level <= f.Levels(); level++ {
			present := uint64(0x1)
			if isEPT(f) {
				present = 0x407
			}
			o := mapOne(f, leaf)
			o.clear(level, present)
			o.refused(t, level, paging.NotPresent, "not present")
			for _, e := range []uint64{
				0,
				1 << 63,          // KVM's entry that is not present, Linux 6.12 SHADOW_NONPRESENT_VALUE
				1<<63 | 0x1a0,    // its frozen entry, without bit 10, which MBEC knows
				^uint64(present), // an inverted swap entry
			} {
				o.tables.Edit(o.addr, level, func(uint64) uint64 { return e })
				o.refused(t, level, paging.NotPresent, "not present")
			}
		}
	})
}

// reservedCase is bits of an entry of a level that must be zero, one at a time.
type reservedCase struct {
	formats string // names, blank separated
	leaf    int    // level of the leaf
	level   int    // level of the entry
	bits    []uint // first and last, inclusive, in pairs
}

var reservedCases = []reservedCase{
	{"x86-5level npt5", 1, 5, []uint{7, 7}},
	{"x86-4level x86-5level npt4 npt5", 1, 4, []uint{7, 7}},
	{"x86-4level npt4 x86-4level-nonx npt4-nonx", 3, 3, []uint{13, 29}},
	{"x86-4level x86-5level npt4 npt5 x86-pae npt-pae", 2, 2, []uint{13, 20}},
	{"x86-pae x86-pae-nonx npt-pae", 1, 3, []uint{1, 2, 5, 8, 52, 63}},
	{"x86-pae npt-pae", 1, 2, []uint{52, 62}},
	{"x86-pae npt-pae", 2, 2, []uint{52, 62}},
	{"x86-pae npt-pae", 1, 1, []uint{52, 62}},
	{"x86-4level-nonx x86-5level-nonx npt4-nonx npt5-nonx", 1, 4, []uint{63, 63}},
	{"x86-4level-nonx x86-pae-nonx npt-pae-nonx", 1, 2, []uint{63, 63}},
	{"x86-4level-nonx x86-pae-nonx npt-pae-nonx", 2, 2, []uint{63, 63}},
	{"x86-4level-nonx x86-pae-nonx npt-pae-nonx", 1, 1, []uint{63, 63}},
	{"x86-2level-pse npt-2level-pse", 2, 2, []uint{21, 21}},
	{"npt4 npt5", 1, 1, []uint{51, 51}},
	{"npt4 npt5", 2, 2, []uint{51, 51}},
	{"npt4 npt5", 3, 3, []uint{51, 51}},
	{"npt4 npt5", 1, 4, []uint{51, 51}},
	{"npt-pae", 1, 3, []uint{51, 51}},
	{"ept5 ept5-mbec", 1, 5, []uint{3, 7}},
	{"ept4 ept5 ept4-mbec", 1, 4, []uint{3, 7}},
	{"ept4 ept5 ept4-mbec", 1, 3, []uint{3, 6}},
	{"ept4 ept5 ept4-mbec", 1, 2, []uint{3, 6}},
	{"ept4 ept5 ept4-mbec", 3, 3, []uint{12, 29}},
	{"ept4 ept5 ept4-mbec", 2, 2, []uint{12, 20}},
}

func TestReservedBits(t *testing.T) {
	for _, c := range reservedCases {
		for _, name := range strings.Fields(c.formats) {
			t.Run(fmt.Sprintf("%s/leaf%d/level%d", name, c.leaf, c.level), func(t *testing.T) {
				f, err := paging.ByName(name)
				if err != nil {
					t.Fatal(err)
				}
				for i := 0; i < len(c.bits); i += 2 {
					for n := c.bits[i]; n <= c.bits[i+1]; n++ {
						o := mapOne(f, c.leaf)
						o.set(c.level, 1<<n)
						o.refused(t, c.level, paging.Malformed, fmt.Sprintf("reserved bit %d set", n))
					}
				}
			})
		}
	}
}

// TestPageSizeBit is about PS where it does not make a leaf.
func TestPageSizeBit(t *testing.T) {
	for _, name := range []string{"x86-2level", "npt-2level"} {
		f, _ := paging.ByName(name)
		o := mapOne(f, 1)
		o.set(2, 0x80)
		tr, err := o.walk()
		if err != nil || tr.PageSize != 4096 {
			t.Errorf("%s without CR4.PSE: page size %#x, %v", name, tr.PageSize, err)
		}
	}
	// At level 1 it is the PAT bit; EPT ignores it.
	for _, f := range tabled() {
		o := mapOne(f, 1)
		o.set(1, 0x80)
		if tr, err := o.walk(); err != nil || tr.PageSize != 4096 {
			t.Errorf("%s: bit 7 at level 1: page size %#x, %v", f.Name, tr.PageSize, err)
		}
	}
}

// TestPhysBits is reserved address bits of processors with fewer of them.
func TestPhysBits(t *testing.T) {
	for _, f := range tabled() {
		if f.EntrySize == 4 {
			continue
		}
		o := mapOne(f, 1)
		o.format = f.WithPhysBits(40)
		o.allowed(t, o.tables.Express(allPerms))
		for level := 1; level <= f.Levels(); level++ {
			for _, n := range []uint{40, 45, 50} {
				o := mapOne(f, 1)
				o.format = f.WithPhysBits(40)
				o.set(level, 1<<n)
				o.refused(t, level, paging.Malformed, fmt.Sprintf("reserved bit %d set", n))
			}
		}
		o = mapOne(f, 1)
		o.format = f.WithPhysBits(64)
		o.allowed(t, o.tables.Express(allPerms))
	}
}

// TestEncryptionBit is the C-bit of SME at the two places where processors have it.
func TestEncryptionBit(t *testing.T) {
	for _, n := range []uint{47, 51} {
		for _, f := range []*paging.Format{paging.X86FourLevel, paging.NPTFourLevel, paging.NPTFiveLevel} {
			o := mapOne(f, 1)
			before, _ := o.walk()
			for level := 1; level <= f.Levels(); level++ {
				o.set(level, 1<<n)
			}
			o.format = f.WithEncryptionBit(n)
			after, err := o.walk()
			if err != nil || after.Phys != before.Phys {
				t.Errorf("%s, bit %d: %#x, %v", f.Name, n, after.Phys, err)
			}
			if root := o.format.Root(1<<n | 0x5000); root != 0x5000 {
				t.Errorf("%s, bit %d: root %#x", f.Name, n, root)
			}
		}
	}
}

// TestLargePages is the sizes of pages, and that every address bit of an entry
// counts.
func TestLargePages(t *testing.T) {
	sizes := map[string][]uint64{
		"x86-4level": {1 << 12, 1 << 21, 1 << 30}, "x86-5level": {1 << 12, 1 << 21, 1 << 30},
		"npt4": {1 << 12, 1 << 21, 1 << 30}, "ept4": {1 << 12, 1 << 21, 1 << 30},
		"ept5-mbec": {1 << 12, 1 << 21, 1 << 30}, "x86-pae": {1 << 12, 1 << 21},
		"npt-pae": {1 << 12, 1 << 21}, "x86-2level": {1 << 12}, "x86-2level-pse": {1 << 12, 1 << 22},
	}
	for name, want := range sizes {
		f, err := paging.ByName(name)
		if err != nil {
			t.Fatal(err)
		}
		for i, size := range want {
			last := uint(51)
			switch {
			case isNPT(f):
				last = 50
			case f.EntrySize == 4 && i == 0:
				last = 31
			case f.EntrySize == 4:
				last = 39
			}
			for n := uint(0); n <= last; n++ {
				if uint64(1)<<n < size {
					continue
				}
				o := mapOne(f, i+1)
				o.tables.Map(o.addr, mem.Phys(1)<<n, size, o.tables.Express(allPerms))
				tr, err := f.Walk(o.memory, o.tables.Root(), o.addr+size-1)
				if err != nil || tr.PageSize != size || tr.Phys != mem.Phys(1)<<n+mem.Phys(size-1) {
					t.Errorf("%s: page at %#x: %#x size %#x, %v", name, uint64(1)<<n, tr.Phys, tr.PageSize, err)
				}
			}
		}
	}
}

// TestPSE36 has literal numbers: address bits 39:32 stand in bits 20:13.
func TestPSE36(t *testing.T) {
	m := memtest.NewMemory()
	m.PutUint32(0x1000+4*3, 0x1234_5678&0xffc0_0000|0xab<<13|0x87)
	tr, err := paging.X86TwoLevelPSE.Walk(m, 0x1000, 0x00c0_0000+0x2a_bcde)
	if want := mem.Phys(0xab_1200_0000 + 0x2a_bcde); err != nil || tr.Phys != want {
		t.Errorf("%#x, %v, want %#x", tr.Phys, err, want)
	}
}

// TestPAERoot has literal numbers: the root has four entries and need not be
// aligned to a page.
func TestPAERoot(t *testing.T) {
	m := memtest.NewMemory()
	root := paging.X86PAE.Root(0x1fe0 | 0x18)
	if root != 0x1fe0 {
		t.Fatalf("root %#x", root)
	}
	for i := range uint64(4) {
		m.PutUint64(root+mem.Phys(8*i), 0x10_0000+i<<12|1)
		m.PutUint64(mem.Phys(0x10_0000+i<<12), 0x40_0000*(i+1)|0x87)
		for addr, want := range map[uint64]mem.Phys{
			i << 30:          mem.Phys(0x40_0000 * (i + 1)),
			i<<30 + 0x1_2345: mem.Phys(0x40_0000*(i+1) + 0x1_2345),
		} {
			tr, err := paging.X86PAE.Walk(m, root, addr)
			if err != nil || tr.Phys != want {
				t.Errorf("%#x = %#x, %v, want %#x", addr, tr.Phys, err, want)
			}
		}
	}
}
