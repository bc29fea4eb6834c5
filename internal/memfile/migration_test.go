package memfile_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/memfile"
	"nestdbg/internal/vmstate/vmstatetest"
)

// cpuOf ends a stream with the state of one CPU.
func cpuOf(b *vmstatetest.Builder) []byte {
	return b.Section("cpu_common", 0, 1, vmstatetest.Common(1, 0)).
		Section("cpu", 0, 12, vmstatetest.CPU(map[string]uint64{"rip": 0x1234})).Bytes()
}

// someRAM is a machine of 4 pages and what its devices have, with two pages of bytes.
func someRAM() ([]vmstatetest.Block, []vmstatetest.Page) {
	return []vmstatetest.Block{{Name: "pc.bios", Size: 0x2000}, {Name: "any name", Size: 0x4000}}, []vmstatetest.Page{
		{Block: "any name", Data: []byte{0}}, {Block: "any name", Addr: 0x1000, Data: bytes.Repeat([]byte("page"), 1024)},
		{Block: "any name", Addr: 0x2000, Data: []byte{0}}, {Block: "any name", Addr: 0x3000, Data: bytes.Repeat([]byte("last"), 1024)},
		{Block: "pc.bios", Data: []byte{0}}}
}

// TestMigration: a migration's file, in both forms, is the machine's memory and the
// registers of its CPUs.
func TestMigration(t *testing.T) {
	blocks, pages := someRAM()
	mapped := []vmstatetest.Page{pages[1], pages[3]}
	for name, b := range map[string][]byte{
		"stream": cpuOf(vmstatetest.NewMigration("pc-q35-7.2").RAM(blocks, pages...)),
		"mapped": cpuOf(vmstatetest.NewMigration("pc-q35-7.2", "mapped-ram").MappedRAM(1<<20, blocks, mapped...)),
	} {
		f := open(t, write(t, int64(len(b)), map[int64][]byte{0: b}), "")
		if f.Kind != "migration stream of pc-q35-7.2" || !f.DeviceState || len(f.CPUs) != 1 || len(f.Problems) > 0 {
			t.Errorf("%s: %q, %d CPUs, %q", name, f.Kind, len(f.CPUs), f.Problems)
			continue
		}
		if v, _ := f.CPUs[0].Get("rip"); v != 0x1234 {
			t.Errorf("%s: RIP %#x", name, v)
		}
		if got := fmt.Sprint(f.PhysRanges(), f.PopulatedRanges()); got != "[0x0-0x3fff] [0x1000-0x1fff 0x3000-0x3fff]" {
			t.Errorf("%s: %s", name, got)
		}
		got := make([]byte, 16)
		if _, err := f.ReadPhys(got, 0x1ff8); err != nil || string(got) != "pagepage\x00\x00\x00\x00\x00\x00\x00\x00" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if at, ok := f.FileOffset(0x3ffc); !ok || string(b[at:at+4]) != "last" {
			t.Errorf("%s: offset %#x, %v", name, at, ok)
		}
		var fault *mem.FaultError
		if n, err := f.ReadPhys(got, 0x3ff8); n != 8 || !errors.As(err, &fault) || fault.Addr != 0x4000 || !errors.Is(err, mem.ErrNoRAM) {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
	}
}

// TestMigrationHole: memory behind the hole follows in the stream what lies below it,
// by the machine's type, and by the firmware's map if that is there.
func TestMigrationHole(t *testing.T) {
	page := func(addr uint64, b []byte) vmstatetest.Page {
		return vmstatetest.Page{Block: "pc.ram", Addr: addr, Data: append(bytes.Clone(b), make([]byte, 4096-len(b))...)}
	}
	high := page(2*gib, []byte("high"))
	firmware := func(above uint64) vmstatetest.Page {
		return page(0xf5000, e820([][3]uint64{{0, 0x9fc00, 1}, {0x9fc00, 0x400, 2}, {0xf0000, 0x10000, 2},
			{0x100000, gib - 0x100000, 1}, {4 * gib, above, 1}}...))
	}
	blocks := func(size uint64) []vmstatetest.Block { return []vmstatetest.Block{{Name: "pc.ram", Size: size}} }
	for _, tt := range []struct {
		machine, layout string
		size            uint64
		pages           []vmstatetest.Page
		at              mem.Phys // of high
		problem         string
	}{
		{"pc-q35-7.2", "", 5 * gib, []vmstatetest.Page{high}, 4 * gib, "that of any pc-q35-7.2"},
		{"pc-q35-7.2", "", 5 * gib, []vmstatetest.Page{firmware(4 * gib), high}, 5 * gib, "not in the file"},
		{"pc-i440fx-7.2", "", 3 * gib, []vmstatetest.Page{firmware(2 * gib), high}, 5 * gib, "not in the file"},
		{"other", "q35", 5 * gib, []vmstatetest.Page{high}, 4 * gib, "not in the file"},
	} {
		b := cpuOf(vmstatetest.NewMigration(tt.machine).RAM(blocks(tt.size), tt.pages...))
		f := open(t, write(t, int64(len(b)), map[int64][]byte{0: b}), tt.layout)
		got := make([]byte, 4)
		if _, err := f.ReadPhys(got, tt.at); err != nil || string(got) != "high" {
			t.Errorf("%s %s: %q, %v", tt.machine, tt.layout, got, err)
		}
		if text := strings.Join(f.Problems, "\n"); !strings.Contains(text, tt.problem) {
			t.Errorf("%s %s: problems %q", tt.machine, tt.layout, text)
		}
		if _, err := f.ReadPhys(got, 0x8000); !errors.Is(err, mem.ErrFault) || !strings.Contains(err.Error(), "stream ends before") {
			t.Errorf("a page that was not sent: %v", err)
		}
	}
	b := cpuOf(vmstatetest.NewMigration("other").RAM(blocks(5*gib), high))
	if _, err := memfile.Open(write(t, int64(len(b)), map[int64][]byte{0: b}), memfile.Options{}); !errors.Is(err, memfile.ErrUnsupported) || !strings.Contains(err.Error(), "--layout") {
		t.Errorf("a machine that nobody knows: %v", err)
	}
}

// TestMigrationOfLittleMemory: memory that can be plugged is not the machine's although
// it is more, if the firmware's map says so, and what a guest writes elsewhere does not.
func TestMigrationOfLittleMemory(t *testing.T) {
	blocks := []vmstatetest.Block{{Name: "vram", Size: 16 << 20}, {Name: "main", Size: 512 << 20}, {Name: "plugged", Size: gib}}
	table := func(block string, size uint64) vmstatetest.Page {
		b := e820([][3]uint64{{0, 0x9fc00, 1}, {0x9fc00, 0x400, 2}, {0xf0000, 0x10000, 2}, {0x100000, size - 0x100000, 1}}...)
		return vmstatetest.Page{Block: block, Addr: 0xf5000, Data: append(b, make([]byte, 4096-len(b))...)}
	}
	for _, tt := range []struct {
		pages []vmstatetest.Page
		want  uint64
	}{
		{[]vmstatetest.Page{table("vram", 16<<20), table("main", 512<<20)}, 512 << 20},
		{[]vmstatetest.Page{table("main", gib), {Block: "plugged", Data: []byte{1}}}, gib},
	} {
		b := cpuOf(vmstatetest.NewMigration("pc-q35-7.2").RAM(blocks, tt.pages...))
		f := open(t, write(t, int64(len(b)), map[int64][]byte{0: b}), "")
		missing := fmt.Sprintf("%#x bytes of the machine's memory are not in the file", tt.want-4096)
		if text := strings.Join(f.Problems, "\n"); !strings.Contains(text, missing) || !strings.Contains(text, "where the ") {
			t.Errorf("%d pages: %q", len(tt.pages), text)
		}
	}
}

// TestMigrationWithoutRAM: a stream that has no RAM says where it is.
func TestMigrationWithoutRAM(t *testing.T) {
	devices := cpuOf(vmstatetest.NewDevices())
	if _, err := memfile.Open(write(t, int64(len(devices)), map[int64][]byte{0: devices}), memfile.Options{}); !errors.Is(err, memfile.ErrForeign) {
		t.Errorf("devices alone: %v", err)
	}
	blocks, pages := someRAM()
	b := cpuOf(vmstatetest.NewMigration("pc").RAM(blocks, pages[4]))
	if _, err := memfile.Open(write(t, int64(len(b)), map[int64][]byte{0: b}), memfile.Options{}); !errors.Is(err, memfile.ErrUnsupported) || !strings.Contains(err.Error(), "x-ignore-shared") {
		t.Errorf("memory that was not sent: %v", err)
	}
}
