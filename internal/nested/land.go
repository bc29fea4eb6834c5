package nested

import (
	"fmt"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
)

// Landing is where a guest's CPU will execute first after the VM entry that its
// control block describes now.
type Landing struct {
	PC uint64
	// SP is the stack pointer there, set if the entry delivers an interrupt: the
	// CPU comes to PC only when the handler returns.
	SP *uint64
}

// Entering returns the control block that a CPU is about to enter, given that
// its program counter is at an instruction that enters a guest.
func Entering(m *machine.Machine, c *machine.CPU) (mem.Phys, bool) {
	for _, tech := range technologies[m.Arch.Name] {
		if at, ok := tech.entering(c.Regs); ok {
			return at, true
		}
	}
	return 0, false
}

// EntryPoints are the instructions with which the hypervisor in m, one of whose CPUs is c,
// enters its guests; code is its memory, and behind is the EntryPC of one of its CPUs.
func EntryPoints(m *machine.Machine, c *machine.CPU, code mem.VirtReader, behind uint64) []uint64 {
	if tech := entersBy(m, c); tech != nil {
		return tech.entries(code, behind)
	}
	return nil
}

// AfterEntry is where the CPU c of m, at an instruction before next that enters a guest, can
// come to when that is over.
func AfterEntry(m *machine.Machine, c *machine.CPU, next uint64) []uint64 {
	if tech := entersBy(m, c); tech != nil {
		return tech.afterEntry(c, next)
	}
	return []uint64{next}
}

// entersBy is the technology by which a CPU enters guests: the one that says of a last
// entry, or else the last in the table, of which a CPU that hosts may say nothing.
func entersBy(m *machine.Machine, c *machine.CPU) (by technology) {
	for _, by = range technologies[m.Arch.Name] {
		if _, ok := by.lastUsed(c.Regs); ok {
			break
		}
	}
	return by
}

// Land says where the parked CPU c of the nested machine m will continue.
func Land(m *machine.Machine, c *machine.CPU) (Landing, error) {
	host, at := ExecutedBy(m, c)
	page, err := controlPage(host, at)
	if err != nil {
		return Landing{}, fmt.Errorf("control block of %s CPU %d: %w", m.Name, c.Index, err)
	}
	tech, err := technologyOf(c, host.Arch)
	if err != nil {
		return Landing{}, fmt.Errorf("control block of %s CPU %d: %w", m.Name, c.Index, err)
	}
	if _, ok := tech.parse(host, page); !ok {
		return Landing{}, fmt.Errorf("control block of %s CPU %d at %#x is not valid any more", m.Name, c.Index, at)
	}
	return tech.land(m, c, page)
}

// ExecutedBy is the control block with which the CPU c of the nested machine m will be
// entered next, and the machine in whose memory it is and that does so. That is its
// own hypervisor with its own block, or if that has entered it already, QEMU's own
// machine with the merged one.
func ExecutedBy(m *machine.Machine, c *machine.CPU) (*machine.Machine, mem.Phys) {
	if c.Executed == 0 {
		return m.Parent, c.Control
	}
	host := m.Parent
	for host.Parent != nil {
		host = host.Parent
	}
	return host, c.Executed
}
