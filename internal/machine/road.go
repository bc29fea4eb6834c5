package machine

import (
	"fmt"

	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
)

// Road is the second road to a nested machine's memory: what its hypervisor's
// process (the VMM) has mapped where, and the page tables of that process. The
// second stage is filled lazily and emptied at will, when the hypervisor moves a
// page or joins small pages to a large one; the road then still leads to the bytes.
type Road struct {
	// Space is the VMM's address space in the parent's memory.
	Space *paging.Space
	// Slots are the pieces of the nested machine's physical memory, without overlap.
	Slots []Slot
}

// Slot is a piece of a nested machine's physical memory and where its VMM has it.
type Slot struct {
	Base mem.Phys
	Size uint64   // bytes
	User mem.Virt // of Base, in the VMM
}

// OffRoadError says that no slot holds a physical address: there is a device, or
// nothing.
type OffRoadError struct{ Addr mem.Phys }

func (e *OffRoadError) Error() string {
	return fmt.Sprintf("%#x is in no memory slot of the VMM", uint64(e.Addr))
}

// Is makes it a mem.ErrFault.
func (e *OffRoadError) Is(target error) bool { return target == mem.ErrFault }

// Slot is the slot that holds a physical address of the nested machine.
func (r *Road) Slot(a mem.Phys) (Slot, bool) {
	for _, s := range r.Slots {
		if a >= s.Base && uint64(a-s.Base) < s.Size {
			return s, true
		}
	}
	return Slot{}, false
}

// User is where the VMM has a physical address of the nested machine, and how many
// bytes from there on belong to the same slot.
func (r *Road) User(a mem.Phys) (user mem.Virt, rest uint64, err error) {
	s, ok := r.Slot(a)
	if !ok {
		return 0, 0, &OffRoadError{a}
	}
	done := uint64(a - s.Base)
	return s.User + mem.Virt(done), s.Size - done, nil
}

// Translate returns where a lies in the parent's memory and how many bytes from
// there on lie together.
func (r *Road) Translate(a mem.Phys) (parent mem.Phys, contiguous uint64, err error) {
	user, rest, err := r.User(a)
	if err != nil {
		return 0, 0, err
	}
	parent, contiguous, err = r.Space.Translate(uint64(user))
	if err != nil {
		return 0, 0, err
	}
	return parent, min(contiguous, rest), nil
}
