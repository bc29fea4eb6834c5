package report

import (
	"fmt"
	"io"

	"nestdbg/internal/machine"
	"nestdbg/internal/nested"
)

// ControlBlock is a VMCB or VMCS, every field by name.
type ControlBlock struct {
	Machine string         `json:"machine"`
	CPU     int            `json:"cpu"`
	State   string         `json:"state"`
	Kind    string         `json:"kind"`
	At      Hex            `json:"at"`
	In      string         `json:"in"` // the machine whose physical memory that is
	Exit    string         `json:"exit"`
	Why     []string       `json:"why"`
	Failed  []Check        `json:"failed"` // conditions of a VM entry that do not hold
	Checks  []Check        `json:"checks"` // all that were made
	Fields  []ControlField `json:"fields"`
	Notes   []string       `json:"notes,omitempty"`

	all bool // show fields that are zero, too
}

// ControlField is one field. At is the offset in a VMCB, the encoding in a VMCS.
type ControlField struct {
	Area    string `json:"area"`
	Name    string `json:"name"`
	At      Hex    `json:"at"`
	Width   int    `json:"width"` // bits
	Value   *Word  `json:"value"` // null if the layout does not have it
	Meaning string `json:"meaning,omitempty"`
}

// Check is one condition of a VM entry.
type Check struct {
	Name  string `json:"name"`
	Wrong string `json:"wrong"`
	OK    bool   `json:"ok"`
	Seen  string `json:"seen"`
}

// ControlBlocks are those of several CPUs of a machine.
type ControlBlocks struct {
	Blocks []*ControlBlock `json:"blocks"`
}

// NewControlBlocks decodes the control blocks of CPUs of m. With all, the text has
// fields that are zero, too. A block that cannot be read is the error.
func NewControlBlocks(m *machine.Machine, cpus []*machine.CPU, all bool) (*ControlBlocks, error) {
	r := &ControlBlocks{Blocks: []*ControlBlock{}}
	for _, c := range cpus {
		d, err := nested.Describe(m, c)
		if err != nil {
			return nil, err
		}
		b := &ControlBlock{Machine: m.Name, CPU: c.Index, State: c.State.String(), Kind: d.Kind, At: Hex(d.At),
			In: m.Parent.Name, Exit: d.Exit, Why: d.Why, Notes: d.Notes, all: all,
			Failed: []Check{}, Checks: []Check{}}
		for _, x := range d.Checks {
			b.Checks = append(b.Checks, Check(x))
			if !x.OK {
				b.Failed = append(b.Failed, Check(x))
			}
		}
		for _, f := range d.Fields {
			b.Fields = append(b.Fields, ControlField{Area: f.Area, Name: f.Name, At: Hex(f.At), Width: 8 * len(f.Value),
				Value: word(f.Value), Meaning: f.Meaning})
		}
		r.Blocks = append(r.Blocks, b)
	}
	return r, nil
}

// Text implements Report.
func (r *ControlBlocks) Text(w io.Writer) {
	for i, b := range r.Blocks {
		if i > 0 {
			fmt.Fprintln(w)
		}
		b.text(w)
	}
}

func (b *ControlBlock) text(w io.Writer) {
	fmt.Fprintf(w, "%s CPU %d  %s, %s at %s in %s\n", b.Machine, b.CPU, b.State, b.Kind, b.At, b.In)
	for _, n := range b.Notes {
		fmt.Fprintf(w, "  note: %s\n", n)
	}
	fmt.Fprintf(w, "  last exit: %s\n", b.Exit)
	for _, n := range b.Why {
		fmt.Fprintf(w, "    %s\n", n)
	}
	for _, c := range b.Failed {
		fmt.Fprintf(w, "  VM entry would fail: %s (%s)\n", c.Wrong, c.Seen)
	}
	if len(b.Failed) == 0 {
		fmt.Fprintf(w, "  VM entry: none of %d checks fails\n", len(b.Checks))
	}
	area, hidden := "", 0
	for _, f := range b.Fields {
		if f.Value == nil || !b.all && *f.Value == "0x0" && (f.Meaning == "" || !b.isRead(f.Name)) {
			hidden++
			continue
		}
		if f.Area != area {
			area = f.Area
			fmt.Fprintf(w, "  %s\n", area)
		}
		fmt.Fprintf(w, "    %-26s ", f.Name)
		if f.Meaning == "" {
			fmt.Fprintln(w, *f.Value)
		} else {
			fmt.Fprintf(w, "%-18s  %s\n", *f.Value, f.Meaning)
		}
	}
	if hidden > 0 {
		fmt.Fprintf(w, "  %d fields that are 0; --all shows them\n", hidden)
	}
}

// isRead tells the fields whose zero says something from those that are merely empty.
func (b *ControlBlock) isRead(name string) bool {
	return name == "EXITCODE" || name == "TLB_CONTROL" || name == "EVENTINJ" || name == "CPL"
}
