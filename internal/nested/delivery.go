package nested

import (
	"maps"
	"slices"

	"nestdbg/internal/arch"
	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
)

// Deliveries watches the control blocks that the CPUs of a machine may execute,
// for events that are being delivered to a guest. Reading them does not need the
// machine to stop.
type Deliveries struct {
	phys   mem.PhysReader
	blocks map[mem.Phys]technology
}

// NewDeliveries watches what root's CPUs point at, which hold the device state,
// and every CPU of the machines of t directly inside root; t may be nil.
func NewDeliveries(root *machine.Machine, cpus []*arch.Registers, t *machine.Tower) *Deliveries {
	d := &Deliveries{phys: root.Phys, blocks: make(map[mem.Phys]technology)}
	for _, tech := range technologies[root.Arch.Name] {
		for _, c := range cpus {
			if at, ok := tech.lastUsed(c); ok {
				d.blocks[at] = tech
			}
		}
	}
	if t != nil {
		for _, m := range t.Children(root) {
			for _, c := range m.CPUs {
				if tech, err := technologyOf(c, root.Arch); err == nil {
					d.blocks[c.Control], d.blocks[c.Merged], d.blocks[c.Executed] = tech, tech, tech
				}
			}
		}
	}
	delete(d.blocks, 0)
	return d
}

// ListedDeliveries watches the guests that root's own kernel lists.
func ListedDeliveries(root *machine.Machine, k *linux.Kernel) (*Deliveries, error) {
	vms, _, err := k.KVMs() // a VM that cannot be read is not watched
	if err != nil {
		return nil, err
	}
	d := &Deliveries{phys: root.Phys, blocks: make(map[mem.Phys]technology)}
	for _, tech := range technologies[root.Arch.Name] {
		for _, vm := range vms {
			for _, v := range vm.VCPUs {
				d.blocks[v.Control.Phys], d.blocks[v.Control.Current], d.blocks[v.Control.Merged] = tech, tech, tech
			}
		}
	}
	delete(d.blocks, 0)
	return d, nil
}

// Blocks are the addresses of what is watched, in order.
func (d *Deliveries) Blocks() []mem.Phys { return slices.Sorted(maps.Keys(d.blocks)) }

// Pending reports whether some guest is at the delivery of an event now: from
// the moment its hypervisor asked for it until the guest's next exit.
func (d *Deliveries) Pending() bool {
	for at, tech := range d.blocks {
		if tech.delivering(d.phys, at) {
			return true
		}
	}
	return false
}
