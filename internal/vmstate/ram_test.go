package vmstate

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/vmstate/vmstatetest"
)

// TestCommands: what is said to whoever loads the stream is passed over if it changes
// nothing, as a machine of QEMU 10.0 says it ahead of the last piece of RAM.
func TestCommands(t *testing.T) {
	const openReturnPath, ping, packaged, switchover = 1, 2, 8, 11
	pieces := func(command uint16, data ...byte) []byte {
		b := vmstatetest.NewMigration("pc-q35-10.0", "x-ignore-shared").Command(openReturnPath).Command(ping, 0, 0, 0, 1)
		b.Piece(1, "ram", 4, ramList("pc.ram", 1<<20)).Command(command, data...).Piece(2, "ram", 0, ramEnd())
		return withCPU(b.Command(switchover).Piece(3, "ram", 0, ramEnd()))
	}
	for _, parse := range []func([]byte, *arch.Arch) (*State, error){Parse, ParseMigration} {
		if s, err := parse(pieces(switchover), arch.X86); err != nil || len(s.CPUs) != 1 || len(s.Problems) > 0 {
			t.Errorf("%v, %v", describe(s), err)
		}
		if s, err := parse(pieces(packaged, 0, 0, 0, 0), arch.X86); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "command 8 at offset 0x") {
			t.Errorf("%v, %v", describe(s), err)
		}
	}
	whole := pieces(ping, 1, 2, 3, 4)
	at := bytes.Index(whole, []byte{8, 0, 2, 0, 4, 1, 2, 3, 4})
	for n := at + 1; n < at+9; n++ {
		if s, err := Parse(whole[:n], arch.X86); !errors.Is(err, ErrCorrupt) {
			t.Errorf("a command cut after %d bytes: %v, %v", n-at, describe(s), err)
		}
	}
}

// TestEarlySections: devices that speak ahead of RAM, as virtio-mem does, have sections
// as others do, whatever bytes are in them.
func TestEarlySections(t *testing.T) {
	payload := append(bytes.Repeat([]byte{0x7e, 0, 0, 0, 3, 4}, 100), vmstatetest.SectionHeader(5, "ram", 0, 4)...)
	start := func() *vmstatetest.Builder {
		return vmstatetest.NewMigration("pc-q35-10.0").SetID(3).Section("0000:00:02.0/virtio-mem-early", 0, 1, payload).Section("other-early", 0, 1, nil)
	}
	for _, parse := range []func([]byte, *arch.Arch) (*State, error){Parse, ParseMigration} {
		s, err := parse(withCPU(start().SetID(1).RAM(machineBlocks, machinePages...).SetID(9)), arch.X86)
		if err != nil || len(s.CPUs) != 1 || len(s.Problems) > 0 {
			t.Errorf("%v, %v", describe(s), err)
			continue
		}
		if early := s.section("0000:00:02.0/virtio-mem-early", 0); early == nil || !bytes.Equal(early.Payload, payload) {
			t.Errorf("early section %v", early)
		}
		if s.RAM != nil && string(s.RAM.Blocks[0].Slice(0x1000)) != string(pageOf("1111")) {
			t.Error("another page")
		}
	}
	// Without RAM they are sections of devices.
	if s, err := Parse(withCPU(start().SetID(9)), arch.X86); err != nil || len(s.Sections) != 4 || len(s.CPUs) != 1 {
		t.Errorf("%v, %v", describe(s), err)
	}
}
