package paging_test

import (
	"fmt"
	"testing"

	"nestdbg/internal/paging"
)

func TestEPTMisconfigurations(t *testing.T) {
	for _, f := range []*paging.Format{paging.EPTFourLevel, paging.EPTFiveLevel, paging.EPTFourLevelMBEC} {
		for leaf := 1; leaf <= 3; leaf++ {
			for level := leaf; level <= f.Levels(); level++ {
				for _, access := range []uint64{2, 6} {
					o := mapOne(f, leaf)
					o.clear(level, 7)
					o.set(level, access)
					o.refused(t, level, paging.Malformed, "misconfiguration: write without read")
				}
			}
			for _, memoryType := range []uint64{2, 3, 7} {
				o := mapOne(f, leaf)
				o.clear(leaf, 0x38)
				o.set(leaf, memoryType<<3)
				o.refused(t, leaf, paging.Malformed, fmt.Sprintf("reserved memory type %d", memoryType))
			}
		}
	}
}

// Reserved bits are misconfigurations, too (Intel SDM Vol. 3C, "EPT
// Misconfigurations"): 6:3 and, above the levels with leaves, 7 of a table's entry; the
// low address bits of a large page; address bits that the processor does not have.
func TestEPTReservedBits(t *testing.T) {
	for _, f := range []*paging.Format{paging.EPTFourLevel, paging.EPTFiveLevel, paging.EPTFourLevelMBEC, paging.EPTFiveLevelMBEC} {
		narrow := f.WithPhysBits(40)
		for leaf := 1; leaf <= 3; leaf++ {
			for level := leaf; level <= f.Levels(); level++ {
				bits := []uint64{3, 6}
				switch {
				case level > 3:
					bits = append(bits, 7)
				case level == leaf && level > 1:
					bits = []uint64{12, uint64(11 + 9*(level-1))}
				case level == 1:
					bits = nil
				}
				for _, n := range bits {
					o := mapOne(f, leaf)
					o.set(level, 1<<n)
					o.refused(t, level, paging.Malformed, fmt.Sprintf("misconfiguration: reserved bit %d set", n))
				}
				o := mapOne(narrow, leaf)
				o.set(level, 1<<40)
				o.refused(t, level, paging.Malformed, "misconfiguration: reserved bit 40 set")
			}
		}
	}
}

// Execute-only pages are legal, for both modes and for user mode alone, and bit 10
// without mode-based execute control makes nothing present.
func TestEPTExecuteOnly(t *testing.T) {
	for _, c := range []struct {
		f    *paging.Format
		bits uint64
		want paging.Perm
	}{
		{paging.EPTFourLevel, 4, paging.Exec}, {paging.EPTFiveLevel, 4, paging.Exec},
		{paging.EPTFourLevelMBEC, 4, paging.Exec}, {paging.EPTFourLevelMBEC, 1 << 10, paging.UserExec},
		{paging.EPTFiveLevelMBEC, 4 | 1<<10, paging.Exec | paging.UserExec},
	} {
		o := mapOne(c.f, 1)
		o.clear(1, 7|1<<10)
		o.set(1, c.bits)
		tr, err := c.f.Walk(o.memory, o.tables.Root(), o.addr)
		if err != nil || tr.Perm != c.want {
			t.Errorf("%s with bits %#x: %v, %v, want %v", c.f.Name, c.bits, tr.Perm, err, c.want)
		}
	}
	o := mapOne(paging.EPTFourLevel, 1)
	o.clear(1, 7)
	o.set(1, 1<<10)
	o.refused(t, 1, paging.NotPresent, "not present")
}

func TestWithModeBasedExecute(t *testing.T) {
	for f, want := range map[*paging.Format]*paging.Format{
		paging.EPTFourLevel: paging.EPTFourLevelMBEC, paging.EPTFiveLevel: paging.EPTFiveLevelMBEC,
		paging.EPTFourLevelMBEC: paging.EPTFourLevelMBEC, paging.NPTFourLevel: paging.NPTFourLevel,
	} {
		if got := paging.WithModeBasedExecute(f); got != want {
			t.Errorf("%s becomes %s, want %s", f.Name, got.Name, want.Name)
		}
	}
}

// TestKVMMarks is what KVM writes into second-stage tables where there is no RAM.
func TestKVMMarks(t *testing.T) {
	for _, c := range []struct {
		f      *paging.Format
		entry  uint64
		cause  paging.Cause
		reason string
	}{
		{paging.NPTFourLevel, 1<<51 | 1<<11 | 0x7, paging.Malformed, "reserved bit 51 set (KVM's mark for MMIO)"},
		{paging.NPTFiveLevel, 1<<51 | 0xfee0_0000 | 0x7, paging.Malformed, "MMIO"},
		{paging.NPTFiveLevel, 1<<51 | 0xfee0_0000 | 0x1, paging.Malformed, "MMIO"},
		{paging.NPTFiveLevel, 1<<63 | 0x5a0, paging.NotPresent, "not present"},
		{paging.NPTFiveLevel, 0x5a0, paging.NotPresent, "not present"},
		{paging.EPTFourLevel, 0xfee0_0000 | 0x6, paging.Malformed, "KVM's mark for MMIO"},
		{paging.EPTFourLevel, 1<<63 | 0x5a0, paging.NotPresent, "not present"},
		{paging.EPTFourLevel, 1 << 63, paging.NotPresent, "not present"},
	} {
		o := mapOne(c.f, 1)
		o.tables.Edit(o.addr, 1, func(uint64) uint64 { return c.entry })
		o.refused(t, 1, c.cause, c.reason)
	}
}
