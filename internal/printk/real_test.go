package printk_test

import (
	"bufio"
	"compress/gzip"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nestdbg/internal/mem"
	"nestdbg/internal/printk"
)

// specimen is a real log; testdata/README.md has the format.
type specimen struct {
	ring   uint64
	since  uint64
	lines  map[string]uint64
	memory pieces
	kmsg   []string
}

// pieces is memory that can be read exactly as it was read before.
type pieces map[string][]byte

func (m pieces) ReadVirt(p []byte, a mem.Virt) (int, error) {
	b, ok := m[fmt.Sprintf("%#x+%d", uint64(a), len(p))]
	if !ok {
		return 0, &mem.FaultError{Space: "specimen", Addr: uint64(a)}
	}
	return copy(p, b), nil
}

func readSpecimen(t *testing.T, file string) *specimen {
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
	s := &specimen{lines: map[string]uint64{}, memory: pieces{}}
	lines := bufio.NewScanner(z)
	for lines.Scan() {
		if err := s.add(lines.Text()); err != nil {
			t.Fatalf("%s: %q: %v", file, lines.Text(), err)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *specimen) add(line string) error {
	kind, rest, _ := strings.Cut(line, " ")
	var err error
	switch kind {
	case "ring":
		_, err = fmt.Sscan(rest, &s.ring)
	case "since":
		_, err = fmt.Sscan(rest, &s.since)
	case "line":
		key, value, _ := strings.Cut(rest, ") ")
		var v uint64
		_, err = fmt.Sscan(value, &v)
		s.lines[key+")"] = v
	case "read":
		at, text, _ := strings.Cut(rest, " ")
		var b []byte
		b, err = hex.DecodeString(text)
		s.memory[fmt.Sprintf("%s+%d", at, len(b))] = b
	case "kmsg":
		s.kmsg = append(s.kmsg, rest)
	default:
		err = fmt.Errorf("unknown line")
	}
	return err
}

// kmsgLines renders records as /dev/kmsg does.
func kmsgLines(records []printk.Record) []string {
	var out []string
	for _, r := range records {
		cont := "-"
		if r.Continued {
			cont = "c"
		}
		var text strings.Builder
		for _, c := range []byte(r.Text) {
			if c < ' ' || c >= 0x7f || c == '\\' {
				fmt.Fprintf(&text, "\\x%02x", c)
			} else {
				text.WriteByte(c)
			}
		}
		out = append(out, fmt.Sprintf("%d,%d,%d,%s;%s",
			r.Facility<<3|r.Level, r.Seq, r.TimeNs/1000, cont, text.String()))
		if r.Subsystem != "" {
			out = append(out, " SUBSYSTEM="+r.Subsystem)
		}
		if r.Device != "" {
			out = append(out, " DEVICE="+r.Device)
		}
	}
	return out
}

// TestReal reads real logs, and compares them with what the guest read from
// /dev/kmsg. The guest went on, so there may be more.
func TestReal(t *testing.T) {
	files, err := filepath.Glob("testdata/*.log.gz")
	if err != nil || len(files) == 0 {
		t.Fatalf("no specimens: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			s := readSpecimen(t, file)
			l, err := printk.LayoutFrom(func(key string) (uint64, bool) {
				v, ok := s.lines[key]
				return v, ok
			})
			if err != nil {
				t.Fatal(err)
			}
			b := since(t, printk.Ring{Memory: s.memory, Address: mem.Virt(s.ring), Layout: l}, s.since)
			got := kmsgLines(b.Records)
			diff := cmp.Diff(s.kmsg, got[:min(len(got), len(s.kmsg))])
			if diff != "" || len(b.Problems) > 0 || len(b.Lost) > 0 {
				t.Errorf("%v %v %s", b.Problems, b.Lost, diff)
			}
		})
	}
}
