package vmstate

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"flag"
	"os"
	"path/filepath"
	"testing"
)

// cut is how the streams in testdata were made; see the README there.
var cut = flag.String("cut", "", "cut the streams in this directory and write them to testdata")

// TestCut makes testdata/NAME.xen.gz and NAME.migrate.gz of NAME.xen and
// NAME.mig in the directory given, and does nothing without the flag.
func TestCut(t *testing.T) {
	if *cut == "" {
		return
	}
	for _, name := range []string{"l1", "l2"} {
		for from, to := range map[string]string{".xen": ".xen.gz", ".mig": ".migrate.gz"} {
			b, err := os.ReadFile(filepath.Join(*cut, name+from))
			if err != nil {
				t.Fatal(err)
			}
			var z bytes.Buffer
			w, _ := gzip.NewWriterLevel(&z, gzip.BestCompression)
			w.Write(withoutPages(t, b))
			w.Close()
			if err := os.WriteFile(filepath.Join("testdata", name+to), z.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// withoutPages replaces the content of every page in the RAM section by a
// record that says it is zero: pages hold firmware, which is not ours to keep.
func withoutPages(t *testing.T, b []byte) []byte {
	c, err := parseHeader(b)
	if err != nil {
		t.Fatal(err)
	}
	ram, rest, err := ramSections(b, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	out := bytes.Clone(b[:c.next])
	for at := c.next; at < rest; {
		s := ram[0]
		ram = ram[1:]
		out = append(out, b[at:s.Offset]...)
		out = append(out, withoutPagesIn(s.Payload)...)
		at = s.Offset + len(s.Payload)
		out = append(out, b[at:at+footerSize]...)
		at += footerSize
	}
	return append(out, b[rest:]...)
}

func withoutPagesIn(p []byte) []byte {
	var out []byte
	for at := 0; at < len(p); {
		record := binary.BigEndian.Uint64(p[at:])
		if record&(ramPage|ramZero) == 0 {
			return append(out, p[at:]...)
		}
		size := 8
		if record&ramContinue == 0 {
			size += 1 + int(p[at+8])
		}
		header := bytes.Clone(p[at : at+size])
		at += size + 1
		if record&ramPage != 0 {
			at += 4096 - 1
			binary.BigEndian.PutUint64(header, record&^ramPage|ramZero)
		}
		out = append(append(out, header...), 0)
	}
	return out
}
