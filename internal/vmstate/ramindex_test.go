package vmstate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/vmstate/vmstatetest"
)

func pageOf(text string) []byte { return bytes.Repeat([]byte(text)[:4], 1024) }

// describe is a state in a line.
func describe(s *State) string {
	if s == nil {
		return "none"
	}
	return fmt.Sprintf("%d CPUs, %d sections, problems %q", len(s.CPUs), len(s.Sections), s.Problems)
}

// machineBlocks are a small machine, whose firmware follows its memory.
var machineBlocks = []vmstatetest.Block{{Name: "pc.ram", Size: 0x10000}, {Name: "pc.bios", Size: 0x2000}}

// machinePages are sent by a machine that ran: page 0x3000 twice.
var machinePages = []vmstatetest.Page{
	{Block: "pc.ram", Addr: 0x0000, Data: []byte{0}}, {Block: "pc.ram", Addr: 0x1000, Data: pageOf("1111")},
	{Block: "pc.ram", Addr: 0x3000, Data: pageOf("old!")}, {Block: "pc.bios", Addr: 0x1000, Data: pageOf("bios")},
	{Block: "pc.ram", Addr: 0x4000, Data: []byte{0xaa}}, {Block: "pc.ram", Addr: 0x3000, Data: pageOf("new!")},
}

func withCPU(b *vmstatetest.Builder) []byte {
	return b.Section("cpu_common", 0, 1, vmstatetest.Common(0, 0)).Section("cpu", 0, 12, vmstatetest.CPU(map[string]uint64{"rip": 0x1234})).Bytes()
}

// TestMigrationRAM: every page is where it is, the last of several counts, and what was
// not sent is not there.
func TestMigrationRAM(t *testing.T) {
	whole := withCPU(vmstatetest.NewMigration("pc-q35-7.2").RAM(machineBlocks, machinePages...))
	s, err := ParseMigration(whole, arch.X86)
	if err != nil || len(s.CPUs) != 1 || len(s.Problems) > 0 || len(s.RAM.Blocks) != 2 {
		t.Fatalf("%v, %v", describe(s), err)
	}
	ram := s.RAM.Blocks[0]
	if got := fmt.Sprint(ram.Ranges(), ram.Populated()); got != "[0x0-0x1fff 0x3000-0x4fff] [0x1000-0x1fff 0x3000-0x4fff]" {
		t.Errorf("ranges %s", got)
	}
	for addr, want := range map[uint64]string{0: "\x00\x00\x00\x00", 0x1000: "1111", 0x3000: "new!", 0x4ffc: "\xaa\xaa\xaa\xaa", 0x1ffd: "111"} {
		b := ram.Slice(addr)
		if len(b) > 4 {
			b = b[:4]
		}
		if string(b) != want {
			t.Errorf("%#x: %q, want %q", addr, b, want)
		}
	}
	for _, addr := range []uint64{0x2000, 0x5000, 0x10000, 1 << 60} {
		if b := ram.Slice(addr); b != nil {
			t.Errorf("%#x, which is not there: %d bytes", addr, len(b))
		}
	}
	if at, ok := ram.Offset(0x3002); !ok || string(whole[at:at+2]) != "w!" {
		t.Errorf("offset %#x, %v", at, ok)
	}
	if _, ok := ram.Offset(0x4000); ok {
		t.Error("a page of one byte has an offset")
	}
}

// TestMappedRAM: the form of QEMU 9.0 and later, from its published description.
func TestMappedRAM(t *testing.T) {
	blocks := append(machineBlocks, vmstatetest.Block{Name: "last", Size: 0x1000})
	whole := withCPU(vmstatetest.NewMigration("pc-q35-10.0", "mapped-ram").MappedRAM(1<<20, blocks,
		vmstatetest.Page{Block: "pc.ram", Addr: 0xf000, Data: pageOf("ffff")}, vmstatetest.Page{Block: "last", Data: pageOf("last")}))
	s, err := ParseMigration(whole, arch.X86)
	if err != nil || len(s.CPUs) != 1 || len(s.Problems) > 0 || len(s.RAM.Blocks) != 3 {
		t.Fatalf("%v, %v", describe(s), err)
	}
	ram, last := s.RAM.Blocks[0], s.RAM.Blocks[2]
	if got := fmt.Sprint(ram.Ranges(), ram.Populated()); got != "[0x0-0xffff] [0xf000-0xffff]" {
		t.Errorf("ranges %s", got)
	}
	if string(ram.Slice(0xffff)) != "f" || string(ram.Slice(0xeffe)) != "\x00\x00" || string(last.Slice(0xffc)) != "last" {
		t.Errorf("%q %q %q", ram.Slice(0xffff), ram.Slice(0xeffe), last.Slice(0xffc))
	}
	// The device state of such a stream is read too, without its RAM.
	if s, err := Parse(whole, arch.X86); err != nil || len(s.CPUs) != 1 {
		t.Errorf("%v, %v", describe(s), err)
	}
	// Places that cannot be.
	header := bytes.Index(whole, []byte("pc.ram")) + len("pc.ram") + 8
	for at, want := range map[int]error{0: ErrUnsupported, 4: ErrCorrupt, 12: ErrCorrupt, 20: ErrCorrupt} {
		b := bytes.Clone(whole)
		binary.BigEndian.PutUint32(b[header+at:], 0x7fffffff)
		if s, err := ParseMigration(b, arch.X86); !errors.Is(err, want) || s != nil {
			t.Errorf("header field at %d: %v, want %v", at, err, want)
		}
	}
}

// mappedPages are those of a mapped stream, with the offset of the first block's bits.
func mappedPages() (whole []byte, bits int) {
	whole = withCPU(vmstatetest.NewMigration("pc-q35-10.0", "mapped-ram").MappedRAM(0x1000, machineBlocks, machinePages[1], machinePages[5]))
	at := bytes.Index(whole, []byte("pc.ram")) + len("pc.ram") + 8
	return whole, int(binary.BigEndian.Uint64(whole[at+12:]))
}

// TestMappedCut: of a file that ends early the pages that it has are there, zeros too,
// and of the others it is said that they are not.
func TestMappedCut(t *testing.T) {
	whole, bits := mappedPages()
	parts := 0
	for n := 0; n < len(whole); n += 7 {
		s, err := ParseMigration(whole[:n], arch.X86)
		if (s == nil) == (err == nil) {
			t.Fatalf("%#x bytes: %v with error %v", n, describe(s), err)
		}
		if err != nil {
			continue
		}
		parts++
		ram := s.RAM.Blocks[0]
		for addr, want := range map[uint64]string{0x0000: "\x00\x00\x00\x00", 0x1000: "1111", 0x3000: "new!"} {
			if b := ram.Slice(addr); b != nil && !bytes.Equal(b, pageOf(want)) {
				t.Fatalf("%#x bytes: page %#x is another", n, addr)
			}
		}
		first := bytes.Index(whole, pageOf("1111")) - 0x1000
		if have, want := ram.Slice(0x1000) != nil, n >= first+0x2000; have != want || ram.Slice(0) == nil {
			t.Fatalf("%#x bytes, pages from %#x: page 0x1000 is there %v, page 0 %v", n, first, have, ram.Slice(0) != nil)
		}
		if len(s.Problems) == 0 {
			t.Fatalf("%#x bytes: not a word", n)
		}
	}
	if parts < 0x8000/7 {
		t.Errorf("%d of %d cuts have pages", parts, len(whole))
	}

	// Without the bits, which are written last, it is not known what pages are zero.
	copy(whole[bits:], make([]byte, 8))
	if s, err := ParseMigration(whole, arch.X86); err != nil || len(s.RAM.Blocks[0].Ranges()) != 1 || len(s.Problems) > 0 {
		t.Errorf("a machine of zeros: %v, %v", describe(s), err)
	}
	if s, err := ParseMigration(whole[:len(whole)-1], arch.X86); err == nil || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("interrupted: %v, %v", describe(s), err)
	}
}

// TestMigrationCut: a stream that ends early has the pages that it has, and says that
// something is missing.
func TestMigrationCut(t *testing.T) {
	whole := withCPU(vmstatetest.NewMigration("pc-q35-7.2").RAM(machineBlocks, machinePages...))
	parts := 0
	for n := range whole {
		s, err := ParseMigration(whole[:n], arch.X86)
		if (s == nil) == (err == nil) {
			t.Fatalf("%#x bytes: %v with error %v", n, describe(s), err)
		}
		if err != nil {
			continue
		}
		parts++
		if len(s.CPUs) != 0 || len(s.Problems) == 0 || !strings.Contains(s.Problems[0], "offset 0x") && !strings.Contains(s.Problems[0], "section") {
			t.Fatalf("%#x of %#x bytes: %d CPUs, %q", n, len(whole), len(s.CPUs), s.Problems)
		}
		if b := s.RAM.Blocks[0].Slice(0x1000); b != nil && !bytes.Equal(b, pageOf("1111")) {
			t.Fatalf("%#x bytes: another page", n)
		}
	}
	if parts < 4*4096 {
		t.Errorf("%d of %d cuts have pages", parts, len(whole))
	}
}

// TestMigrationClaims: what a stream claims sizes nothing by itself.
func TestMigrationClaims(t *testing.T) {
	huge := []vmstatetest.Block{{Name: "pc.ram", Size: 1 << 60}}
	for name, pages := range map[string][]vmstatetest.Page{
		"far":          {{Block: "pc.ram", Addr: 1 << 59, Data: []byte{0}}},
		"no block":     {{Block: "other", Data: []byte{0}}},
		"behind block": {{Block: "pc.ram", Addr: 1 << 61, Data: []byte{0}}},
	} {
		if s, err := ParseMigration(withCPU(vmstatetest.NewMigration("pc").RAM(huge, pages...)), arch.X86); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, %v", name, describe(s), err)
		}
	}
	twice := []vmstatetest.Block{{Name: "a", Size: 0x1000}, {Name: "a", Size: 0x1000}}
	if s, err := ParseMigration(withCPU(vmstatetest.NewMigration("pc").RAM(twice)), arch.X86); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a block twice: %v, %v", describe(s), err)
	}
}

func FuzzMigration(f *testing.F) {
	f.Add(withCPU(vmstatetest.NewMigration("pc-q35-7.2").RAM(machineBlocks, machinePages...)))
	f.Add(withCPU(vmstatetest.NewMigration("pc", "x-ignore-shared").Piece(1, "ram", 4, ramList("pc.ram", 1<<20)).Piece(3, "ram", 4, ramEnd())))
	mapped := withCPU(vmstatetest.NewMigration("pc", "mapped-ram").MappedRAM(1, machineBlocks[1:], vmstatetest.Page{Block: "pc.bios", Data: pageOf("bios")}))
	f.Add(mapped)
	f.Add(mapped[:len(mapped)-0x1800])
	f.Add(withCPU(vmstatetest.NewMigration("pc").Command(1).SetID(3).Section("early", 0, 1, []byte{1, 2, 3}).SetID(1).
		Piece(1, "ram", 4, ramList("pc.ram", 1<<20)).Command(11).Piece(3, "ram", 4, ramEnd())))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseMigration(b, arch.X86)
		if (s == nil) == (err == nil) {
			t.Fatalf("state %v with error %v", describe(s), err)
		}
		if s == nil {
			return
		}
		if len(s.CPUs) == 0 && len(s.Problems) == 0 {
			t.Fatal("neither a CPU nor a word about it")
		}
		for _, block := range s.RAM.Blocks {
			for _, r := range block.Ranges() {
				if got := block.Slice(r.First); uint64(len(got)) != s.RAM.PageSize {
					t.Fatalf("a page of %d bytes at %#x", len(got), r.First)
				}
			}
		}
	})
}
