package kallsyms

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// manyNames makes the names "T<text>", one token per character, a third of them
// twice or more.
func manyNames(t *testing.T, count int) (*names, []string) {
	t.Helper()
	var tok tokens
	for c := range tok {
		tok[c] = string(rune(c))
	}
	tok[255] = "Tsame_" // the type letter and the start of a name
	tok[254] = ""
	r := rand.New(rand.NewPCG(1, 2))
	var data bytes.Buffer
	var text []string
	for range count {
		name := fmt.Sprint("n", r.IntN(count))
		packed := append([]byte{254, 'T'}, name...)
		if r.IntN(3) == 0 {
			n := fmt.Sprint(r.IntN(4))
			name, packed = "same_"+n, append([]byte{255}, n...)
		}
		data.WriteByte(byte(len(packed)))
		data.Write(packed)
		text = append(text, name)
	}
	n, err := newNames(&tok, data.Bytes(), count)
	if err != nil {
		t.Fatal(err)
	}
	return n, text
}

// TestScanAndIndexAgree asks for every name in both ways, and for some that are none.
func TestScanAndIndexAgree(t *testing.T) {
	for _, count := range []int{1, 15, 16, 17, 1000} {
		n, text := manyNames(t, count)
		x := newNameIndex(n)
		for _, name := range append(slices.Clone(text), "", "n", "same", "Tn1", "same_0x", string(make([]byte, 600))) {
			var want, scanned, indexed []int
			for i, s := range text {
				if s == name {
					want = append(want, i)
				}
			}
			for i, ok := n.scan(0, name); ok; i, ok = n.scan(i+1, name) {
				scanned = append(scanned, i)
			}
			for i, ok := x.find(n, name); ok; i, ok = int(x.same[i])-1, x.same[i] != 0 {
				indexed = append(indexed, i)
			}
			if !slices.Equal(scanned, want) || !slices.Equal(indexed, want) {
				t.Fatalf("%d names: %q is at %v, scan says %v, index %v", count, name, want, scanned, indexed)
			}
		}
		for i, want := range text {
			if got, kind := n.name(i); got != want || kind != 'T' {
				t.Fatalf("name %d is %c %q, want %q", i, kind, got, want)
			}
		}
	}
}

// TestIndexWhenItPays counts: a few names are looked for without an index, many with.
func TestIndexWhenItPays(t *testing.T) {
	n, text := manyNames(t, 100)
	for i := range scansMax + 1 {
		if made := n.index.made.Load() != nil; made {
			t.Fatalf("an index after %d names", i)
		}
		n.find(text[i])
	}
	if n.index.made.Load() == nil {
		t.Errorf("no index after %d names", scansMax+1)
	}
}
