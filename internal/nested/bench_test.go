package nested_test

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/nested"
	"nestdbg/internal/nested/nestedtest"
)

// BenchmarkFind searches memory with pages of all kinds: "ratio" is its rate, divided
// by that of reading the same memory, with GOMAXPROCS=1. 0.5 is what it has to be at least.
func BenchmarkFind(b *testing.B) {
	const size = 256 << 20
	memory := make([]byte, size)
	random := rand.New(rand.NewPCG(1, 1))
	for a := 0; a < size; a += 4096 {
		switch kind := random.IntN(4); {
		case kind == 1: // tables
			for o := 0; o < 4096; o += 8 {
				binary.LittleEndian.PutUint64(memory[a+o:], random.Uint64N(size)&^0xfff|0x67)
			}
		case kind > 1: // text and data
			for o := 0; o < 4096; o += 8 {
				binary.LittleEndian.PutUint64(memory[a+o:], random.Uint64())
			}
		}
	}
	image, err := mem.NewImage([]mem.Segment{{Data: memory}})
	if err != nil {
		b.Fatal(err)
	}
	w := nestedtest.New()
	m := w.Machine(w.Host(0, text, stack))
	m.Phys = image
	begin := time.Now()
	var sum uint64
	for a := 0; a < size; a += 8 {
		sum += binary.LittleEndian.Uint64(memory[a:])
	}
	reading := time.Since(begin)
	b.SetBytes(size)
	begin = time.Now()
	rounds := 0
	for b.Loop() {
		rounds++
		if found, _ := nested.Find(&machine.Tower{Machines: []*machine.Machine{m}}, nested.Options{}); len(found) > 0 {
			b.Fatalf("%+v, %d", found[0], sum)
		}
	}
	b.ReportMetric(reading.Seconds()/(time.Since(begin).Seconds()/float64(rounds)), "ratio")
}
