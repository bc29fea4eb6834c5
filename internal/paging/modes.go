package paging

import (
	"errors"
	"fmt"
)

// ErrNotFound is the class of "there is no format of this name".
var ErrNotFound = errors.New("not found")

// ErrCorrupt is the class of register values that no processor would accept and
// of tables that cannot be genuine.
var ErrCorrupt = errors.New("corrupt")

// Control register bits that select the paging mode. Intel SDM Vol. 3A, "Paging
// Modes and Control Bits".
const (
	cr0PG   = 1 << 31
	cr4PSE  = 1 << 4
	cr4PAE  = 1 << 5
	cr4LA57 = 1 << 12
	eferLMA = 1 << 10
	eferNXE = 1 << 11
)

// Formats returns every format there is.
func Formats() []*Format {
	return []*Format{
		X86FourLevel, X86FiveLevel, X86PAE, X86TwoLevel, X86TwoLevelPSE,
		X86FourLevelNoNX, X86FiveLevelNoNX, X86PAENoNX,
		EPTFourLevel, EPTFiveLevel, EPTFourLevelMBEC, EPTFiveLevelMBEC,
		NPTFourLevel, NPTFiveLevel, NPTPAE, NPTTwoLevel, NPTTwoLevelPSE,
		NPTFourLevelNoNX, NPTFiveLevelNoNX, NPTPAENoNX,
		Identity,
	}
}

// ByName returns the format with that name, or an ErrNotFound.
func ByName(name string) (*Format, error) {
	for _, f := range Formats() {
		if f.Name == name {
			return f, nil
		}
	}
	return nil, fmt.Errorf("page table format %q: %w", name, ErrNotFound)
}

// ForX86 returns what a processor with these control registers walks. With
// paging off that is Identity.
func ForX86(cr0, cr4, efer uint64) (*Format, error) {
	nx := efer&eferNXE != 0
	switch {
	case cr0&cr0PG == 0:
		return Identity, nil
	case efer&eferLMA != 0 && cr4&cr4PAE == 0:
		return nil, fmt.Errorf("%w: long mode without PAE: CR4 %#x, EFER %#x", ErrCorrupt, cr4, efer)
	case efer&eferLMA != 0 && cr4&cr4LA57 != 0:
		return pick(nx, X86FiveLevel, X86FiveLevelNoNX), nil
	case efer&eferLMA != 0:
		return pick(nx, X86FourLevel, X86FourLevelNoNX), nil
	case cr4&cr4PAE != 0:
		return pick(nx, X86PAE, X86PAENoNX), nil
	default:
		return pick(cr4&cr4PSE != 0, X86TwoLevelPSE, X86TwoLevel), nil
	}
}

// Bits of QEMU's nested_pg_mode (QEMU 7.2 target/i386/cpu.h:PG_MODE_*).
const (
	qemuPAE  = 1 << 0
	qemuLMA  = 1 << 1
	qemuNXE  = 1 << 2
	qemuPSE  = 1 << 3
	qemuLA57 = 1 << 4
)

// NPTForMode returns the format of nested page tables from the paging mode that
// QEMU keeps with the nested CR3: the mode of the hypervisor at its VMRUN, which
// is the mode of the tables (AMD APM Vol. 2, "Nested Paging"). Bits of
// nested_pg_mode that do not concern the format are an error: then QEMU's
// numbering is not the one we know.
func NPTForMode(mode uint64) (*Format, error) {
	nx := mode&qemuNXE != 0
	switch {
	case mode&^(qemuPAE|qemuLMA|qemuNXE|qemuPSE|qemuLA57) != 0:
		return nil, fmt.Errorf("%w: nested paging mode %#x has unknown bits", ErrCorrupt, mode)
	case mode&qemuLMA != 0 && mode&qemuPAE == 0:
		return nil, fmt.Errorf("%w: nested paging mode %#x: long mode without PAE", ErrCorrupt, mode)
	case mode&qemuLMA != 0 && mode&qemuLA57 != 0:
		return pick(nx, NPTFiveLevel, NPTFiveLevelNoNX), nil
	case mode&qemuLMA != 0:
		return pick(nx, NPTFourLevel, NPTFourLevelNoNX), nil
	case mode&qemuPAE != 0:
		return pick(nx, NPTPAE, NPTPAENoNX), nil
	default:
		return pick(mode&qemuPSE != 0, NPTTwoLevelPSE, NPTTwoLevel), nil
	}
}

func pick(first bool, a, b *Format) *Format {
	if first {
		return a
	}
	return b
}
