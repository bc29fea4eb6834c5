package paging

import (
	"fmt"

	"nestdbg/internal/mem"
)

// The formats of Intel's extended page tables. Whether mode-based execute control
// is on stands in the VMCS ("secondary processor-based VM-execution controls",
// bit 22), not in the EPT pointer.
var (
	EPTFourLevel     = ept("ept4", 4, false)
	EPTFiveLevel     = ept("ept5", 5, false)
	EPTFourLevelMBEC = ept("ept4-mbec", 4, true)
	EPTFiveLevelMBEC = ept("ept5-mbec", 5, true)
)

// Bits of an EPT entry. Intel SDM Vol. 3C, "EPT Translation Mechanism".
const (
	eptR    = 1 << 0
	eptW    = 1 << 1
	eptX    = 1 << 2 // with mode-based execute control: for supervisor-mode addresses
	eptType = 7 << 3 // memory type, of leaves
	eptPS   = 1 << 7 // a leaf, above level 1
	eptXU   = 1 << 10
	eptAddr = 0x000f_ffff_ffff_f000
)

// eptMisconfigured are the combinations that cause an EPT misconfiguration
// whatever the processor can do (Intel SDM Vol. 3C, "EPT Misconfigurations").
// Execute without read is legal on processors that say so in a capability
// register, which we cannot see, so it is taken as legal.
var eptMisconfigured = []illegal{
	{eptR | eptW | eptX, eptW | eptX, "misconfiguration: write without read (110b is KVM's mark for MMIO)"},
	{eptR | eptW, eptW, "misconfiguration: write without read"},
}

// eptBadType are the reserved memory types of leaves.
var eptBadType = []illegal{
	{eptType, 2 << 3, "misconfiguration: reserved memory type 2"},
	{eptType, 3 << 3, "misconfiguration: reserved memory type 3"},
	{eptType, 7 << 3, "misconfiguration: reserved memory type 7"},
}

func ept(name string, levels int, mbec bool) *Format {
	f := Format{Name: name, PageShift: 12, EntrySize: 8, rootMask: eptAddr, broken: "misconfiguration: ",
		present: eptR | eptW | eptX, leafBit: eptPS, perms: Read | Write | Exec}
	e := entryRule{addr: eptAddr, illegal: eptMisconfigured, perms: []permRule{
		{perm: Read, bit: eptR}, {perm: Write, bit: eptW}, {perm: Exec, bit: eptX}}}
	tableFlags, pageFlags, largeFlags := eptTableFlags, eptPageFlags, eptLargeFlags
	if mbec {
		f.present |= eptXU
		f.perms |= UserExec
		e.perms = append(e.perms, permRule{perm: UserExec, bit: eptXU})
		tableFlags, pageFlags, largeFlags = eptTableFlagsMBEC, eptPageFlagsMBEC, eptLargeFlagsMBEC
	}
	leaf := e
	leaf.illegal = append(append([]illegal(nil), eptMisconfigured...), eptBadType...)
	table := e.with(0x78, tableFlags) // bits 6:3
	for range levels {
		f.IndexBits = append(f.IndexBits, 9)
	}
	for range levels - 3 {
		f.levels = append(f.levels, level{table: e.with(0xf8, tableFlags)}) // bits 7:3
	}
	f.levels = append(f.levels,
		level{table: table, leaf: leaf.with(below(30, 12), largeFlags)},
		level{table: table, leaf: leaf.with(below(21, 12), largeFlags)},
		level{leaf: leaf.with(0, pageFlags)})
	return f.finish()
}

// EPTForPointer returns the format and the root that an EPT pointer selects. A
// pointer that VM entry would refuse is an error (Intel SDM Vol. 3C,
// "Extended-Page-Table Pointer (EPTP)" and "Checks on VMX Controls").
func EPTForPointer(eptp uint64) (*Format, mem.Phys, error) {
	if t := eptp & 7; t != 0 && t != 6 {
		return nil, 0, fmt.Errorf("%w: EPT pointer %#x: memory type %d, want 0 or 6", ErrCorrupt, eptp, t)
	}
	if bad := eptp & (0xfff0_0000_0000_0000 | 0xf00); bad != 0 {
		return nil, 0, fmt.Errorf("%w: EPT pointer %#x: reserved bits %#x set", ErrCorrupt, eptp, bad)
	}
	switch n := eptp>>3&7 + 1; n {
	case 4:
		return EPTFourLevel, EPTFourLevel.Root(eptp), nil
	case 5:
		return EPTFiveLevel, EPTFiveLevel.Root(eptp), nil
	default:
		return nil, 0, fmt.Errorf("%w: EPT pointer %#x: %d levels, want 4 or 5", ErrCorrupt, eptp, n)
	}
}

// WithModeBasedExecute returns the EPT format in which user mode has an execute
// permission of its own; another format, and one that is that already, unchanged. It is
// told by the format itself: what the With methods made of it comes later.
func WithModeBasedExecute(f *Format) *Format {
	switch f {
	case EPTFourLevel:
		return EPTFourLevelMBEC
	case EPTFiveLevel:
		return EPTFiveLevelMBEC
	}
	return f
}
