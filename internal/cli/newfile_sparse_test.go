package cli

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// TestSparseFile writes pages with and without data in pieces of all lengths.
func TestSparseFile(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	want := make([]byte, 300*sparsePage+123)
	data := int64(0)
	for page := 0; page < len(want); page += sparsePage {
		if random.IntN(3) == 0 {
			want[page+random.IntN(min(sparsePage, len(want)-page))] = 1
			data += int64(min(sparsePage, len(want)-page))
		}
	}
	path := filepath.Join(t.TempDir(), "file")
	size, stored, err := writeSparseFile(t.Context(), path, false, func(w io.Writer) error {
		for left := want; len(left) > 0; {
			n := min(len(left), 1+random.IntN(5*sparsePage))
			if _, err := w.Write(left[:n]); err != nil {
				return err
			}
			left = left[n:]
		}
		return nil
	})
	if err != nil || size != int64(len(want)) || stored > data {
		t.Fatalf("%d bytes, %d stored of %d, %v", size, stored, data, err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file differs, %v", err)
	}
}
