package vmx

import (
	"strings"

	"nestdbg/internal/mem"
)

// Structure is memory that a VMCS points to.
type Structure struct {
	What string // "MSR bitmaps"
	At   mem.Phys
	Size uint64 // bytes
}

// structure is a field with the address of a structure, of size bytes aligned to align.
// count is the field with the number of its elements, 0 if it has a size of its own.
type structure struct {
	field       Field
	align, size uint64
	count       Field
	guests      bool // the guest is meant to reach it
}

// structures are those that the controls turn on (SDM Vol. 3C, "VM-Execution Control
// Fields", "VM-Exit Controls for MSRs", "VM-Entry Controls for MSRs").
func (v *VMCS) structures() (out []structure) {
	pin, primary, second := v.get(PinControls), v.get(PrimaryControls), v.second()
	page := func(on bool, fields ...Field) {
		for _, f := range fields {
			if on {
				out = append(out, structure{field: f, align: PageSize, size: PageSize})
			}
		}
	}
	area := func(address, count Field) {
		if n := v.get(count); n != 0 {
			out = append(out, structure{field: address, align: 16, size: 16 * n, count: count})
		}
	}
	page(primary&primaryIOBitmaps != 0, IOBitmapA, IOBitmapB)
	page(primary&primaryMSRBitmaps != 0, MSRBitmaps)
	page(primary&primaryTPRShadow != 0, VirtualAPIC)
	if second&secondAPICAccess != 0 {
		// Accesses to it are what is virtual: EPT has to lead there.
		out = append(out, structure{field: APICAccess, align: PageSize, size: PageSize, guests: true})
	}
	if pin&pinPosted != 0 {
		out = append(out, structure{field: PostedDesc, align: 64, size: 64})
	}
	page(second&secondPML != 0, PMLAddress)
	page(second&secondShadowing != 0, VMREADBitmap, VMWRITEBitmap)
	page(second&secondFunctions != 0 && v.get(VMFunctions)&functionEPTP != 0, EPTPList)
	page(second&secondSubPage != 0, SubPageTable)
	area(ExitStoreAddr, ExitStoreCount)
	area(ExitLoadAddr, ExitLoadCount)
	area(EntryLoadAddr, EntryLoadCount)
	return out
}

// shadow is the address of the VMCS that the guest's VMREAD and VMWRITE use.
func (v *VMCS) shadow() (at uint64, ok bool) {
	at, ok = v.Get(LinkPointer)
	return at, ok && at != ^uint64(0) && v.second()&secondShadowing != 0
}

// Structures is the memory that a VMCS makes the processor use, and that is no guest's: what
// a guest may do, what it did, and what a VM entry or exit loads.
func (v *VMCS) Structures() (out []Structure) {
	for _, s := range v.structures() {
		if at, ok := v.Get(s.field); ok && at != 0 && !s.guests {
			name := s.field.String()
			for _, end := range []string{" address", " pointer"} {
				name = strings.TrimSuffix(name, end)
			}
			out = append(out, Structure{name, mem.Phys(at), s.size})
		}
	}
	if at, ok := v.shadow(); ok {
		out = append(out, Structure{"shadow VMCS", mem.Phys(at), PageSize})
	}
	return out
}
