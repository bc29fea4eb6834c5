package kallsyms_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nestdbg/internal/kallsyms"
	"nestdbg/internal/kallsyms/kallsymstest"
	"nestdbg/internal/mem"
)

const base = 0xffffffff9c200000

// build packs count plausible symbols as c says.
func build(count int, c kallsymstest.Config) ([]kallsymstest.Symbol, *kallsymstest.Image) {
	symbols := kallsymstest.Symbols(count, base, c.Encoding == kallsymstest.AbsolutePercpu)
	return symbols, kallsymstest.Build(symbols, base, c)
}

// virt is an image as virtual memory. failAt makes its nth read fail.
type virt struct {
	image  *kallsymstest.Image
	reads  int
	failAt int
}

func (v *virt) ReadVirt(p []byte, a mem.Virt) (int, error) {
	v.reads++
	fault := &mem.FaultError{Space: "test", Addr: uint64(a)}
	off := uint64(a) - v.image.Base
	if v.reads == v.failAt || off > uint64(len(v.image.Bytes)) {
		return 0, fault
	}
	n := copy(p, v.image.Bytes[off:])
	if n < len(p) {
		fault.Addr += uint64(n)
		return n, fault
	}
	return n, nil
}

func hints(m *kallsymstest.Image) kallsyms.Hints {
	return kallsyms.Hints{
		Names: m.Names, NumSyms: m.NumSyms, TokenTable: m.TokenTable, TokenIndex: m.TokenIndex,
		Offsets: m.Offsets, RelativeBase: m.RelativeBase, Addresses: m.Addresses, Stext: m.Base,
	}
}

// checkTable compares a table with the symbols that were packed.
func checkTable(t *testing.T, got *kallsyms.Table, want []kallsymstest.Symbol) {
	t.Helper()
	if got.Len() != len(want) {
		t.Fatalf("%d symbols, want %d", got.Len(), len(want))
	}
	byName := map[string][]kallsyms.Symbol{}
	i := 0
	for s := range got.All() {
		if s != kallsyms.Symbol(want[i]) {
			t.Fatalf("symbol %d is %+v, want %+v", i, s, want[i])
		}
		byName[s.Name] = append(byName[s.Name], s)
		i++
	}
	for name, all := range byName {
		if first, ok := got.Lookup(name); !ok || first != all[0] {
			t.Errorf("Lookup(%s) = %+v, %v, want %+v", name, first, ok, all[0])
		}
		if diff := cmp.Diff(all, got.LookupAll(name)); diff != "" {
			t.Errorf("LookupAll(%s): %s", name, diff)
		}
	}
	checkAt(t, got, want)
}

// checkAt asks for every place between two symbols, by a slow and simple rule.
func checkAt(t *testing.T, got *kallsyms.Table, want []kallsymstest.Symbol) {
	t.Helper()
	var best kallsymstest.Symbol
	for i, s := range want {
		if s.Type == 'A' {
			if g, _, ok := got.At(s.Addr); ok {
				t.Errorf("At(%#x) = %+v, but only per-CPU symbols are there", s.Addr, g)
			}
			continue
		}
		if s.Addr != best.Addr {
			best = s
		}
		probes := []uint64{s.Addr}
		if i+1 < len(want) && want[i+1].Addr > s.Addr {
			probes = append(probes, s.Addr+1, want[i+1].Addr-1)
			if size, ok := got.Size(s.Addr); !ok || size != want[i+1].Addr-s.Addr {
				t.Errorf("Size(%#x) = %#x, %v", s.Addr, size, ok)
			}
		}
		for _, a := range probes {
			g, off, ok := got.At(a)
			if !ok || g != kallsyms.Symbol(best) || off != a-best.Addr {
				t.Fatalf("At(%#x) = %+v+%#x, %v, want %+v", a, g, off, ok, best)
			}
		}
	}
	last := want[len(want)-1].Addr
	for _, a := range []uint64{0, base - 1, last + 1, 1<<64 - 1} {
		if g, _, ok := got.At(a); ok {
			t.Errorf("At(%#x) = %+v, outside of the kernel", a, g)
		}
	}
}

func TestEveryLayout(t *testing.T) {
	for _, c := range kallsymstest.Configs() {
		// 513 symbols leave one in the last group, 1024 fill it.
		for _, count := range []int{513, 1024, 1500} {
			t.Run(fmt.Sprintf("%s/%d", c.Name, count), func(t *testing.T) {
				symbols, m := build(count, c)
				found, err := kallsyms.Find(m.Bytes, m.Base)
				if err != nil {
					t.Fatal(err)
				}
				checkTable(t, found, symbols)
				if c.Wide {
					return // no VMCOREINFO lines that old
				}
				read, err := kallsyms.Read(&virt{image: m}, hints(m))
				if err != nil {
					t.Fatal(err)
				}
				checkTable(t, read, symbols)
			})
		}
	}
}

// Kernels without KALLSYMS_ALL list functions only, and then on arm64 not _text.
func TestFindWithoutText(t *testing.T) {
	c := kallsymstest.Configs()[3]
	symbols := slices.DeleteFunc(kallsymstest.Symbols(600, base+0x10000, false),
		func(s kallsymstest.Symbol) bool { return s.Name == "_text" })
	m := kallsymstest.Build(symbols, base, c)
	table, err := kallsyms.Find(m.Bytes, base)
	if err != nil {
		t.Fatal(err)
	}
	if s, ok := table.Lookup("_stext"); !ok || s.Addr != base+0x10000 {
		t.Errorf("_stext is %+v", s)
	}
}

func TestFindErrors(t *testing.T) {
	_, m := build(600, kallsymstest.Configs()[8])
	twice := append(bytes.Clone(m.Bytes), make([]byte, -len(m.Bytes)&7)...)
	twice = append(twice, m.Bytes...)
	edit := func(at uint64, b ...byte) []byte {
		out := bytes.Clone(m.Bytes)
		copy(out[at-m.Base:], b)
		return out
	}
	tests := []struct {
		name  string
		image []byte
		base  uint64
		class error
		text  string
	}{
		{"empty", nil, base, kallsyms.ErrNotFound, "0x0 bytes"},
		{"nothing in it", make([]byte, 1<<16), base, kallsyms.ErrNotFound, ""},
		{"two sets of tables", twice, base, kallsyms.ErrAmbiguous, "2 readings"},
		{"another base", m.Bytes, base + 0x200000, kallsyms.ErrCorrupt, "kernel's start"},
		{"descending addresses", edit(m.Offsets+4*300, descending(300)...), base,
			kallsyms.ErrCorrupt, "out of order"},
		{"no count", edit(m.NumSyms, 0, 0), base, kallsyms.ErrCorrupt, "no names"},
		{"wrong markers", edit(m.Markers+4, 0, 0, 0, 0, 0, 0), base, kallsyms.ErrCorrupt, "no names"},
		{"wrong token index", edit(m.TokenIndex+100, bytes.Repeat([]byte{0xff}, 200)...), base, kallsyms.ErrNotFound, ""},
		{"bad symbol type", edit(m.Names+1, '7'), base, kallsyms.ErrCorrupt, "symbol 0 is named"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			table, err := kallsyms.Find(tt.image, tt.base)
			if table != nil || !errors.Is(err, tt.class) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, %v, want %v with %q", table, err, tt.class, tt.text)
			}
		})
	}
}

// descending are offsets that descend.
func descending(count int) []byte {
	var b []byte
	for i := range count {
		b = binary.LittleEndian.AppendUint32(b, uint32(int32(-1-(count-i))))
	}
	return b
}

func TestReadErrors(t *testing.T) {
	_, m := build(600, kallsymstest.Configs()[8])
	tests := []struct {
		name  string
		edit  func(*kallsyms.Hints)
		class error
	}{
		{"no addresses", func(h *kallsyms.Hints) { h.Offsets = 0 }, kallsyms.ErrNotFound},
		{"no count", func(h *kallsyms.Hints) { h.NumSyms = 0 }, mem.ErrFault},
		{"count elsewhere", func(h *kallsyms.Hints) { h.NumSyms = m.Base }, kallsyms.ErrCorrupt},
		{"tables reversed", func(h *kallsyms.Hints) { h.Names = m.TokenIndex }, kallsyms.ErrCorrupt},
		{"index elsewhere", func(h *kallsyms.Hints) { h.TokenIndex += 8 }, kallsyms.ErrCorrupt},
		{"base elsewhere", func(h *kallsyms.Hints) { h.RelativeBase -= 8 }, kallsyms.ErrCorrupt},
		{"no base", func(h *kallsyms.Hints) { h.RelativeBase = 0 }, kallsyms.ErrCorrupt},
		{"another kernel", func(h *kallsyms.Hints) { h.Stext++ }, kallsyms.ErrCorrupt},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := hints(m)
			tt.edit(&h)
			table, err := kallsyms.Read(&virt{image: m}, h)
			if table != nil || !errors.Is(err, tt.class) {
				t.Errorf("got %v, %v, want %v", table, err, tt.class)
			}
		})
	}
}

// Every read that fails must come out as a fault, and every read is reached.
func TestReadFaults(t *testing.T) {
	_, m := build(600, kallsymstest.Configs()[8])
	for n := 1; ; n++ {
		v := &virt{image: m, failAt: n}
		table, err := kallsyms.Read(v, hints(m))
		if v.reads < n {
			if err != nil {
				t.Fatal(err)
			}
			if n < 6 {
				t.Fatalf("only %d reads", n-1)
			}
			return
		}
		if table != nil || !errors.Is(err, mem.ErrFault) {
			t.Fatalf("read %d failed, got %v", n, err)
		}
	}
}

// use asks a table that may hold anything.
func use(t *kallsyms.Table) {
	for s := range t.All() {
		t.At(s.Addr + 1)
		t.Lookup(s.Name)
	}
}

// Damaged images give an error or a table that works, and in bounded time.
func TestBitFlips(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	start := time.Now()
	tables := 0
	for _, c := range kallsymstest.Configs() {
		_, m := build(600, c)
		for range 500 {
			image := &kallsymstest.Image{Bytes: bytes.Clone(m.Bytes), Base: m.Base}
			for range 1 + random.IntN(4) {
				at := c.Pad + random.IntN(len(image.Bytes)-c.Pad)
				image.Bytes[at] ^= 1 << random.IntN(8)
			}
			table, err := kallsyms.Find(image.Bytes, base)
			if (table == nil) == (err == nil) {
				t.Fatalf("got both or neither: %v, %v", table, err)
			}
			if table != nil {
				tables++
				use(table)
			}
			if table, err := kallsyms.Read(&virt{image: image}, hints(m)); err == nil {
				use(table)
			}
		}
	}
	if tables == 0 {
		t.Error("no flip was harmless, so nothing was tested")
	}
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("took %v", d)
	}
}

// Images made to look promising everywhere must not take long.
func TestHostileImages(t *testing.T) {
	_, m := build(600, kallsymstest.Configs()[4])
	tables := m.Bytes[m.TokenTable-m.Base : m.TokenIndex-m.Base+512]
	digits := []byte("0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00")
	markers := []byte{0, 0, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0}
	images := map[string][]byte{
		"digits only":       bytes.Repeat(digits, 1<<18),
		"token tables only": bytes.Repeat(tables, 4000),
		"zeros, tokens":     append(make([]byte, 12<<20), tables...),
		"markers, tokens":   append(bytes.Repeat(markers, 1<<20), tables...),
	}
	for name, image := range images {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			if table, err := kallsyms.Find(image, base); err == nil {
				t.Errorf("found %d symbols", table.Len())
			}
			if d := time.Since(start); d > 10*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

// Address 0 and the last address are addresses like any other.
func TestEdgesOfAddressSpace(t *testing.T) {
	symbols := []kallsymstest.Symbol{
		{Name: "_text", Addr: 0, Type: 'T'}, {Name: "zero", Addr: 0, Type: 't'},
	}
	for i := range uint64(600) {
		symbols = append(symbols, kallsymstest.Symbol{Name: "f", Addr: 16 * i, Type: 't'})
	}
	symbols = append(symbols, kallsymstest.Symbol{Name: "top", Addr: 1<<64 - 1, Type: 't'})
	m := kallsymstest.Build(symbols, 0, kallsymstest.Configs()[2])
	table, err := kallsyms.Find(m.Bytes, 0)
	if err != nil {
		t.Fatal(err)
	}
	if s, off, ok := table.At(3); !ok || s.Name != "_text" || off != 3 {
		t.Errorf("At(3) = %+v+%d, %v", s, off, ok)
	}
	if s, off, ok := table.At(1<<64 - 1); !ok || s.Name != "top" || off != 0 {
		t.Errorf("At(2^64-1) = %+v+%d, %v", s, off, ok)
	}
	if size, ok := table.Size(1<<64 - 1); ok {
		t.Errorf("the last symbol has size %d", size)
	}
}

// A table whose symbols all share one name and one address is legal.
func TestManyEqual(t *testing.T) {
	symbols := []kallsymstest.Symbol{{Name: "_text", Addr: base, Type: 'T'}}
	for range 100000 {
		symbols = append(symbols, kallsymstest.Symbol{Name: "twin", Addr: base + 0x40, Type: 't'})
	}
	m := kallsymstest.Build(symbols, base, kallsymstest.Configs()[9])
	table, err := kallsyms.Find(m.Bytes, base)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(table.LookupAll("twin")); n != 100000 {
		t.Errorf("%d twins", n)
	}
}
