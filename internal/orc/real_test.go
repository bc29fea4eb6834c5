package orc_test

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/orc"
)

// thread is a sleeping thread of a real kernel; testdata/README.md has the format.
type thread struct {
	name       string
	ip, sp, bp uint64
	frames     []string
	end        string
}

// specimen is what one file in testdata holds.
type specimen struct {
	version orc.Version
	threads []thread
	entries []raw
	memory  pieces
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
	s := &specimen{memory: pieces{}}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if err := s.add(lines.Text()); err != nil {
			t.Fatalf("%s: %q: %v", file, lines.Text(), err)
		}
	}
	sort.SliceStable(s.entries, func(i, j int) bool { return s.entries[i].start < s.entries[j].start })
	return s
}

func (s *specimen) add(line string) error {
	kind, rest, _ := strings.Cut(line, " ")
	var err error
	switch kind {
	case "version":
		_, err = fmt.Sscan(rest, &s.version)
	case "thread":
		var t thread
		_, err = fmt.Sscanf(rest, "%s ip=%v sp=%v bp=%v", &t.name, &t.ip, &t.sp, &t.bp)
		s.threads = append(s.threads, t)
	case "frame":
		last := &s.threads[len(s.threads)-1]
		last.frames = append(last.frames, rest)
	case "end":
		s.threads[len(s.threads)-1].end = rest
	case "read":
		var at uint64
		var text string
		if _, err = fmt.Sscan(rest, &at, &text); err != nil {
			return err
		}
		var b []byte
		b, err = hex.DecodeString(text)
		s.memory[fmt.Sprintf("%#x+%d", at, len(b))] = b
	case "entry":
		var e raw
		_, err = fmt.Sscan(rest, &e.start, &e.sp, &e.bp, &e.flags)
		s.entries = append(s.entries, e)
	default:
		err = fmt.Errorf("unknown line")
	}
	return err
}

// TestReal unwinds threads of real kernels to the end; the frames are those that
// the kernel itself printed.
func TestReal(t *testing.T) {
	files, err := filepath.Glob("testdata/*.stacks")
	if err != nil || len(files) == 0 {
		t.Fatalf("no specimens: %v", err)
	}
	for _, file := range files {
		s := readSpecimen(t, file)
		table := newTable(t, s.version, s.entries)
		_, unwind := sections(s.entries)
		if v, err := orc.Detect(nil, unwind); v != s.version {
			t.Errorf("%s: taken for version %d, %v", file, v, err)
		}
		for _, th := range s.threads {
			t.Run(filepath.Base(file)+"/"+th.name, func(t *testing.T) { checkThread(t, table, th, s.memory) })
		}
	}
}

func checkThread(t *testing.T, table *orc.Table, th thread, r mem.VirtReader) {
	t.Helper()
	s := state(false, map[orc.Reg]uint64{orc.IP: th.ip, orc.SP: th.sp, orc.BP: th.bp})
	for i, frame := range th.frames {
		ip, _ := s.Get(orc.IP)
		if want := fmt.Sprintf("%#x ", ip); !strings.HasPrefix(frame, want) {
			t.Fatalf("frame %d is at %#x, want %s", i, ip, frame)
		}
		pc, _ := s.LookupPC()
		e, ok := table.Find(pc)
		if !ok {
			t.Fatalf("no entry for frame %d, %s", i, frame)
		}
		next, err := orc.Step(e, s, r)
		if err != nil {
			if i < len(th.frames)-1 || err.Error() != th.end {
				t.Errorf("stopped after %s: %v, want %s", frame, err, th.end)
			}
			return
		}
		s = next
	}
	if !s.User() || th.end != "user" {
		t.Errorf("ended in %+v, want %s", s, th.end)
	}
}
