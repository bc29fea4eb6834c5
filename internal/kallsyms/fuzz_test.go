package kallsyms_test

import (
	"testing"

	"nestdbg/internal/kallsyms"
	"nestdbg/internal/kallsyms/kallsymstest"
)

// FuzzFind damages images and, through the hints of the intact one, reads the
// same bytes the direct way. The hash in a Table is seeded at random, so coverage
// differs from run to run; -fuzzminimizetime=10x keeps that from stalling go test.
func FuzzFind(f *testing.F) {
	for i, c := range kallsymstest.Configs() {
		c.Pad &= 0xff
		_, m := build(300, c)
		f.Add(m.Bytes, uint8(i))
	}
	intact := make([]*kallsymstest.Image, len(kallsymstest.Configs()))
	for i, c := range kallsymstest.Configs() {
		c.Pad &= 0xff
		_, intact[i] = build(300, c)
	}
	f.Fuzz(func(t *testing.T, image []byte, layout uint8) {
		table, err := kallsyms.Find(image, base)
		if (table == nil) == (err == nil) {
			t.Fatalf("got both or neither: %v, %v", table, err)
		}
		if table != nil {
			use(table)
		}
		h := hints(intact[int(layout)%len(intact)])
		read, err := kallsyms.Read(&virt{image: &kallsymstest.Image{Bytes: image, Base: base}}, h)
		if (read == nil) == (err == nil) {
			t.Fatalf("got both or neither: %v, %v", read, err)
		}
		if read != nil {
			use(read)
		}
	})
}

// The size of the largest distribution kernels.
func benchmarkTable(b *testing.B) ([]kallsymstest.Symbol, *kallsymstest.Image, *kallsyms.Table) {
	symbols, m := build(200000, kallsymstest.Configs()[8])
	table, err := kallsyms.Find(m.Bytes, base)
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	return symbols, m, table
}

func BenchmarkFind(b *testing.B) {
	_, m, _ := benchmarkTable(b)
	for b.Loop() {
		if _, err := kallsyms.Find(m.Bytes, base); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	_, m, _ := benchmarkTable(b)
	for b.Loop() {
		if _, err := kallsyms.Read(&virt{image: m}, hints(m)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	symbols, _, table := benchmarkTable(b)
	i := 0
	for b.Loop() {
		table.Lookup(symbols[i%len(symbols)].Name)
		i += 7919
	}
}

func BenchmarkAt(b *testing.B) {
	symbols, _, table := benchmarkTable(b)
	i := 0
	for b.Loop() {
		table.At(symbols[i%len(symbols)].Addr + 1)
		i += 7919
	}
}

// A table whose number of symbols is wrong is searched in vain, in all ways.
func BenchmarkFindNothing(b *testing.B) {
	_, m, _ := benchmarkTable(b)
	m.Bytes[m.NumSyms-m.Base+3] = 0x7f
	b.ReportAllocs()
	for b.Loop() {
		if _, err := kallsyms.Find(m.Bytes, base); err == nil {
			b.Fatal("found")
		}
	}
}
