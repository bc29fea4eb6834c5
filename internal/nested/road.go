package nested

import (
	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
)

// roadFacts is what a hypervisor says of the second road to a guest's memory. It
// outlives a search: slots and root stay while the guest lives, what the tables
// hold is read anew.
type roadFacts struct {
	root  mem.Phys // of the page tables of the guest's VMM
	slots []machine.Slot
}

// newRoadFacts takes from KVM's own structures where the VMM has a guest's memory.
func newRoadFacts(k *linux.Kernel, vm *linux.VM) (*roadFacts, error) {
	root, err := k.UserRoot(vm.MM)
	if err != nil {
		return nil, err
	}
	r := &roadFacts{root: root}
	for _, s := range vm.Memslots {
		// Slots of system management mode show the same memory, and more.
		if s.AddressSpace == 0 && s.Shared() {
			r.slots = append(r.slots, machine.Slot{Base: s.Base, Size: s.Size, User: s.User})
		}
	}
	return r, nil
}

// in is the road as it is now, in the hypervisor's memory; nil for what is not known.
func (r *roadFacts) in(parent *machine.Machine) *machine.Road {
	if r == nil {
		return nil
	}
	space, err := parent.SpaceAt(uint64(r.root))
	if err != nil {
		return nil
	}
	return &machine.Road{Space: space, Slots: r.slots}
}
