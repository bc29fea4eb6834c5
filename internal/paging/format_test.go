package paging

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
)

// eachRule calls check for every role of every level of every format.
func eachRule(check func(name string, r *entryRule)) {
	for _, f := range Formats() {
		for i, l := range f.levels {
			for role, r := range map[string]*entryRule{"table": l.table, "leaf": l.leaf} {
				if r != nil {
					check(fmt.Sprintf("%s level %d %s", f.Name, f.level(i), role), r)
				}
			}
		}
	}
}

// TestFlagTables: a bit has one name, a name one bit, and a name is not for an
// address bit.
func TestFlagTables(t *testing.T) {
	eachRule(func(name string, r *entryRule) {
		var bits uint64
		names := map[string]bool{}
		for _, x := range r.flags {
			mask := uint64(1<<x.width-1) << x.bit
			if bits&mask != 0 {
				t.Errorf("%s: %s has bits that another flag has", name, x.name)
			}
			bits |= mask
			if names[x.name] {
				t.Errorf("%s: two flags %s", name, x.name)
			}
			names[x.name] = true
			if x.values != nil && len(x.values) != 1<<x.width {
				t.Errorf("%s: %s has %d values for %d bits", name, x.name, len(x.values), x.width)
			}
		}
		if address := r.addr | r.high.mask; bits&address != 0 {
			t.Errorf("%s: named bits %#x are address", name, bits&address)
		}
		if len(r.flags) == 0 {
			t.Errorf("%s: no flags", name)
		}
	})
}

// TestRuleBits: no bit is both address and reserved, or permission and reserved.
func TestRuleBits(t *testing.T) {
	eachRule(func(name string, r *entryRule) {
		if r.addr&r.reserved != 0 || r.high.mask&(r.reserved|r.addr) != 0 {
			t.Errorf("%s: address bits are reserved", name)
		}
		for _, p := range r.perms {
			if p.bit&(r.reserved|r.addr) != 0 {
				t.Errorf("%s: permission %v is reserved or address", name, p.perm)
			}
		}
	})
}

// TestRangesLimit has more tables than the limit.
func TestRangesLimit(t *testing.T) {
	m := memtest.NewMemory()
	for i := range mem.Phys(512) {
		m.PutUint64(0x10_0000+8*i, 0x10_0007)
	}
	leaves, failures := 0, 0
	var rest Mapping
	for m, err := range X86FourLevel.ranges(m, 0x10_0000, mem.Range{First: 0, Last: ^uint64(0)}, 10) {
		if err == nil {
			leaves++
			continue
		}
		failures++
		rest = m
		if !errors.Is(err, ErrCorrupt) || errors.Is(err, mem.ErrFault) {
			t.Error(err)
		}
	}
	// Three tables on the way down, then seven of the last level.
	if leaves != 7*512 || failures != 1 || rest.First != 7<<21 || rest.Last() != ^uint64(0) {
		t.Errorf("%d leaves, %d failures, the last for %+v", leaves, failures, rest)
	}
}

func TestFlags(t *testing.T) {
	for _, c := range []struct {
		format string
		level  int
		leaf   bool
		entry  uint64
		want   string
	}{
		{"x86-4level", 4, false, 0x1234_5067, "P R/W U/S A AVL6"},
		{"x86-4level", 1, true, 1<<63 | 5<<59 | 0x1234_5000 | 0x9e3, "P R/W A D PAT G PKEY=5 NX AVL11"},
		{"x86-4level", 2, true, 0x1220_1000 | 0x1e1, "P A D G PS PAT"},
		{"x86-4level", 1, true, 1<<58 | 0x601, "P AVL9 AVL10 AVL58"},
		{"x86-4level", 4, false, 0x81, "P reserved 7"},
		{"x86-4level", 1, true, 0x1234_5066, ""},
		{"x86-pae", 3, false, 0x1019, "P PWT PCD"},
		{"x86-pae", 3, false, 0x1003, "P reserved 1"},
		{"x86-2level-pse", 2, true, 0x1200_1087 | 0xab<<13, "P R/W U/S PS PAT"},
		{"npt4", 1, true, 1<<51 | 0x7, "P R/W U/S reserved 51"},
		{"ept4", 4, false, 0x107, "R W X A"},
		{"ept4", 1, true, 1<<63 | 0x1234_5377, "R W X A WB IPAT D SVE"},
		{"ept4", 2, true, 0x81, "R UC PS"},
		{"ept4", 2, true, 0x91, "R MT=2 PS"},
		{"ept4-mbec", 1, true, 0x430, "WB XU"},
		{"ept4", 1, true, 0x430, ""},
		{"ept4", 5, true, 0x7, ""},
		{"ept4", 0, true, 0x7, ""},
		{"ept4", -1, true, 0x7, ""},
		{"ept4", 1, false, 0x7, ""},
	} {
		f, err := ByName(c.format)
		if err != nil {
			t.Fatal(err)
		}
		got := f.Flags(c.level, c.leaf, c.entry)
		slices.Sort(got)
		want := append([]string(nil), split(c.want)...)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s level %d %#x: %q, want %q", c.format, c.level, c.entry, got, want)
		}
	}
}

// split cuts at blanks, but not in "reserved 7".
func split(s string) []string {
	words := strings.Fields(strings.ReplaceAll(s, "reserved ", "reserved_"))
	for i := range words {
		words[i] = strings.ReplaceAll(words[i], "_", " ")
	}
	return words
}

func TestLevelName(t *testing.T) {
	for level, want := range map[int]string{5: "PML5", 4: "PML4", 3: "PDPT", 2: "PD", 1: "PT", 0: "level 0", 6: "level 6"} {
		if got := LevelName(level); got != want {
			t.Errorf("%d: %s", level, got)
		}
	}
}

func TestPermString(t *testing.T) {
	for p, want := range map[Perm]string{
		0: "----", Read | Write | Exec | User: "rwxu", Read | Exec: "r-x-", Exec: "--x-",
		Read | User: "r--u", Read | UserExec: "r---X",
	} {
		if got := p.String(); got != want {
			t.Errorf("%d: %s, want %s", p, got, want)
		}
	}
}

func TestNotMappedErrorText(t *testing.T) {
	for _, c := range []struct {
		err  NotMappedError
		want string
	}{
		{NotMappedError{Format: "npt4", Addr: 0x1000, Level: 2, Reason: "not present"},
			"0x1000 is not mapped by npt4: not present at level 2"},
		{NotMappedError{Format: "npt4", Addr: 1 << 48, Reason: "address beyond 48 bits"},
			"0x1000000000000 is not mapped by npt4: address beyond 48 bits"},
		{NotMappedError{Format: "npt4", Addr: 1, Level: 4, Reason: "cannot read the table", Err: mem.ErrNoRAM},
			"0x1 is not mapped by npt4: cannot read the table at level 4: no RAM at this physical address"},
	} {
		if got := c.err.Error(); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}

// TestFinishRefuses has formats that contradict themselves.
func TestFinishRefuses(t *testing.T) {
	leaf := &entryRule{}
	for name, f := range map[string]Format{
		"no levels for the bits": {IndexBits: []uint{9}},
		"no role":                {IndexBits: []uint{9}, levels: []level{{}}},
		"a table at the end":     {IndexBits: []uint{9}, levels: []level{{table: leaf, leaf: leaf}}},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: accepted", name)
				}
			}()
			f.finish()
		}()
	}
}
