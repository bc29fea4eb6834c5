// Package vmx reads the VMCS, the page by which Intel's virtualisation extension
// describes a nested guest, and recognises it in raw memory. The manual defines
// what its fields are and leaves open where they lie: each processor, emulator and
// hypervisor that offers VMX has a Layout of its own.
//
// Field names, encodings and rules are those of the Intel 64 and IA-32
// Architectures Software Developer's Manual (SDM), Vol. 3C "Virtual Machine
// Control Structures" and "VM Entries", Vol. 3D Appendix B "Field Encoding in
// VMCS".
package vmx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// PageSize is the size of a VMCS region in bytes. IA32_VMX_BASIC may say less,
// never more.
const PageSize = 4096

// ErrCorrupt is the class of a page that cannot be what it is taken for.
var ErrCorrupt = errors.New("corrupt VMX structure")

// The header that every VMCS region begins with (SDM Vol. 3C, "Format of the VMCS
// Region").
const (
	offRevision = 0 // u32; bit 31: a shadow VMCS
	offAbort    = 4 // u32, 0 but after a VMX abort

	shadowVMCS = 1 << 31
)

// VMCS is a view of a VMCS region through one layout. A processor may keep all of
// a VMCS that is active in itself, and KVM, offering VMX to its guests, does: the
// page in memory is sure to be current only after VMCLEAR.
type VMCS struct {
	page   []byte
	layout *Layout
}

// View returns page as a VMCS of a layout. page must have PageSize bytes and is
// not copied. Any page can be viewed; Assess says whether it is a VMCS, and of
// which layout.
func View(page []byte, layout *Layout) (*VMCS, error) {
	if len(page) != PageSize {
		return nil, fmt.Errorf("%w: a VMCS has %d bytes, got %d", ErrCorrupt, PageSize, len(page))
	}
	return &VMCS{page: page, layout: layout}, nil
}

// Layout is how the fields were found.
func (v *VMCS) Layout() *Layout { return v.layout }

// Revision is the VMCS revision identifier.
func (v *VMCS) Revision() uint32 {
	return binary.LittleEndian.Uint32(v.page[offRevision:]) &^ shadowVMCS
}

// Abort is the VMX-abort indicator.
func (v *VMCS) Abort() uint32 { return binary.LittleEndian.Uint32(v.page[offAbort:]) }

// Shadow reports whether it is a shadow VMCS, which no VM entry can use.
func (v *VMCS) Shadow() bool {
	return binary.LittleEndian.Uint32(v.page[offRevision:])&shadowVMCS != 0
}

// Get returns a field. ok is false if the layout has no place for it, or none
// that is known.
func (v *VMCS) Get(f Field) (value uint64, ok bool) {
	at, ok := v.layout.places[f]
	if !ok {
		return 0, false
	}
	b := v.page[at:]
	switch f.Size() {
	case 2:
		return uint64(binary.LittleEndian.Uint16(b)), true
	case 4:
		x := binary.LittleEndian.Uint32(b)
		if f >= GuestESRights && f <= GuestTRRights {
			x = bits.RotateLeft32(x, -v.layout.rotated)
		}
		return uint64(x), true
	}
	return binary.LittleEndian.Uint64(b), true
}

// get is Get for what is only compared with something that is not zero, or that
// has been looked for before.
func (v *VMCS) get(f Field) uint64 {
	n, _ := v.Get(f)
	return n
}

// has reports whether the layout has all of these fields.
func (v *VMCS) has(fields ...Field) bool {
	for _, f := range fields {
		if _, ok := v.layout.places[f]; !ok {
			return false
		}
	}
	return true
}

// Value is a field with its value. Offset is from the start of the page, in bytes.
type Value struct {
	Field  Field
	Offset int
	Value  uint64
}

// Fields returns every field that the layout has, in the order of the encodings
// within control, read-only, guest and host.
func (v *VMCS) Fields() []Value {
	var out []Value
	for _, f := range v.layout.Fields() {
		out = append(out, Value{f, v.layout.places[f], v.get(f)})
	}
	return out
}
