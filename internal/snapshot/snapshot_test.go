package snapshot

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
)

// ram is fake memory that says what of it is populated.
type ram struct {
	*memtest.Memory
	populated []mem.Range
}

func (r ram) PopulatedRanges() []mem.Range { return r.populated }

// The memory of the tests: two ranges, neither of whole chunks, with data at their
// ends and across a chunk's end.
var (
	low  = mem.Range{First: 0, Last: 3<<20 + 0x4fff}
	high = mem.Range{First: 1 << 32, Last: 1<<32 + 2<<20 + 0x1fff}
)

func newRAM() ram {
	r := ram{Memory: memtest.NewMemory(low, high)}
	random := rand.New(rand.NewPCG(1, 2))
	for _, p := range []mem.Range{
		{First: 0, Last: 0x1fff}, {First: 1<<20 - 0x1000, Last: 1<<20 + 0xfff},
		{First: low.Last - 0xfff, Last: low.Last}, {First: high.First, Last: high.First + 0x2fff},
		{First: high.Last - 0x7fff, Last: high.Last},
	} {
		b := make([]byte, p.Size())
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		clear(b[:min(len(b)/2, 0x1000)]) // zero pages in what is populated
		r.Put(mem.Phys(p.First), b)
		r.populated = append(r.populated, p)
	}
	return r
}

var devices = []byte("the state of all devices")

// saved is a snapshot of newRAM.
func saved(t testing.TB) (dir string, r ram) {
	t.Helper()
	dir, r = filepath.Join(t.TempDir(), "snap"), newRAM()
	w, err := Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := w.CopyRAM(context.Background(), r, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Commit(Manifest{Machine: Machine{Version: "7.2", Arch: "x86_64"}}, devices); err != nil {
		t.Fatal(err)
	}
	return dir, r
}

func open(t testing.TB, dir string) *Snapshot {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestSaveAndOpen(t *testing.T) {
	dir, r := saved(t)
	s := open(t, dir)
	if !bytes.Equal(s.Devices, devices) || s.Manifest.Machine.Version != "7.2" {
		t.Errorf("%q, %+v", s.Devices, s.Manifest.Machine)
	}
	for _, span := range r.PhysRanges() {
		want, got := make([]byte, span.Size()), make([]byte, span.Size())
		r.ReadPhys(want, mem.Phys(span.First))
		if _, err := s.ReadPhys(got, mem.Phys(span.First)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("range %#x differs, %v", span.First, err)
		}
	}
	if got := s.PhysRanges(); len(got) != 2 || got[0] != low || got[1] != high {
		t.Errorf("ranges %x", got)
	}
	var fault *mem.FaultError
	if n, err := s.ReadPhys(make([]byte, 16), mem.Phys(low.Last-7)); n != 8 || !errors.As(err, &fault) || fault.Addr != low.Last+1 {
		t.Errorf("a read over the end: %d, %v", n, err)
	}
	if bad := s.Verify(); len(bad) != 0 {
		t.Errorf("damaged: %x", bad)
	}
	// What is not stored is zero, and only that.
	stored := uint64(0)
	for _, p := range s.PopulatedRanges() {
		stored += p.Size()
	}
	if stored < s.Manifest.RAMStored || s.Manifest.RAMStored == 0 || s.Manifest.RAMStored > 1<<17 {
		t.Errorf("%d bytes stored, %d in the file", s.Manifest.RAMStored, stored)
	}
	if _, err := Create(dir); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second one in the same place: %v", err)
	}
}

// TestInterrupted: what was not finished leaves nothing.
func TestInterrupted(t *testing.T) {
	parent := t.TempDir()
	w, err := Create(filepath.Join(parent, "snap"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = w.CopyRAM(ctx, newRAM(), func(uint64, uint64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if _, err := Open(w.temp); !errors.Is(err, ErrNone) {
		t.Errorf("half of a snapshot opens: %v", err)
	}
	w.Abort()
	if left, _ := os.ReadDir(parent); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestUnreadableMemory: a page that cannot be read ends the save with its address.
func TestUnreadableMemory(t *testing.T) {
	r := newRAM()
	r.populated = append(r.populated, mem.Range{First: high.Last - 0xfff, Last: high.Last})
	w, err := Create(filepath.Join(t.TempDir(), "snap"))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := w.CopyRAM(t.Context(), reads{r, memtest.FailNth(r.Memory, 3)}, nil); err == nil {
		t.Error("memory that cannot be read was saved")
	}
}

// reads replaces how memory is read.
type reads struct {
	ram
	by mem.PhysReader
}

func (r reads) ReadPhys(p []byte, a mem.Phys) (int, error) { return r.by.ReadPhys(p, a) }

// TestDamage flips bits of each file, and cuts it: nothing that differs from what
// was saved is given out.
func TestDamage(t *testing.T) {
	dir, r := saved(t)
	random := rand.New(rand.NewPCG(3, 4))
	for _, name := range []string{manifestFile, sumsFile, devicesFile, ramFile} {
		path := filepath.Join(dir, name)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for range 1000 {
			at := random.IntN(len(good))
			if random.IntN(50) == 0 {
				if err := os.Truncate(path, int64(at)); err != nil {
					t.Fatal(err)
				}
				checkDamaged(t, dir, r, name, at)
				if err := os.WriteFile(path, good, 0o600); err != nil {
					t.Fatal(err)
				}
				continue
			}
			change(t, path, at, good[at]^1<<random.IntN(8))
			checkDamaged(t, dir, r, name, at)
			change(t, path, at, good[at])
		}
	}
	if bad := open(t, dir).Verify(); len(bad) != 0 {
		t.Errorf("the restored files are damaged: %x", bad)
	}
}

// change writes one byte of a file.
func change(t *testing.T, path string, at int, value byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{value}, int64(at)); err != nil {
		t.Fatal(err)
	}
}

// checkDamaged opens a snapshot with a damaged file: that must fail, or, for RAM,
// one chunk must be unreadable and the others right.
func checkDamaged(t *testing.T, dir string, r ram, name string, at int) {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s damaged at %#x: %v", name, at, err)
		}
		return
	}
	defer s.Close()
	if name != ramFile {
		t.Fatalf("%s damaged at %#x: the snapshot opens", name, at)
	}
	if bad := s.Verify(); len(bad) != 1 || !bad[0].Contains(uint64(at)) {
		t.Errorf("ram damaged at %#x: found %x", at, bad)
	}
	want, got := make([]byte, pageSize), make([]byte, pageSize)
	for _, span := range r.PhysRanges() {
		for a := span.First; a < span.Last; a += 1 << 16 {
			r.ReadPhys(want, mem.Phys(a))
			_, err := s.ReadPhys(got, mem.Phys(a))
			offset, _ := s.FileOffset(mem.Phys(a))
			damaged := offset>>20 == uint64(at)>>20
			if (err != nil) != damaged || err != nil && !errors.Is(err, ErrDamaged) {
				t.Fatalf("ram damaged at %#x: reading %#x: %v", at, a, err)
			}
			if err == nil && !bytes.Equal(got, want) {
				t.Fatalf("ram damaged at %#x: %#x is not what was saved", at, a)
			}
		}
	}
}

func FuzzManifest(f *testing.F) {
	dir, _ := saved(f)
	good, err := os.ReadFile(filepath.Join(dir, manifestFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseManifest(b)
		if err != nil {
			return
		}
		if again, err := m.encode(); err != nil || m.chunks() > m.RAMSize {
			t.Errorf("%v, %s", err, again)
		}
	})
}

// TestMemoryAlone: a snapshot without device state says why, and has the memory.
func TestMemoryAlone(t *testing.T) {
	dir, r := filepath.Join(t.TempDir(), "snap"), newRAM()
	w, err := Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := w.CopyRAM(t.Context(), r, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Commit(Manifest{DevicesLost: "QEMU was killed"}, nil); err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Manifest.DevicesLost != "QEMU was killed" || len(s.Devices) != 0 || len(s.Verify()) != 0 {
		t.Errorf("%+v, %d bytes of devices, damaged %v", s.Manifest, len(s.Devices), s.Verify())
	}
}
