package dump_test

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"nestdbg/internal/dump"
	"nestdbg/internal/dump/dumptest"
	"nestdbg/internal/mem"
)

var methods = []dumptest.Method{dumptest.Stored, dumptest.Zlib, dumptest.LZO, dumptest.Snappy, dumptest.Zstd}

// somePages are pages of all methods around words of the bitmap, some left out.
func somePages() (pages []dumptest.Page) {
	for i, n := range []uint64{0, 1, 62, 63, 64, 65, 127, 128, 200, 1000} {
		p := dumptest.Page{Number: n, Method: methods[i%len(methods)], Data: make([]byte, 4096)}
		for k := range p.Data {
			p.Data[k] = byte(n) + byte(k%64)
		}
		pages = append(pages, p)
	}
	return append(pages, dumptest.Page{Number: 66}, dumptest.Page{Number: 999})
}

func aKdump() []byte {
	return dumptest.Kdump(1024, dumptest.Notes(dumptest.CPU(kernelCPU)...), somePages()...)
}

func readKdump(b []byte) (*dump.Kdump, error) {
	return dump.ReadKdump(bytes.NewReader(b), uint64(len(b)))
}

func TestKdump(t *testing.T) {
	plain := aKdump()
	for name, b := range map[string][]byte{"plain": plain, "flattened": dumptest.Flatten(plain, 1000),
		"flattened in large pieces": dumptest.Flatten(plain, 9000)} {
		k, err := readKdump(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(k.Problems) != 0 || len(k.CPUs) != 1 || !k.QEMU {
			t.Errorf("%s: %d CPUs, problems %q", name, len(k.CPUs), k.Problems)
		}
		if v, _ := k.CPUs[0].Get("cr3"); v != kernelCPU["cr3"] {
			t.Errorf("%s: cr3 %#x", name, v)
		}
		want := "[0x0-0x1fff 0x3e000-0x41fff 0x7f000-0x80fff 0xc8000-0xc8fff 0x3e8000-0x3e8fff]"
		if got := fmt.Sprint(k.Ranges()); got != want {
			t.Errorf("%s: ranges %s, want %s", name, got, want)
		}
		if got := fmt.Sprint(k.Excluded()); got != "[0x42000-0x42fff 0x3e7000-0x3e7fff]" {
			t.Errorf("%s: left out %s", name, got)
		}
		for _, p := range somePages() {
			got, err := k.Page(mem.Phys(p.Number * 4096))
			switch {
			case p.Data == nil && !errors.Is(err, dump.ErrExcluded):
				t.Errorf("%s: page %d, which was left out: %v", name, p.Number, err)
			case p.Data != nil && (err != nil || !bytes.Equal(got, p.Data)):
				t.Errorf("%s: page %d, method %#x: %v", name, p.Number, p.Method, err)
			}
		}
		for _, none := range []mem.Phys{0x2000, 0x3fe000, 1 << 40, ^mem.Phys(4095)} {
			if _, err := k.Page(none); !errors.Is(err, mem.ErrNoRAM) {
				t.Errorf("%s: page %#x: %v", name, none, err)
			}
		}
	}
}

// A part of a dump that was split has the descriptors of its own pages, and bitmaps of
// all: what other parts have is told from what the machine has not, and from zeros.
func TestKdumpPart(t *testing.T) {
	notes := dumptest.Notes(dumptest.CPU(kernelCPU)...)
	for _, tt := range []struct {
		first, end uint64
		level      byte
		version    byte
	}{{0, 64, 0, 6}, {1, 63, 0, 6}, {63, 128, 0, 6}, {64, 128, 1, 6}, {65, 1024, 0, 6}, {128, 1000, 1, 6}, {128, 1001, 0, 5}, {0, 1024, 0, 6}} {
		b := dumptest.KdumpPart(tt.first, tt.end, 1024, notes, somePages()...)
		b[8], b[4096+8] = tt.version, tt.level
		k, err := readKdump(b)
		if err != nil {
			t.Errorf("%+v: %v", tt, err)
			continue
		}
		whole := tt.first == 0 && tt.end == 1024
		if text := strings.Join(k.Problems, "\n"); strings.Contains(text, "--reassemble") == whole {
			t.Errorf("%+v: problems %q", tt, text)
		}
		var told []mem.Range
		for _, p := range somePages() {
			at := p.Number * 4096
			in := tt.first <= p.Number && p.Number < tt.end
			got, err := k.Page(mem.Phys(at))
			switch {
			case in && p.Data == nil && tt.level == 1:
				p.Data = make([]byte, 4096)
				fallthrough
			case in && p.Data != nil:
				if err != nil || !bytes.Equal(got, p.Data) {
					t.Errorf("%+v: page %d: %v", tt, p.Number, err)
				}
				told = append(told, mem.Range{First: at, Last: at + 4095})
			case !errors.Is(err, dump.ErrExcluded):
				t.Errorf("%+v: page %d, which is not in this part: %v", tt, p.Number, err)
			}
		}
		slices.SortFunc(told, func(a, b mem.Range) int { return cmp.Compare(a.First, b.First) })
		if more, less := mem.Subtract(k.Ranges(), told), mem.Subtract(told, k.Ranges()); len(more)+len(less) > 0 {
			t.Errorf("%+v: ranges %v too many, %v missing", tt, more, less)
		}
		if both := mem.Subtract(k.Excluded(), k.Ranges()); fmt.Sprint(both) != fmt.Sprint(k.Excluded()) {
			t.Errorf("%+v: %v are in the file and are not", tt, both)
		}
	}
	for _, tt := range []struct {
		first, end uint64
		want       error
	}{{64, 63, dump.ErrCorrupt}, {64, 1025, dump.ErrCorrupt}, {2, 62, dump.ErrUnsupported}} {
		b := dumptest.KdumpPart(tt.first, tt.end, 1024, notes, somePages()...)
		if k, err := readKdump(b); !errors.Is(err, tt.want) || k != nil {
			t.Errorf("part from %d to %d: %v, want %v", tt.first, tt.end, err, tt.want)
		}
	}
}

// A file that is cut short gives the pages that it has, and an error for the others.
func TestTruncatedKdump(t *testing.T) {
	plain := aKdump()
	for name, whole := range map[string][]byte{"plain": plain, "flattened": dumptest.Flatten(plain, 1000)} {
		good := 0
		for n := 0; n < len(whole)-16; n += 7 {
			k, err := readKdump(whole[:n])
			if err != nil {
				if !errors.Is(err, dump.ErrCorrupt) && !errors.Is(err, dump.ErrForeign) && !errors.Is(err, dump.ErrUnsupported) {
					t.Fatalf("%s, %#x bytes: %v", name, n, err)
				}
				continue
			}
			for _, p := range somePages() {
				got, err := k.Page(mem.Phys(p.Number * 4096))
				if err == nil && !bytes.Equal(got, p.Data) {
					t.Fatalf("%s, %#x of %#x bytes: page %d is another", name, n, len(whole), p.Number)
				}
				if err == nil {
					good++
				}
			}
		}
		if good == 0 {
			t.Errorf("%s: no page of any file that was cut short", name)
		}
	}
}

// A bit that is wrong anywhere is an error or changes what it is a bit of; it is
// never a page of another size, a panic, or a loop.
func TestFlippedKdump(t *testing.T) {
	plain := aKdump()
	for name, whole := range map[string][]byte{"plain": plain, "flattened": dumptest.Flatten(plain, 1000)} {
		r := rand.New(rand.NewPCG(1, 2))
		for range 1000 {
			b := slices.Clone(whole)
			at := r.IntN(len(b))
			b[at] ^= 1 << r.IntN(8)
			k, err := readKdump(b)
			if err != nil {
				continue
			}
			for _, p := range somePages() {
				if got, err := k.Page(mem.Phys(p.Number * 4096)); err == nil && len(got) != 4096 {
					t.Fatalf("%s, byte %#x: page of %d bytes", name, at, len(got))
				}
			}
		}
	}
}

// Each method checks what it gets: the damage of a page of zlib, zstd and the ends of
// the others is seen.
func TestDamagedPages(t *testing.T) {
	for _, m := range methods[1:] {
		page := bytes.Repeat([]byte("0123456789abcdef"), 256)
		whole := dumptest.Kdump(8, nil, dumptest.Page{Number: 1, Data: page, Method: m})
		packed := len(dumptest.Compress(page, m))
		at := len(whole) - packed
		// One byte less, by the descriptor.
		b := slices.Clone(whole)
		binary.LittleEndian.PutUint32(b[at-16:], uint32(packed-1))
		k, err := readKdump(b)
		if err != nil {
			t.Fatal(err)
		}
		_, err = k.Page(0x1000)
		if !errors.Is(err, dump.ErrCorrupt) || !strings.Contains(err.Error(), fmt.Sprintf("%#x", at)) {
			t.Errorf("method %#x, cut short: %v; it is at %#x", m, err, at)
		}
	}
	// A method that nobody knows.
	b := dumptest.Kdump(8, nil, dumptest.Page{Number: 1, Data: make([]byte, 4096)})
	b[len(b)-4096-12] = byte(dumptest.Zlib | dumptest.Snappy)
	k, err := readKdump(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Page(0x1000); !errors.Is(err, dump.ErrUnsupported) {
		t.Errorf("two methods at once: %v", err)
	}
}

func TestForeignKdump(t *testing.T) {
	change := func(at int, v byte) []byte {
		b := aKdump()
		b[at] = v
		return b
	}
	for name, test := range map[string]struct {
		b    []byte
		want error
	}{
		"empty":            {nil, dump.ErrCorrupt},
		"text":             {bytes.Repeat([]byte("text"), 1000), dump.ErrForeign},
		"another machine":  {change(12+4*65, 'a'), dump.ErrUnsupported},
		"blocks of 64 KiB": {change(430, 1), dump.ErrCorrupt},
		"no bitmaps":       {change(436, 0), dump.ErrCorrupt},
		"huge bitmaps":     {change(439, 0x7f), dump.ErrCorrupt},
		"no pages":         {dumptest.Kdump(1024, nil), dump.ErrCorrupt},
		"too many numbers": {change(4096+96+4, 1), dump.ErrCorrupt},
		"flat of nothing":  {dumptest.Flatten(bytes.Repeat([]byte{7}, 5000), 1000), dump.ErrForeign},
	} {
		if k, err := readKdump(test.b); !errors.Is(err, test.want) || k != nil {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
}

// TestUnnamedMachine: QEMU 10.0 does not say of what machine a dump is; its notes do.
func TestUnnamedMachine(t *testing.T) {
	page := dumptest.Page{Number: 1, Data: make([]byte, 4096)}
	for _, tt := range []struct {
		notes []dumptest.Note
		want  error
	}{
		{dumptest.CPU(kernelCPU), nil},
		{[]dumptest.Note{dumptest.Status(kernelCPU)}, dump.ErrUnsupported},
		{nil, dump.ErrUnsupported},
	} {
		b := dumptest.Kdump(8, dumptest.Notes(tt.notes...), page)
		copy(b[12+4*65:], "Unknown")
		if k, err := readKdump(b); !errors.Is(err, tt.want) || (k == nil) != (tt.want != nil) {
			t.Errorf("%d notes: %v, want %v", len(tt.notes), err, tt.want)
		}
	}
}

func TestFlat(t *testing.T) {
	want := make([]byte, 12345)
	for i := range want {
		want[i] = byte(i * 7)
	}
	for _, size := range []int{100, 4096, 20000} {
		b := dumptest.Flatten(want, size)
		f, err := dump.ReadFlat(bytes.NewReader(b), uint64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(io.NewSectionReader(f, 0, int64(f.Size())))
		if err != nil || !bytes.Equal(got, want) || f.Cut != 0 {
			t.Errorf("pieces of %d: %d bytes, cut at %#x, %v", size, len(got), f.Cut, err)
		}
		b = b[:len(b)-16]
		if f, err = dump.ReadFlat(bytes.NewReader(b), uint64(len(b))); err != nil || f.Cut != uint64(len(b)) {
			t.Errorf("pieces of %d, without the end: cut at %#x of %#x, %v", size, f.Cut, len(b), err)
		}
	}
}

func FuzzKdump(f *testing.F) {
	small := dumptest.Kdump(8, dumptest.Notes(dumptest.CPU(kernelCPU)...),
		dumptest.Page{Number: 1, Data: make([]byte, 4096), Method: dumptest.Zlib},
		dumptest.Page{Number: 2, Data: make([]byte, 4096), Method: dumptest.Zstd})
	f.Add(small)
	f.Add(dumptest.Flatten(small, 4096))
	f.Add(dumptest.KdumpPart(2, 8, 8, nil, dumptest.Page{Number: 1, Data: make([]byte, 4096)}, dumptest.Page{Number: 2, Data: make([]byte, 4096)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := readKdump(b)
		if (k == nil) == (err == nil) {
			t.Fatalf("%v with error %v", k, err)
		}
		if k == nil {
			return
		}
		k.Excluded()
		for i, r := range k.Ranges() {
			if p, err := k.Page(mem.Phys(r.First)); err == nil && len(p) != 4096 {
				t.Fatalf("page of %d bytes", len(p))
			}
			if i > 16 {
				break
			}
		}
	})
}
