package dump

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zlib"
)

// inflateKinds are pages of every sort: with runs, words, little and no order.
func inflateKinds() [][]byte {
	r := rand.New(rand.NewPCG(5, 6))
	var out [][]byte
	for _, alphabet := range []int{1, 2, 3, 10, 60, 200, 256} {
		for _, repeat := range []int{1, 3, 40, 500} {
			page := make([]byte, 0, pageSize+repeat*8)
			for len(page) < pageSize {
				if back := 1 + r.IntN(len(page)+1); r.IntN(4) == 0 && back < len(page) {
					n := min(r.IntN(repeat)+1, back)
					page = append(page, page[len(page)-back:][:n]...)
					continue
				}
				b := byte(r.IntN(alphabet))
				for range r.IntN(repeat) + 1 {
					page = append(page, b)
				}
			}
			out = append(out, page[:pageSize])
		}
	}
	// Codes are as long as they can be where each byte is half as frequent as another.
	var skewed []byte
	for i, n := 0, pageSize/2; n > 0; i, n = i+1, n/2 {
		skewed = append(skewed, bytes.Repeat([]byte{byte(i)}, n)...)
	}
	for i := 0; len(skewed) < pageSize; i++ {
		skewed = append(skewed, byte(20+i))
	}
	r.Shuffle(len(skewed), func(i, k int) { skewed[i], skewed[k] = skewed[k], skewed[i] })
	return append(out, skewed)
}

func deflated(t testing.TB, page []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zlib.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(page)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestInflate: whatever the library packs is unpacked: stored, fixed and dynamic
// blocks, long codes.
func TestInflate(t *testing.T) {
	var f inflater
	for i, page := range inflateKinds() {
		for _, level := range []int{zlib.NoCompression, zlib.BestSpeed, 6, zlib.BestCompression, zlib.HuffmanOnly} {
			b := deflated(t, page, level)
			got, err := f.inflatePage(b, pageSize)
			if err != nil || !bytes.Equal(got, page) {
				t.Errorf("page %d, level %d, %d bytes: %v", i, level, len(b), err)
			}
			if _, err := f.inflatePage(b, pageSize-1); err == nil {
				t.Errorf("page %d, level %d: it fits what is smaller", i, level)
			}
			if _, err := f.inflatePage(b, pageSize+1); err == nil {
				t.Errorf("page %d, level %d: it fills what is larger", i, level)
			}
		}
	}
}

// library is what the library makes of a page, nil if it is none.
func library(b []byte) []byte {
	z, err := zlib.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil
	}
	page, err := io.ReadAll(io.LimitReader(z, pageSize+1))
	if err != nil || len(page) != pageSize {
		return nil
	}
	return page
}

// TestInflateDamaged: what is damaged is an error, or what the library makes of it.
func TestInflateDamaged(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var f inflater
	for _, page := range inflateKinds() {
		whole := deflated(t, page, 6)
		for range 300 {
			b := bytes.Clone(whole)
			if r.IntN(4) == 0 {
				b = b[:r.IntN(len(b))]
			} else {
				b[r.IntN(len(b))] ^= 1 << r.IntN(8)
			}
			if got, err := f.inflatePage(b, pageSize); err == nil && !bytes.Equal(got, library(b)) {
				t.Fatalf("%x: another page than the library's", b)
			}
		}
	}
}

func FuzzInflate(f *testing.F) {
	for i, page := range inflateKinds() {
		f.Add(deflated(f, page, 1+i%9))
	}
	var x inflater
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := x.inflatePage(b, pageSize)
		want := library(b)
		if err == nil && !bytes.Equal(got, want) {
			t.Fatalf("%x: another page than the library's", b)
		}
	})
}

func BenchmarkInflate(b *testing.B) {
	kinds := inflateKinds()
	var packed [][]byte
	for _, page := range kinds {
		packed = append(packed, deflated(b, page, 1))
	}
	b.Run("page", func(b *testing.B) {
		var f inflater
		b.SetBytes(int64(len(kinds) * pageSize))
		for b.Loop() {
			for _, p := range packed {
				if _, err := f.inflatePage(p, pageSize); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("library", func(b *testing.B) {
		z, err := zlib.NewReader(bytes.NewReader(packed[0]))
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(len(kinds) * pageSize))
		for b.Loop() {
			for _, p := range packed {
				if err := z.(zlib.Resetter).Reset(bytes.NewReader(p), nil); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(z, make([]byte, pageSize)); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}
