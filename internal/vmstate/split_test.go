package vmstate

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/vmstate/vmstatetest"
)

// around makes a stream with this payload in a device that comes before the CPU.
func around(payload []byte) []byte {
	return vmstatetest.NewDevices().
		SetID(7).Section("device", 0, 1, payload).
		Section("cpu", 0, 12, vmstatetest.CPU(nil)).Bytes()
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// TestPlanted has payloads that look like the end of their section but from
// which no chain of sections leads to the end of the stream.
func TestPlanted(t *testing.T) {
	footer, header := vmstatetest.Footer, vmstatetest.SectionHeader
	for name, payload := range map[string][]byte{
		"empty":                    nil,
		"footer":                   footer(7),
		"footer, bad header":       join(footer(7), []byte{4, 0, 0, 0, 9, 0}),
		"footer, header":           join(footer(7), header(9, "fake", 0, 1)),
		"footer, end":              join(footer(7), []byte{0}),
		"footer, end, description": join(footer(7), []byte{0, 6, 0, 0, 0, 2}, []byte("{}")),
		"other footers":            join(footer(8), footer(9), header(8, "cpu", 0, 12), footer(8)),
		"whole section":            join(footer(7), header(9, "fake", 0, 1), footer(9)),
		"half a footer":            footer(7)[:4],
		"all of it":                bytes.Repeat([]byte{0x7e}, 40),
	} {
		t.Run(name, func(t *testing.T) {
			s := check(t, around(payload), nil, "")
			if len(s.Sections) != 2 || !bytes.Equal(s.Sections[0].Payload, payload) {
				t.Errorf("sections %+v", s.Sections)
			}
		})
	}
}

// TestAmbiguous has payloads that a guest could plant so that two ways to cut
// the stream are consistent.
func TestAmbiguous(t *testing.T) {
	footer, header := vmstatetest.Footer, vmstatetest.SectionHeader
	for name, payload := range map[string][]byte{
		"section in a section": join(footer(7), header(9, "fake", 0, 1), footer(9), header(7, "device", 0, 1)),
		"the other half":       join(footer(7), header(7, "device", 0, 1)),
		"three ways": join(footer(7), header(9, "fake", 0, 1), footer(9), header(7, "device", 0, 1),
			footer(7), header(9, "fake", 0, 1), footer(9), header(7, "device", 0, 1)),
	} {
		t.Run(name, func(t *testing.T) { check(t, around(payload), ErrCorrupt, `"device"`) })
	}
	_, err := Parse(around(join(footer(7), header(7, "device", 0, 1))), arch.X86)
	if err == nil || !strings.Contains(err.Error(), "can end at 0x1c or at 0x35") {
		t.Errorf("error %v", err)
	}
}

func TestTwice(t *testing.T) {
	cpu := vmstatetest.CPU(nil)
	check(t, vmstatetest.NewDevices().Section("cpu", 0, 12, cpu).Section("cpu", 0, 12, cpu).Bytes(),
		ErrCorrupt, "is there twice")
	check(t, vmstatetest.NewDevices().Section("cpu", 0, 12, cpu).SetID(0).Section("cpu", 1, 12, cpu).Bytes(),
		ErrCorrupt, "")
}

func TestOrderOfIDs(t *testing.T) {
	// Sections of higher priority come first, whatever their ids (QEMU's
	// savevm_state_handler_insert).
	b := vmstatetest.NewDevices().SetID(30).Section("pci", 0, 1, nil).SetID(2).Section("cpu", 0, 12, vmstatetest.CPU(nil)).Bytes()
	s := check(t, b, nil, "")
	if s.Sections[0].ID != 30 || s.Sections[1].ID != 2 {
		t.Errorf("%+v", s.Sections)
	}
}

func TestNoEnd(t *testing.T) {
	b := small().Bytes()
	check(t, append(b, 0), ErrCorrupt, `no end of section "apic"`)
	check(t, append(b[:len(b)-1], 1), ErrCorrupt, `no end of section "apic"`)
	bad := vmstatetest.NewDevices().Section("cpu", 0, 12, vmstatetest.CPU(nil)).Section("", 0, 1, nil).Bytes()
	check(t, bad, ErrCorrupt, `no end of section "cpu"`)
}

// TestManyCandidates is a stream in which nearly every byte could be an end. It
// takes as long as it takes to read it.
func TestManyCandidates(t *testing.T) {
	piece := join(vmstatetest.Footer(7), vmstatetest.SectionHeader(7, "d", 0, 1))
	check(t, around(bytes.Repeat(piece, 1<<15)), ErrCorrupt, "can end at")
	check(t, append(around(bytes.Repeat(piece, 1<<15)), 0), ErrCorrupt, "no end of section")
}

// ramList is the first piece of the section ram: a block, not sent.
func ramList(name string, size uint64) []byte {
	b := binary.BigEndian.AppendUint64(nil, size|ramSize)
	b = append(append(b, byte(len(name))), name...)
	b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, size), 0)
	return append(b, ramEnd()...)
}

func ramEnd() []byte { return binary.BigEndian.AppendUint64(nil, ramEOS) }

// ramRecord is a page; without a name it belongs to the block before.
func ramRecord(addr, flags uint64, name string, content []byte) []byte {
	if name == "" {
		flags |= ramContinue
	}
	b := binary.BigEndian.AppendUint64(nil, addr|flags)
	if name != "" {
		b = append(append(b, byte(len(name))), name...)
	}
	return append(b, content...)
}

func TestRAM(t *testing.T) {
	stream := func(kind byte, name string, version uint32, last []byte) []byte {
		return vmstatetest.NewMigration("pc", "x-ignore-shared").SetID(2).
			Piece(1, "ram", 4, ramList("pc.ram", 1<<20)).
			Piece(kind, name, version, last).
			Section("cpu", 0, 12, vmstatetest.CPU(nil)).Bytes()
	}
	page := make([]byte, 4096)
	// What ends a section is no end inside a page.
	copy(page, join(vmstatetest.Footer(2), vmstatetest.SectionHeader(3, "cpu", 0, 12)))
	for name, c := range map[string]struct {
		b    []byte
		want error
		part string
	}{
		"nothing":   {stream(3, "", 0, ramEnd()), nil, ""},
		"pages":     {stream(2, "", 0, join(ramRecord(0, ramPage, "pc.bios", page), ramRecord(4096, ramZero, "", []byte{0}), ramEnd())), nil, ""},
		"multifd":   {stream(2, "", 0, join(binary.BigEndian.AppendUint64(nil, ramMultifd), ramEnd())), nil, ""},
		"xbzrle":    {stream(2, "", 0, ramRecord(0, 0x40, "", nil)), ErrUnsupported, "RAM record"},
		"no end":    {stream(2, "", 0, ramRecord(0, ramZero, "", []byte{0})), ErrUnsupported, "RAM record"},
		"no footer": {stream(2, "", 0, join(ramEnd(), []byte{1})), ErrCorrupt, `no end of section "ram"`},
		"other":     {stream(1, "dirty-bitmap", 1, nil), ErrUnsupported, "section"},
	} {
		t.Run(name, func(t *testing.T) {
			s := check(t, c.b, c.want, c.part)
			if s != nil && (len(s.Sections) != 3 || s.Sections[1].Name != "ram" || s.Sections[2].Name != "cpu") {
				t.Errorf("sections %+v", s.Sections)
			}
		})
	}
	check(t, vmstatetest.NewMigration("pc").Piece(1, "other", 4, ramEnd()).Bytes(), ErrUnsupported, `"other"`)
}
