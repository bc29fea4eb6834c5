package kallsyms

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// testdata/README.md says how to use these.
var (
	cutImage = flag.String("cut", "", "kernel image to cut a fixture from")
	cutTruth = flag.String("truth", "", "that kernel's /proc/kallsyms")
	cutName  = flag.String("name", "", "name of the fixture")
)

const (
	cutBase    = 0xffffffff81000000
	cutSymbols = 1500
)

// TestReal reads the first symbols of real kernels, as the kernel's build packed
// them, and compares them with what the kernel says in /proc/kallsyms.
func TestReal(t *testing.T) {
	files, err := filepath.Glob("testdata/*.image.gz")
	if err != nil || len(files) == 0 {
		t.Fatalf("no fixtures: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			packed := gunzip(t, file)
			skip := binary.LittleEndian.Uint32(packed)
			image := append(make([]byte, skip), packed[4:]...)
			table, err := Find(image, cutBase)
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for s := range table.All() {
				fmt.Fprintf(&got, "%016x %c %s\n", s.Addr, s.Type, s.Name)
			}
			want := string(gunzip(t, strings.Replace(file, ".image.", ".truth.", 1)))
			if got.String() != want {
				t.Errorf("differs from /proc/kallsyms; got %d symbols, begin %.300s",
					table.Len(), got.String())
			}
		})
	}
}

// TestRealDamage overwrites one to four bytes of the tables of real kernels, anywhere in
// them, and searches, which up to 6.0 is the only way to them. Nearly always there is a
// table, and of the symbols it has no more are wrong than bytes were overwritten. The rest
// is where the bytes are a token's, of which these short tables have more than real ones.
func TestRealDamage(t *testing.T) {
	const mutations = 50
	files, err := filepath.Glob("testdata/*.image.gz")
	if err != nil || len(files) == 0 {
		t.Fatalf("no fixtures: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			packed := gunzip(t, file)
			tables := packed[4:]
			image := append(make([]byte, binary.LittleEndian.Uint32(packed)), tables...)
			whole, err := Find(image, cutBase)
			if err != nil {
				t.Fatal(err)
			}
			truth := map[Symbol]bool{}
			for s := range whole.All() {
				truth[s] = true
			}
			r := rand.New(rand.NewPCG(1, 2))
			refused, named, wrong := 0, 0, 0
			for range mutations {
				count := 1 + r.IntN(4)
				for range count {
					image[len(image)-1-r.IntN(len(tables))] = byte(r.Uint32())
				}
				table, err := Find(image, cutBase)
				if err != nil {
					refused++
				} else if got := difference(table, truth); got > count {
					wrong++
				} else if table.Damage() != "" {
					named++
				}
				copy(image[len(image)-len(tables):], tables)
			}
			if refused > mutations/10 || wrong > mutations/10 || named < mutations/4 {
				t.Errorf("of %d: %d refused, %d with damage named, %d with many names wrong", mutations, refused, named, wrong)
			}
		})
	}
}

// difference is how many symbols of a table are not true.
func difference(t *Table, truth map[Symbol]bool) (n int) {
	for s := range t.All() {
		if !truth[s] {
			n++
		}
	}
	return n
}

func gunzip(t *testing.T, file string) []byte {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeGzip(t *testing.T, file string, b []byte) {
	t.Helper()
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestCut writes a fixture if asked to, else it does nothing.
func TestCut(t *testing.T) {
	if *cutImage == "" {
		return
	}
	image, err := os.ReadFile(*cutImage)
	if err != nil {
		t.Fatal(err)
	}
	f := &finder{image: image, base: cutBase, work: maxWork}
	cut, skip := f.cut(t)
	header := binary.LittleEndian.AppendUint32(nil, uint32(skip))
	writeGzip(t, "testdata/"+*cutName+".image.gz", append(header, cut...))

	truth, err := os.Open(*cutTruth)
	if err != nil {
		t.Fatal(err)
	}
	defer truth.Close()
	var lines bytes.Buffer
	s := bufio.NewScanner(truth)
	for n := 0; n < cutSymbols && s.Scan(); n++ {
		lines.WriteString(s.Text() + "\n")
	}
	writeGzip(t, "testdata/"+*cutName+".truth.gz", lines.Bytes())
}

// cut keeps the first cutSymbols symbols of the tables in the image. Only what
// makes the tables shorter is changed; the token table, its index and the address
// table keep their place, since offsets may be relative to it.
func (f *finder) cut(t *testing.T) (cut []byte, skip int) {
	t.Helper()
	var tt tokenTable
	ok := false
	for at := 0; !ok; {
		hit := bytes.Index(f.image[at:], digits)
		if hit < 0 {
			t.Fatal("no token table")
		}
		at += hit + 1
		tt, ok = f.tokenTable(at - 1)
	}
	r, ok := f.namesBefore(tt.start)
	if !ok {
		t.Fatal("no names")
	}
	pad := func(b []byte, align int) []byte { return append(b, make([]byte, -len(b)&(align-1))...) }
	end := r.names
	for range cutSymbols {
		_, end, _ = splitName(f.image, end)
	}
	head := binary.LittleEndian.AppendUint32(nil, cutSymbols)
	head = append(head, make([]byte, r.names-r.numSyms-4)...)
	names := pad(append(head, f.image[r.names:end]...), 8)
	markers := f.alignUp(r.namesEnd, r.names-r.numSyms)
	names = append(names, f.image[markers:markers+4*((cutSymbols+255)/256)]...)

	if base := f.image[r.numSyms-8 : r.numSyms]; bytes.HasSuffix(base, []byte{0xff, 0xff, 0xff, 0xff}) {
		// Up to v6.3: offsets, base, names, tokens.
		offsets := r.numSyms - 8 - (4*r.count+7)&^7
		cut = append(bytes.Clone(f.image[offsets:offsets+4*cutSymbols]), base...)
		cut = pad(append(cut, names...), 8)
		return append(cut, f.image[tt.start:tt.end]...), offsets
	}
	skip = tt.start - len(names)
	cut = append(names, f.image[tt.start:tt.end+4*cutSymbols]...)
	if r.names-r.numSyms == 8 {
		base := f.alignUp(tt.end+4*r.count, 8)
		cut = append(cut, f.image[base:base+8]...)
	}
	return cut, skip
}
