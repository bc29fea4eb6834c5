package report

import (
	"errors"
	"fmt"
	"strings"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/nested"
	"nestdbg/internal/paging"
)

// Explanation says what on the way to an address is at fault, and what is wrong with it.
type Explanation struct {
	Stage int    `json:"stage"` // 1 is the machine's own page tables; 0: no entry is at fault
	Kind  string `json:"kind,omitempty"`
	Level int    `json:"level,omitempty"`
	Addr  Hex    `json:"addr"`           // that this stage translates, or that is no RAM
	In    string `json:"in"`             // the machine in whose memory the entry is, or the address leads nowhere
	At    *Hex   `json:"at"`             // address of the entry; null if none is at fault
	Entry *Hex   `json:"entry"`          // its value
	Cause string `json:"cause"`          // one of the causes below
	Text  string `json:"text"`           // in words
	Also  []Hex  `json:"also,omitempty"` // further entries that refuse the same
}

// The causes of an Explanation.
const (
	causeNotPresent    = "not-present"
	causePermission    = "permission"
	causeReserved      = "reserved"      // bits that must be zero, or a combination that no entry may have
	causeMisconfigured = "misconfigured" // the same in EPT
	causeMMIO          = "mmio"
	causeOutsideRAM    = "outside-ram"
	causeNoAddress     = "no-address" // no table can translate such an address
	causeUnreadable    = "unreadable"
	causeGone          = "gone" // nothing is wrong now
)

// explainWalk is for a walk of a stage that ended; its tables are in the memory of in.
func explainWalk(stage int, s *paging.Space, in *machine.Machine, addr uint64, err error) *Explanation {
	e := &Explanation{Stage: stage, Kind: s.Format().Name, Addr: Hex(addr), In: in.Name, Cause: causeUnreadable, Text: err.Error()}
	var missing *paging.NotMappedError
	if !errors.As(err, &missing) {
		return e
	}
	e.Level = missing.Level
	if missing.Cause == paging.Unreadable {
		return explainTable(stage, in, missing, e)
	}
	if k := len(missing.Steps); k > 0 {
		e.entry(missing.Steps[k-1])
	}
	e.Text = missing.Reason
	switch {
	case missing.Cause == paging.NotPresent:
		e.Cause = causeNotPresent
		e.Text += device(in, stage > 1, addr)
	case missing.Cause == paging.Outside:
		e.Cause = causeNoAddress
	case strings.Contains(missing.Reason, "MMIO"): // the format's own words for a hypervisor's mark
		e.Cause = causeMMIO
	case strings.HasPrefix(s.Format().Name, "ept"):
		e.Cause = causeMisconfigured
	default:
		e.Cause = causeReserved
	}
	return e
}

func (e *Explanation) entry(s paging.Step) {
	e.Level, e.At, e.Entry = s.Level, hexPointer(uint64(s.At), true), hexPointer(s.Entry, true)
}

// explainTable is for a table that cannot be read: it is the entry above that leads to
// nowhere, or the stage below that has no answer.
func explainTable(stage int, in *machine.Machine, missing *paging.NotMappedError, e *Explanation) *Explanation {
	var fault *mem.FaultError
	if !errors.As(missing.Err, &fault) {
		return e
	}
	if in.Parent != nil && fault.Space == in.Second.Space.Name() {
		if _, err := in.Second.Space.Walk(fault.Addr); err != nil {
			below := explainWalk(stage+1, in.Second.Space, in.Parent, fault.Addr, err)
			below.Text += fmt.Sprintf(", at a table of stage %d", stage)
			return below
		}
	}
	e.Cause = causeOutsideRAM
	e.Text = fmt.Sprintf("the table that it leads to lies at %#x, where %s has no RAM", fault.Addr, in.Name)
	if k := len(missing.Steps); k > 0 {
		e.entry(missing.Steps[k-1])
	} else {
		e.Text = fmt.Sprintf("the root table lies at %#x, where %s has no RAM", fault.Addr, in.Name)
	}
	return e
}

// explainAccess is for a walk that ended well, but not for every access; nil if it did.
func explainAccess(stage int, s *paging.Space, in *machine.Machine, addr uint64, t paging.Translation, access paging.Perm) *Explanation {
	refused := access &^ t.Perm
	if refused == 0 {
		return nil
	}
	e := &Explanation{Stage: stage, Kind: s.Format().Name, Addr: Hex(addr), In: in.Name, Cause: causePermission,
		Text: accessName(refused) + " is not permitted"}
	for _, step := range t.Steps {
		switch {
		case s.Format().Denied(step.Level, step.Leaf, step.Entry)&refused == 0:
		case e.At == nil:
			e.entry(step)
		default:
			e.Also = append(e.Also, Hex(step.At))
		}
	}
	return e
}

// explainHole is for an address of QEMU's own machine at which there is no RAM.
func explainHole(m *machine.Machine, pa mem.Phys) *Explanation {
	e := &Explanation{Addr: Hex(pa), In: m.Name, Cause: causeOutsideRAM, Text: "there is no RAM at this address"}
	if what := deviceAt(m, uint64(pa)); what != "" {
		e.Cause, e.Text = causeMMIO, "there is no RAM at this address but "+what
	}
	return e
}

func accessName(p paging.Perm) string {
	switch {
	case p&paging.Write != 0:
		return "write"
	case p&paging.Exec != 0:
		return "instruction fetch"
	case p&paging.UserExec != 0:
		return "instruction fetch of user mode"
	}
	return "read"
}

// devices are what is at fixed physical addresses, by architecture (Intel SDM Vol. 3A, "APIC
// Register Address Map"; IA-PC HPET specification; the PC's first megabyte).
var devices = map[string][]struct {
	mem.Range
	name string
}{
	"x86-64": {
		{mem.Range{First: 0xa0000, Last: 0xbffff}, "the memory of a VGA display"},
		{mem.Range{First: 0xfec00000, Last: 0xfec00fff}, "the I/O APIC"},
		{mem.Range{First: 0xfed00000, Last: 0xfed00fff}, "the HPET"},
		{mem.Range{First: 0xfee00000, Last: 0xfeefffff}, "the local APIC"},
		{mem.Range{First: 0xffc00000, Last: 0xffffffff}, "the firmware's flash"},
	},
}

func deviceAt(m *machine.Machine, pa uint64) string {
	for _, d := range devices[m.Arch.Name] {
		if d.Contains(pa) {
			return d.name
		}
	}
	return ""
}

// device adds what a PC has at an address that a second stage does not map.
func device(in *machine.Machine, second bool, addr uint64) string {
	if what := deviceAt(in, addr); second && what != "" {
		return ": a PC has " + what + " there, which hypervisors emulate"
	}
	return ""
}

// Text is the explanation as a line.
func (e *Explanation) line() string {
	if e.Stage == 0 {
		return fmt.Sprintf("%s in %s: %s", e.Addr, e.In, e.Text)
	}
	text := fmt.Sprintf("stage %d (%s), address %s: %s", e.Stage, e.Kind, e.Addr, e.Text)
	if e.At != nil {
		text += fmt.Sprintf("; entry %s at %s in %s, level %d", e.Entry, e.At, e.In, e.Level)
	}
	for _, a := range e.Also {
		text += fmt.Sprintf(", and that at %s", a)
	}
	return text
}

// NewFault follows the fault of the second stage with which a CPU of m left its guest. It
// fails if the last exit was for another reason.
func NewFault(m *machine.Machine, c *machine.CPU, fileOffset func(mem.Phys) (uint64, bool)) (*VTop, error) {
	d, err := nested.Describe(m, c)
	if err != nil {
		return nil, err
	}
	if d.Fault == nil {
		return nil, fmt.Errorf("the last exit of %s CPU %d was %s, no fault of the second stage", m.Name, c.Index, d.Exit)
	}
	v := NewPTopAccess(m, d.Fault.Addr, d.Fault.Access, fileOffset)
	v.Exit = fmt.Sprintf("%s CPU %d left its guest with %s: %s", m.Name, c.Index, d.Exit, strings.Join(d.Why, "; "))
	if c.On >= 0 {
		v.Exit += "; it has entered again since"
	}
	for _, d := range v.Detours {
		if v.Why == nil && d.Stage == 2 {
			v.Why = d.Why // the processor knows no detour
		}
	}
	v.settle(m, d.Fault)
	return v, nil
}

// settle makes the explanation agree with what the processor said of the fault.
func (v *VTop) settle(m *machine.Machine, f *nested.StageFault) {
	if v.Why == nil {
		v.Why = &Explanation{Stage: 2, Kind: m.Second.Kind, Addr: Hex(f.Addr), In: m.Parent.Name, Cause: causeGone,
			Text: "the second stage allows this access now: it was changed after the exit"}
	}
	e := v.Why
	if !f.Reserved || e.Cause == causeReserved || e.Cause == causeMisconfigured || e.Cause == causeMMIO {
		return
	}
	if e.Text += "; but"; e.Cause == causeGone {
		e.Text = "no rule that is known here refuses it:"
	}
	e.Text += " the processor found an entry that breaks the rules, such as an address with more bits than it has, or one that was changed after the exit"
	e.Cause = causeReserved
	if strings.HasPrefix(m.Second.Kind, "ept") {
		e.Cause = causeMisconfigured
	}
}
