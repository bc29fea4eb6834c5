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
