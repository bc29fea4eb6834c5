package kallsyms_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"nestdbg/internal/kallsyms"
	"nestdbg/internal/kallsyms/kallsymstest"
)

// TestDamage overwrites a part of the tables, and asks for every symbol: those that are
// left are as before, and what stands for a damaged one says so by not being there. So
// it is where VMCOREINFO says where they are, and where they have to be searched.
func TestDamage(t *testing.T) {
	const count, at, block = 1500, 700, 256
	for _, c := range kallsymstest.Configs() {
		symbols, m := build(count, c)
		marker := func(b []byte, i int) []byte {
			if c.Wide {
				return b[m.Markers-m.Base:][8*i:]
			}
			return b[m.Markers-m.Base:][4*i:]
		}
		index := func(b []byte, i int) []byte { return b[m.TokenIndex-m.Base:][2*i:] }
		for name, d := range map[string]struct {
			edit        func([]byte)
			first, last int // symbols that may be lost; none if the last is before the first
		}{
			"a token's number":       {func(b []byte) { index(b, 100)[0] ^= 0x40 }, 0, -1},
			"numbers of tokens":      {func(b []byte) { copy(index(b, 100), "\xff\xff\xff\xff\xff\xff\xff\xff") }, 0, -1},
			"a marker":               {func(b []byte) { marker(b, 3)[1] ^= 0x40 }, 0, -1},
			"a marker without value": {func(b []byte) { copy(marker(b, 1), "\x00\x00") }, 0, -1},
			"the last marker":        {func(b []byte) { marker(b, 5)[2] = 0xff }, 0, -1},
			"the first block":        {func(b []byte) { b[nameAt(m, 100)]++ }, 0, block - 1},
			"a marker and a name":    {func(b []byte) { marker(b, 5)[1] ^= 0x40; b[nameAt(m, at)]++ }, at / block * block, at/block*block + block - 1},
			"a name that is longer":  {func(b []byte) { b[nameAt(m, at)]++ }, at / block * block, at/block*block + block - 1},
			"a name without length":  {func(b []byte) { b[nameAt(m, at)] = 0 }, at / block * block, at/block*block + block - 1},
			"a name too long":        {func(b []byte) { copy(b[nameAt(m, at):], "\xff\x7f") }, at / block * block, at/block*block + block - 1},
			"the last block":         {func(b []byte) { b[nameAt(m, count-2)] = 0 }, count / block * block, count - 1},
			"an address too high":    {func(b []byte) { overwrite(m, c, b, at, 4*(count-at)) }, at, at},
			"an address too low":     {func(b []byte) { overwrite(m, c, b, at, -4*at/2) }, at, at},
		} {
			t.Run(c.Name+"/"+name, func(t *testing.T) {
				image := *m
				image.Bytes = bytes.Clone(m.Bytes)
				d.edit(image.Bytes)
				check := checkTable
				if d.first <= d.last {
					check = func(t *testing.T, table *kallsyms.Table, want []kallsymstest.Symbol) {
						checkDamaged(t, table, want, d.first, d.last)
					}
				}
				found, err := kallsyms.Find(image.Bytes, m.Base)
				if err != nil {
					t.Fatal(err)
				}
				check(t, found, symbols)
				if c.Wide {
					return // no VMCOREINFO lines that old
				}
				read, err := kallsyms.Read(&virt{image: &image}, hints(m))
				if err != nil {
					t.Fatal(err)
				}
				check(t, read, symbols)
			})
		}
	}
}

// checkDamaged compares a table that lacks at most the symbols from first to last.
func checkDamaged(t *testing.T, table *kallsyms.Table, want []kallsymstest.Symbol, first, last int) {
	t.Helper()
	var got []kallsyms.Symbol
	for s := range table.All() {
		got = append(got, s)
	}
	lost, i := 0, 0
	for n, s := range want {
		if i < len(got) && got[i] == kallsyms.Symbol(s) {
			i++
		} else if lost++; n < first || n > last {
			t.Fatalf("symbol %d, %+v, is not there", n, s)
		}
		g, offset, ok := table.At(s.Addr)
		if ok && (offset != 0 || g.Addr != s.Addr) {
			t.Errorf("At(%#x), symbol %d, is %+v+%#x", s.Addr, n, g, offset)
		}
		if all := table.LookupAll(s.Name); n < first && len(all) == 0 {
			t.Errorf("no symbol %s", s.Name)
		}
	}
	if i != len(got) || lost == 0 || table.Damage() == "" {
		t.Errorf("%d symbols, %d as they were, %d lost, damage %q", len(got), i, lost, table.Damage())
	}
}

// nameAt is the offset in the image of the length of symbol i's name.
func nameAt(m *kallsymstest.Image, i int) int {
	at := int(m.Names - m.Base)
	for range i {
		n := int(m.Bytes[at])
		if n >= 0x80 {
			at, n = at+1, n&0x7f|int(m.Bytes[at+1])<<7
		}
		at += 1 + n
	}
	return at
}

// overwrite replaces the address of symbol i by that of one so many table entries away,
// in bytes of a table of 4-byte words.
func overwrite(m *kallsymstest.Image, c kallsymstest.Config, b []byte, i, away int) {
	switch c.Encoding {
	case kallsymstest.Absolute:
		table := b[m.Addresses-m.Base:]
		copy(table[8*i:8*i+8], table[8*i+2*away:])
	case kallsymstest.PlaceRelative: // relative to its own place
		table := b[m.Offsets-m.Base:]
		v := binary.LittleEndian.Uint32(table[4*i+away:])
		binary.LittleEndian.PutUint32(table[4*i:], v+uint32(away))
	default:
		table := b[m.Offsets-m.Base:]
		copy(table[4*i:4*i+4], table[4*i+away:])
	}
}

func BenchmarkDamaged(b *testing.B) {
	_, m := build(200000, kallsymstest.Configs()[8])
	m.Bytes[nameAt(m, 100000)]++
	for b.Loop() {
		if _, err := kallsyms.Read(&virt{image: m}, hints(m)); err != nil {
			b.Fatal(fmt.Errorf("read: %w", err))
		}
	}
}

// TestTokenTooMany makes one token of two, or two of one. All numbers behind it would
// stand for the next or the last token, and so no name is believed.
func TestTokenTooMany(t *testing.T) {
	_, m := build(600, kallsymstest.Configs()[8])
	table := m.Bytes[m.TokenTable-m.Base : m.TokenIndex-m.Base]
	table = bytes.TrimRight(table, "\x00")
	for at, was := range table {
		table[at] = 'x'
		if was != 0 {
			table[at] = 0
		}
		for name, try := range map[string]func() (*kallsyms.Table, error){
			"found": func() (*kallsyms.Table, error) { return kallsyms.Find(m.Bytes, m.Base) },
			"read":  func() (*kallsyms.Table, error) { return kallsyms.Read(&virt{image: m}, hints(m)) },
		} {
			if got, err := try(); err == nil {
				t.Errorf("byte %d of %d was %#x: %s %d symbols", at, len(table), was, name, got.Len())
			}
		}
		table[at] = was
	}
}

// A number of symbols that is too low is not the end of the table: the names say how
// many there are.
func TestReadWrongCount(t *testing.T) {
	symbols, m := build(1500, kallsymstest.Configs()[8])
	for _, less := range []byte{1, 200} { // within the last block
		image := *m
		image.Bytes = bytes.Clone(m.Bytes)
		image.Bytes[m.NumSyms-m.Base] -= less
		table, err := kallsyms.Read(&virt{image: &image}, hints(m))
		if err != nil {
			t.Fatal(err)
		}
		checkTable(t, table, symbols)
	}
}
