package memfile_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nestdbg/internal/dump"
	"nestdbg/internal/dump/dumptest"
	"nestdbg/internal/mem"
	"nestdbg/internal/memfile"
)

// write makes a file of these bytes, and of holes up to size.
func write(t testing.TB, size int64, at map[int64][]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for offset, b := range at {
		if _, err := f.WriteAt(b, offset); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func open(t testing.TB, path string, layout string) *memfile.File {
	t.Helper()
	var o memfile.Options
	if layout != "" {
		l, err := memfile.ParseLayout(layout)
		if err != nil {
			t.Fatal(err)
		}
		o.Layout = l
	}
	f, err := memfile.Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// e820 is a firmware's map: address, size, type.
func e820(entries ...[3]uint64) []byte {
	var b []byte
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint64(b, e[0])
		b = binary.LittleEndian.AppendUint64(b, e[1])
		b = binary.LittleEndian.AppendUint32(b, uint32(e[2]))
	}
	return b
}

const gib = 1 << 30

// The rules of QEMU's machines, at and beside the sizes where they change
// (FlatViews of QEMU 7.2 with 4608, 2815, 2816, 3583 and 3584 MiB).
func TestLayouts(t *testing.T) {
	for _, test := range []struct {
		layout string
		size   int64
		want   string
	}{
		{"q35", 0xaff00000, "[0x0-0xafefffff]"},
		{"q35", 0xb0000000, "[0x0-0x7fffffff 0x100000000-0x12fffffff]"},
		{"pc-q35-7.2", 0x120000000, "[0x0-0x7fffffff 0x100000000-0x19fffffff]"},
		{"pc", 0xdff00000, "[0x0-0xdfefffff]"},
		{"pc-i440fx-7.2", 0xe0000000, "[0x0-0xbfffffff 0x100000000-0x11fffffff]"},
		{"microvm", 0x120000000, "[0x0-0xbfffffff 0x100000000-0x15fffffff]"},
		{"flat", 0x120000000, "[0x0-0x11fffffff]"},
		{"pc,below4g=2G", 0x120000000, "[0x0-0x7fffffff 0x100000000-0x19fffffff]"},
		{"q35,below4g=1G,above4g=1T", 0x80000000, "[0x0-0x3fffffff 0x10000000000-0x1003fffffff]"},
		{"", 0x80000000, "[0x0-0x7fffffff]"}, // too small for a hole on any machine
	} {
		f := open(t, write(t, test.size, nil), test.layout)
		if got := fmt.Sprint(f.PhysRanges()); got != test.want {
			t.Errorf("%q, %#x bytes: %s, want %s", test.layout, test.size, got, test.want)
		}
		if f.Size() != uint64(test.size) {
			t.Errorf("%q: %#x of %#x bytes", test.layout, f.Size(), test.size)
		}
	}
	for _, bad := range []string{"", "virt", "q35,hole=1G", "pc,below4g=", "pc,below4g=1x", "pc,below4g=0x801", "pc,below4g=99999999999T"} {
		if l, err := memfile.ParseLayout(bad); err == nil {
			t.Errorf("%q is %v", bad, l)
		}
	}
}

// The firmware's map says where a large file's memory is, whatever the machine.
func TestLayoutFromTheFirmware(t *testing.T) {
	first := [][3]uint64{{0, 0x9fc00, 1}, {0x9fc00, 0x400, 2}, {0xf0000, 0x10000, 2}}
	table := func(more ...[3]uint64) []byte { return e820(append(first, more...)...) }
	good := table([3]uint64{0x100000, 2*gib - 0x100000 - 0x21000, 1}, [3]uint64{2*gib - 0x21000, 0x21000, 2},
		[3]uint64{0xb0000000, 0x10000000, 2}, [3]uint64{4 * gib, 3 * gib, 1})
	other := table([3]uint64{0x100000, 1 * gib, 1}, [3]uint64{4 * gib, 1 * gib, 1})
	marks := map[int64][]byte{0xf5a30: good, 0x9000: other, 2*gib - 8: []byte("low end."), 2 * gib: []byte("high")}
	f := open(t, write(t, 5*gib, marks), "")
	if got := fmt.Sprint(f.PhysRanges()); got != "[0x0-0x7fffffff 0x100000000-0x1bfffffff]" {
		t.Errorf("ranges %s", got)
	}
	if len(f.Problems) != 1 || !strings.Contains(f.Problems[0], "firmware's memory map at 0xf5a30") {
		t.Errorf("problems %q", f.Problems)
	}
	for at, want := range map[mem.Phys]string{2*gib - 8: "low end.", 4 * gib: "high"} {
		b := make([]byte, len(want))
		if _, err := f.ReadPhys(b, at); err != nil || string(b) != want {
			t.Errorf("%#x: %q, %v", at, b, err)
		}
	}
	if offset, ok := f.FileOffset(4 * gib); !ok || offset != 2*gib {
		t.Errorf("offset %#x, %v", offset, ok)
	}
	var fault *mem.FaultError
	if _, err := f.ReadPhys(make([]byte, 16), 2*gib-8); !errors.As(err, &fault) || fault.Addr != 2*gib {
		t.Errorf("a read into the hole: %v", err)
	}
	// Only what was written is searched.
	var populated uint64
	for _, r := range f.PopulatedRanges() {
		populated += r.Size()
	}
	if populated == 0 || populated > 1<<20 {
		t.Errorf("%#x bytes to search", populated)
	}
	// Without a map, or with one of another machine, the person is asked.
	for _, b := range [][]byte{nil, other} {
		_, err := memfile.Open(write(t, 5*gib, map[int64][]byte{0x9000: b}), memfile.Options{})
		if !errors.Is(err, memfile.ErrUnsupported) || !strings.Contains(err.Error(), "--layout") {
			t.Errorf("%v", err)
		}
	}
}

// Where the machines of QEMU differ, a map without memory behind the hole says as much
// as one with some, and no size is taken for the word of a machine. The maps are
// SeaBIOS's of QEMU 7.2.
func TestLayoutWhereMachinesDiffer(t *testing.T) {
	table := func(low uint64, more ...[3]uint64) []byte {
		return e820(append([][3]uint64{{0, 0x9fc00, 1}, {0x9fc00, 0x400, 2}, {0xf0000, 0x10000, 2},
			{0x100000, low - 0x120000, 1}, {low - 0x20000, 0x20000, 2}, {0xfffc0000, 0x40000, 2}}, more...)...)
	}
	above := func(size uint64) [3]uint64 { return [3]uint64{4 * gib, size, 1} }
	far := [3]uint64{0xfd00000000, 0x300000000, 2}
	for _, tt := range []struct {
		name string
		size int64
		at   int64 // of the map
		e820 []byte
		want string // "": the person is asked
		told bool
	}{
		{"q35", 3 * gib, 0xf5d40, table(2*gib, above(gib), far), "[0x0-0x7fffffff 0x100000000-0x13fffffff]", true},
		{"pc", 3 * gib, 0xf5d40, table(3*gib, far), "[0x0-0xbfffffff]", false},
		{"q35, smallest", 0xb0000000, 0xf5d40, table(2*gib, above(0x30000000), far), "[0x0-0x7fffffff 0x100000000-0x12fffffff]", true},
		{"pc, largest", 0xdff00000, 0xf5d40, table(0xdff00000, far), "[0x0-0xdfefffff]", false},
		{"nothing says", 3 * gib, 0xf5d40, nil, "", false},
		{"another's map", 3 * gib, 0xf5d40, table(2*gib, far), "", false},
		{"only Linux's copy", 3 * gib, 0x2000000, table(2*gib, above(gib), far), "[0x0-0x7fffffff 0x100000000-0x13fffffff]", true},
		{"max-ram-below-4g=1G", 2 * gib, 0xf5d40, table(gib, above(gib), far), "[0x0-0x3fffffff 0x100000000-0x13fffffff]", true},
		{"a copy of a guest's map", 2 * gib, 0x2000000, table(gib, above(gib), far), "[0x0-0x7fffffff]", false},
	} {
		f, err := memfile.Open(write(t, tt.size, map[int64][]byte{tt.at: tt.e820}), memfile.Options{})
		if tt.want == "" {
			if !errors.Is(err, memfile.ErrUnsupported) || !strings.Contains(err.Error(), "--layout") {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if got := fmt.Sprint(f.PhysRanges()); got != tt.want || len(f.Problems) > 0 != tt.told {
			t.Errorf("%s: %s, want %s; problems %q", tt.name, got, tt.want, f.Problems)
		}
		f.Close()
	}
}

func TestDumps(t *testing.T) {
	page := bytes.Repeat([]byte("page"), 1024)
	elf := dumptest.ELF(nil, dumptest.Segment{Phys: 0x5000, Data: page}, dumptest.Segment{Phys: 0x100000000, Data: page, MemSize: 0x3000})
	kdump := dumptest.Kdump(1<<21, nil, dumptest.Page{Number: 5, Data: page, Method: dumptest.Zlib},
		dumptest.Page{Number: 6}, dumptest.Page{Number: 0x100000, Data: page})
	for kind, b := range map[string][]byte{"ELF dump": elf, "kdump-compressed dump": kdump} {
		f := open(t, write(t, int64(len(b)), map[int64][]byte{0: b}), "")
		if f.Kind != kind {
			t.Errorf("%s is taken for %s", kind, f.Kind)
		}
		if got := fmt.Sprint(f.PhysRanges()); got != "[0x5000-0x5fff 0x100000000-0x100000fff]" {
			t.Errorf("%s: %s", kind, got)
		}
		for range 2 { // the second time from what is kept
			got := make([]byte, 0x1000)
			if n, err := f.ReadPhys(got, 0x5000); err != nil || !bytes.Equal(got, page) {
				t.Errorf("%s: %d bytes, %v", kind, n, err)
			}
		}
		if b := f.SlicePhys(0x5ffe, 100); string(b) != "ge" {
			t.Errorf("%s: slice %q", kind, b)
		}
		var fault *mem.FaultError
		if n, err := f.ReadPhys(make([]byte, 8), 0x5ffc); n != 4 || !errors.As(err, &fault) || fault.Addr != 0x6000 {
			t.Errorf("%s: %d bytes, %v", kind, n, err)
		}
		if len(f.Problems) != 1 || !strings.Contains(f.Problems[0], "of the machine's memory") {
			t.Errorf("%s: problems %q", kind, f.Problems)
		}
	}
}

// What is no machine's memory is refused in a line that says where it is seen, of any
// size, unless a person says that it is memory.
func TestForeign(t *testing.T) {
	text := []byte(strings.Repeat("a text\n", 1000))
	for name, tt := range map[string]struct {
		at   int64
		b    []byte
		size int64
	}{
		"empty": {}, "text": {0, text, int64(len(text))}, "small": {0, []byte{1}, 8192},
		"libvirt":    {0, []byte("LibvirtQemudSave\x02\x00\x00\x00"), 3 << 20},
		"qcow2":      {0, []byte("QFI\xfb\x00\x00\x00\x03"), 3 << 20},
		"LiME":       {0, []byte("EMiL\x01\x00\x00\x00"), 3 << 20},
		"Windows":    {0, []byte("PAGEDU64"), 3 << 20},
		"gzip":       {0, []byte("\x1f\x8b\x08\x00"), 3<<20 + 5},
		"xz":         {0, []byte("\xfd7zXZ\x00\x00\x04"), 3 << 20},
		"zstd":       {0, []byte("\x28\xb5\x2f\xfd\x04"), 3 << 20},
		"VMware":     {0, []byte("KDMV\x01\x00\x00\x00"), 3 << 20},
		"VirtualBox": {64, []byte("\x7f\x10\xda\xbe"), 3 << 20},
		"hibernates": {4086, []byte("S1SUSPEND"), 3 << 20},
		"a disk":     {512, []byte("EFI PART"), 1 << 20},
	} {
		path := write(t, tt.size, map[int64][]byte{tt.at: tt.b})
		_, err := memfile.Open(path, memfile.Options{})
		if !errors.Is(err, memfile.ErrForeign) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if tt.size == 3<<20 {
			if !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), fmt.Sprintf("at %#x", tt.at)) {
				t.Errorf("%s: %v", name, err)
			}
			if f := open(t, path, "flat"); f.Size() != 3<<20 {
				t.Errorf("%s: said to be memory, and %#x bytes are", name, f.Size())
			}
		}
	}
	if _, err := memfile.Open(t.TempDir(), memfile.Options{}); !errors.Is(err, memfile.ErrForeign) {
		t.Errorf("a directory: %v", err)
	}
	if _, err := memfile.Open(filepath.Join(t.TempDir(), "none"), memfile.Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	elf := dumptest.ELF(nil, dumptest.Segment{Data: text})[:100]
	if _, err := memfile.Open(write(t, 100, map[int64][]byte{0: elf}), memfile.Options{}); !errors.Is(err, dump.ErrCorrupt) || !strings.Contains(err.Error(), "at 0x64") {
		t.Errorf("a dump of 100 bytes: %v", err)
	}
}

func FuzzLayout(f *testing.F) {
	f.Add("q35,below4g=2G", uint64(5*gib))
	f.Add("pc-i440fx-7.2,above4g=1T", uint64(4096))
	f.Fuzz(func(t *testing.T, text string, size uint64) {
		if l, err := memfile.ParseLayout(text); (l == nil) == (err == nil) {
			t.Fatalf("%v with error %v", l, err)
		}
	})
}
