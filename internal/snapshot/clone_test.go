package snapshot

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"nestdbg/internal/mem"
)

// filed is newRAM in a file: the ranges the other way round, and something in front.
type filed struct {
	ram
	file *os.File
}

const (
	highAt = 0x3000
	lowAt  = highAt + 2<<20 + 0x2000
)

func (f filed) FileAt(r mem.Range) (*os.File, uint64) {
	if r == low {
		return f.file, lowAt
	}
	return f.file, highAt
}

func newFiled(t *testing.T) filed {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	f := filed{newRAM(), file}
	for r, at := range map[mem.Range]int64{low: lowAt, high: highAt} {
		b := make([]byte, r.Size())
		f.ReadPhys(b, mem.Phys(r.First))
		if _, err := file.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// byCopy is cloneRange on a file system that can.
func byCopy(to, from *os.File, fromAt, n, toAt uint64) error {
	b := make([]byte, n)
	if _, err := from.ReadAt(b, int64(fromAt)); err != nil {
		return err
	}
	_, err := to.WriteAt(b, int64(toAt))
	return err
}

// TestClone: a clone is the snapshot that a copy is, and one that does not come about
// leaves nothing behind that the copy does not have.
func TestClone(t *testing.T) {
	calls := 0
	refuse := func(at int, err error) func(to, from *os.File, fromAt, n, toAt uint64) error {
		return func(to, from *os.File, fromAt, n, toAt uint64) error {
			if calls++; calls > at {
				return err
			}
			b := bytes.Repeat([]byte{0xee}, int(n)) // what a copy would not write over: it skips zeros
			_, writeErr := to.WriteAt(b, int64(toAt))
			return writeErr
		}
	}
	for name, c := range map[string]struct {
		clone func(to, from *os.File, fromAt, n, toAt uint64) error
		want  bool
	}{
		"works":            {byCopy, true},
		"not supported":    {refuse(0, unix.EOPNOTSUPP), false},
		"other device":     {refuse(0, unix.EXDEV), false},
		"fails half-way":   {refuse(1, unix.EINVAL), false},
		"this file system": {cloneRange, false},
	} {
		t.Run(name, func(t *testing.T) {
			calls = 0
			r := newFiled(t)
			dir := filepath.Join(t.TempDir(), "snap")
			w, err := Create(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Abort()
			w.clone = c.clone
			got := w.CloneRAM(r)
			if name != "this file system" && got != c.want { // which may be able to, or not
				t.Errorf("cloned: %v", got)
			}
			if got {
				r.Put(mem.Phys(high.First), []byte("the machine runs on")) // its file does not matter any more
				err = w.SumRAM(t.Context(), nil)
			} else {
				err = w.CopyRAM(t.Context(), r, nil)
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Commit(Manifest{}, nil); err != nil {
				t.Fatal(err)
			}
			s, want := open(t, dir), newRAM()
			if bad := s.Verify(); len(bad) != 0 {
				t.Errorf("damaged: %x", bad)
			}
			for _, span := range want.PhysRanges() {
				a, b := make([]byte, span.Size()), make([]byte, span.Size())
				want.ReadPhys(a, mem.Phys(span.First))
				if _, err := s.ReadPhys(b, mem.Phys(span.First)); err != nil || !bytes.Equal(a, b) {
					t.Errorf("range %#x differs, %v", span.First, err)
				}
			}
			copied, _ := saved(t)
			if plain := open(t, copied); plain.Manifest.RAMStored != s.Manifest.RAMStored {
				t.Errorf("%d bytes stored, by a copy %d", s.Manifest.RAMStored, plain.Manifest.RAMStored)
			}
		})
	}
	w := &Writer{clone: func(_, _ *os.File, _, _, _ uint64) error { return errors.New("not to be called") }}
	if w.CloneRAM(newRAM()) {
		t.Error("memory that is in no file was cloned")
	}
}
