package nested

import (
	"fmt"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
)

// Description is a control block decoded field by field.
type Description struct {
	Kind  string // "VMCB", "VMCS"
	At    mem.Phys
	Exit  string   // the last exit in words
	Why   []string // more about it, each "name: value in words"
	Fault *StageFault
	// Fields are in the order of the manual.
	Fields []Field
	// Checks are the conditions of a VM entry, those that hold and those that do not.
	Checks []Check
	// Notes say what of it may be out of date, and why.
	Notes []string
}

// Field is one field of a control block.
type Field struct {
	Area    string // "control", "save"; of a VMCS "guest", "host", "control", "exit"
	Name    string // the manual's
	At      uint64 // offset in the VMCB, encoding in a VMCS
	Value   []byte // little-endian; nil if the layout has no such field
	Meaning string // flags by name, what a number selects; "" if the number says it all
}

// Check is one condition of a VM entry.
type Check struct {
	Name  string // the condition
	Wrong string // what is wrong if it does not hold, as the manual lists it
	OK    bool
	Seen  string // the values it was judged by
}

// StageFault is an exit because the second stage refused an access.
type StageFault struct {
	Addr   mem.Phys // of the guest
	Access paging.Perm
	Code   uint64 // as the processor gives it
	// Present says that the processor found an entry and refused it; else there was none.
	Present bool
	// Reserved says that the entry broke the format's rules (SVM), or that it was a
	// misconfiguration (EPT).
	Reserved bool
	// Tables says that the processor was reading the guest's own page tables.
	Tables bool
}

// Describe decodes the control block of a CPU of a nested machine.
func Describe(m *machine.Machine, c *machine.CPU) (*Description, error) {
	if m.Parent == nil {
		return nil, fmt.Errorf("%s is QEMU's own machine and has no control block", m.Name)
	}
	if c.Control == 0 {
		return nil, fmt.Errorf("no control block of %s CPU %d is known", m.Name, c.Index)
	}
	page, err := controlPage(m.Parent, c.Control)
	if err != nil {
		return nil, fmt.Errorf("control block of %s CPU %d: %w", m.Name, c.Index, err)
	}
	tech, err := technologyOf(c, m.Parent.Arch)
	if err != nil {
		return nil, fmt.Errorf("control block of %s CPU %d: %w", m.Name, c.Index, err)
	}
	d, err := tech.describe(m.Parent, page)
	if err != nil {
		return nil, fmt.Errorf("control block at %#x in %s: %w", c.Control, m.Parent.Name, err)
	}
	d.At = c.Control
	if c.State != machine.Parked && c.On >= 0 {
		d.Notes = append(d.Notes, fmt.Sprintf(
			"CPU %d is in the guest now: the guest's state, the exit and what the processor changes are those of the last exit", c.On))
	}
	return d, nil
}
