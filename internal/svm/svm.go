// Package svm reads the structures of AMD's virtualisation extension: the VMCB,
// which describes a nested guest, and the host save area, where VMRUN puts the
// hypervisor's own state. It recognises both in raw memory.
//
// Names and offsets are those of the AMD64 Architecture Programmer's Manual
// Vol. 2 (APM), Appendix B "Layout of VMCB", tables "VMCB Layout, Control Area"
// and "VMCB Layout, State Save Area".
package svm

import (
	"encoding/binary"
	"errors"
	"fmt"

	"nestdbg/internal/mem"
)

// PageSize is the size of a VMCB and of a host save area, in bytes.
const PageSize = 4096

// ErrCorrupt is the class of a page that cannot be what it is taken for.
var ErrCorrupt = errors.New("corrupt SVM structure")

// VMCB is a view of a VMCB page. While the guest runs, a processor keeps the
// state save area in itself: the page has the state of the last #VMEXIT.
//
// FS, GS, TR, LDTR, KERNEL_GS_BASE, STAR, LSTAR, CSTAR, SFMASK and the SYSENTER
// registers are not even written at #VMEXIT, only when the hypervisor executes
// VMSAVE. KVM does so at each exit.
type VMCB struct {
	page []byte
}

// Parse returns a view of page, which must have PageSize bytes and is not
// copied. Any page can be viewed; Assess says whether it is a VMCB.
func Parse(page []byte) (*VMCB, error) {
	if len(page) != PageSize {
		return nil, fmt.Errorf("%w: a VMCB has %d bytes, got %d", ErrCorrupt, PageSize, len(page))
	}
	return &VMCB{page: page}, nil
}

// u64, u32, u16, u8 read at a constant offset inside the page.
func (v *VMCB) u64(at int) uint64 { return binary.LittleEndian.Uint64(v.page[at:]) }
func (v *VMCB) u32(at int) uint32 { return binary.LittleEndian.Uint32(v.page[at:]) }
func (v *VMCB) u16(at int) uint16 { return binary.LittleEndian.Uint16(v.page[at:]) }
func (v *VMCB) u8(at int) uint8   { return v.page[at] }

// NestedPaging reports whether the guest's physical addresses are translated by
// a page table of the hypervisor, whose root is NCR3.
func (v *VMCB) NestedPaging() bool { return v.u64(offNPEnable)&npEnable != 0 }

// NCR3 is the field N_CR3: the root of nested paging in the format the
// hypervisor itself uses. It means nothing unless NestedPaging is true.
func (v *VMCB) NCR3() uint64 { return v.u64(offNCR3) }

// Encrypted reports whether the guest's memory or registers are encrypted (SEV,
// SEV-ES): what can be read of it is noise.
func (v *VMCB) Encrypted() bool { return v.u64(offNPEnable)&(sevEnable|sevESEnable) != 0 }

// ASID is the address space identifier of the guest; 0 is the hypervisor's own.
func (v *VMCB) ASID() uint32 { return v.u32(offASID) }

// IOPM and MSRPM are the physical addresses of the permission maps, of 12 and
// 8 KiB.
func (v *VMCB) IOPM() mem.Phys  { return mem.Phys(v.u64(offIOPM)) }
func (v *VMCB) MSRPM() mem.Phys { return mem.Phys(v.u64(offMSRPM)) }

// ExitCode is the reason of the last #VMEXIT; ExitName says it in words.
func (v *VMCB) ExitCode() uint64 { return v.u64(offExitCode) }

// ExitInfo1 and ExitInfo2 say more about it, by exit code: for NPF the error
// code and the guest physical address, for #PF the error code and the address.
func (v *VMCB) ExitInfo1() uint64 { return v.u64(offExitInfo1) }
func (v *VMCB) ExitInfo2() uint64 { return v.u64(offExitInfo2) }
