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

// TestEarlySections: devices that speak ahead of a piece of RAM, as virtio-mem does,
// have sections as others do, although footers of their own may be in them.
func TestEarlySections(t *testing.T) {
	const name = "0000:00:02.0/virtio-mem-device-early"
	payload := append(bytes.Repeat([]byte{0x7e, 0, 0, 0, 3, 0xff}, 100), vmstatetest.SectionHeader(5, "ram", 0, 4)...)
	early := func(b *vmstatetest.Builder) *vmstatetest.Builder {
		return b.SetID(3).Section(name, 0, 1, payload).Section("other-early", 0, 1, nil).SetID(1)
	}
	start := func() *vmstatetest.Builder {
		return vmstatetest.NewMigration("pc-q35-10.0", "x-ignore-shared").SetID(1)
	}
	list := ramList("pc.ram", 1<<20)
	for order, b := range map[string]*vmstatetest.Builder{
		"ahead of all":   early(start()).Piece(1, "ram", 4, list).Piece(3, "ram", 0, ramEnd()),
		"behind Start":   early(start().Piece(1, "ram", 4, list)).SetID(2).Piece(2, "ram", 0, ramEnd()).Piece(3, "ram", 0, ramEnd()),
		"and a command":  early(start().Piece(1, "ram", 4, list)).Command(11).SetID(2).Piece(3, "ram", 0, ramEnd()),
		"without an End": early(start()).Piece(1, "ram", 4, list),
	} {
		whole := withCPU(b.SetID(9))
		for _, parse := range []func([]byte, *arch.Arch) (*State, error){Parse, ParseMigration} {
			s, err := parse(whole, arch.X86)
			if err != nil || len(s.CPUs) != 1 || len(s.Problems) > 0 {
				t.Errorf("%s: %v, %v", order, describe(s), err)
				continue
			}
			if early := s.section(name, 0); early == nil || !bytes.Equal(early.Payload, payload) {
				t.Errorf("%s: early section %v", order, early)
			}
		}
	}
	// Without RAM they are sections of devices.
	if s, err := Parse(withCPU(early(start()).SetID(9)), arch.X86); err != nil || len(s.Sections) != 4 || len(s.CPUs) != 1 {
		t.Errorf("%v, %v", describe(s), err)
	}
}
