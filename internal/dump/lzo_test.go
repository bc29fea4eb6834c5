package dump

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What liblzo2 makes of pages becomes those pages again.
func TestLZO(t *testing.T) {
	files, err := filepath.Glob("testdata/lzo/*.lzo")
	if err != nil || len(files) != 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, name := range files {
		packed := readFile(t, name)
		base, _, _ := strings.Cut(filepath.Base(name), ".")
		want := readFile(t, filepath.Join("testdata/lzo", base+".page"))
		got, err := lzoDecompress(packed, len(want))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		// Neither a shorter page nor less data passes.
		if _, err := lzoDecompress(packed, len(want)-1); err == nil {
			t.Errorf("%s: fits a smaller page", name)
		}
		for n := range packed {
			if _, err := lzoDecompress(packed[:n], len(want)); err == nil {
				t.Fatalf("%s: %d of %d bytes are enough", name, n, len(packed))
			}
		}
	}
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func FuzzLZO(f *testing.F) {
	for _, name := range []string{"zero.1", "zero.999", "pointers.999"} {
		f.Add(readFile(f, "testdata/lzo/"+name+".lzo"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		page, err := lzoDecompress(b, 4096)
		if err != nil && page != nil || len(page) > 4096 {
			t.Fatalf("%d bytes with error %v", len(page), err)
		}
	})
}
