package linux

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"nestdbg/internal/mem"
)

// memslotsMax bounds the slots of one address space: KVM_USER_MEM_SLOTS is 32764.
const memslotsMax = 1 << 15

// Memslot is a piece of a guest's physical memory and where its VMM has it: the
// second road to the guest's bytes, also to those the guest has not touched yet.
type Memslot struct {
	ID           int
	AddressSpace int      // 0, or 1 for that of system management mode
	Base         mem.Phys // of the guest
	Size         uint64   // bytes
	User         mem.Virt // where Base is in the VMM's process
	Flags        uint32   // KVM_MEM_*
}

// Flags of a slot (Linux 6.12 include/uapi/linux/kvm.h, include/linux/kvm_host.h).
const (
	slotGuestMemory = 1 << 2  // KVM_MEM_GUEST_MEMFD: private pages are not in the VMM
	slotInvalid     = 1 << 16 // KVM_MEMSLOT_INVALID: being removed
)

// Shared reports whether the VMM has the very pages that the guest has.
func (m *Memslot) Shared() bool { return m.Flags&(slotGuestMemory|slotInvalid) == 0 }

// slotShape is where struct kvm_memory_slot keeps what we want.
type slotShape struct {
	shape                       *shape
	gfn, count, user, flags, id Field
}

func newSlotShape(t *Types) (*slotShape, error) {
	s := newShape(t, "kvm_memory_slot")
	return &slotShape{s, s.need("base_gfn"), s.need("npages"), s.need("userspace_addr"),
		s.need("flags"), s.need("id")}, s.err
}

func (s *slotShape) read(space AddressSpace, addr mem.Virt) (Memslot, error) {
	rec, err := s.shape.read(space, addr)
	if err != nil {
		return Memslot{}, err
	}
	gfn, count := rec.uint(s.gfn), rec.uint(s.count)
	const pagesMax = 1 << 40 // 52 bits of physical address
	if gfn >= pagesMax || count == 0 || count > pagesMax-gfn {
		return Memslot{}, fmt.Errorf("slot at %#x: %#x pages from page %#x: %w", addr, count, gfn, ErrCorrupt)
	}
	return Memslot{ID: int(rec.int(s.id)), Base: mem.Phys(gfn * pageSize), Size: count * pageSize,
		User: rec.virt(s.user), Flags: uint32(rec.uint(s.flags))}, nil
}

// memslots reads the slots of every address space of a VM, by address. With an
// error, those that were reached.
func (r *kvmReader) memslots(vm *record) ([]Memslot, error) {
	s, err := newSlotShape(r.types)
	if err != nil {
		return nil, err
	}
	var out []Memslot
	var all error
	for i := range r.vm.slots.Count {
		set := mem.Virt(vm.word(r.vm.slots, i))
		if set == 0 {
			continue
		}
		slots, err := r.slotSet(s, set)
		if err != nil {
			all = errors.Join(all, fmt.Errorf("address space %d: %w", i, err))
		}
		for _, slot := range slots {
			slot.AddressSpace = int(i)
			out = append(out, slot)
		}
	}
	slices.SortStableFunc(out, func(a, b Memslot) int {
		return cmp.Or(cmp.Compare(a.AddressSpace, b.AddressSpace), cmp.Compare(a.Base, b.Base))
	})
	return out, all
}

// slotSet reads one struct kvm_memslots: a hash by id since Linux 5.17, an array before.
func (r *kvmReader) slotSet(s *slotShape, set mem.Virt) ([]Memslot, error) {
	if _, err := r.types.Field("kvm_memslots", "id_hash"); errors.Is(err, ErrNotFound) {
		return r.slotArray(s, set)
	}
	head := newShape(r.types, "kvm_memslots")
	hash, index := head.words("id_hash"), head.need("node_idx")
	rec, err := head.read(r.k.space, set)
	if err != nil {
		return nil, err
	}
	// Each slot hangs in two sets, the one in use and the next one: node_idx says by which node.
	node, err := r.types.Field("kvm_memory_slot", fmt.Sprintf("id_node[%d]", rec.uint(index)))
	if err != nil {
		return nil, err
	}
	var slots slotList
	for i := range hash.Count {
		at := mem.Virt(rec.word(hash, i))
		for at != 0 && slots.room() {
			slots.add(s.read(r.k.space, at-mem.Virt(node.Offset)))
			next, err := mem.VirtUint64(r.k.space, at)
			if err != nil {
				slots.fail(err)
				break
			}
			at = mem.Virt(next)
		}
	}
	return slots.list, slots.err
}

// slotList collects slots; of what fails it keeps the first error and goes on.
type slotList struct {
	list  []Memslot
	tried int
	err   error
}

func (l *slotList) fail(err error) {
	if l.err == nil {
		l.err = err
	}
}

func (l *slotList) add(slot Memslot, err error) {
	if err != nil {
		l.fail(err)
		return
	}
	l.list = append(l.list, slot)
}

// room counts an attempt and reports whether it is within the bound.
func (l *slotList) room() bool {
	if l.tried++; l.tried > memslotsMax {
		l.fail(fmt.Errorf("more than %d slots: %w", memslotsMax, ErrCorrupt))
		return false
	}
	return true
}

// slotArray reads the slots of a kernel before 5.17.
func (r *kvmReader) slotArray(s *slotShape, set mem.Virt) ([]Memslot, error) {
	head := newShape(r.types, "kvm_memslots")
	used := head.need("used_slots")
	rec, err := head.read(r.k.space, set)
	if err != nil {
		return nil, err
	}
	list, err := r.types.Field("kvm_memslots", "memslots")
	if err != nil {
		return nil, err
	}
	count := rec.uint(used)
	if count > memslotsMax || list.Stride == 0 {
		return nil, fmt.Errorf("%d slots: %w", count, ErrCorrupt)
	}
	var slots slotList
	for i := range count {
		slots.add(s.read(r.k.space, set+mem.Virt(uint64(list.Offset)+i*uint64(list.Stride))))
	}
	return slots.list, slots.err
}
