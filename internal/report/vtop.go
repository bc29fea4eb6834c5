package report

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
)

// VTop is one address followed through every stage, down to QEMU's memory.
type VTop struct {
	Machine    string `json:"machine"`
	VA         *Hex   `json:"va"` // null if the question was about a physical address
	Steps      []Step `json:"steps"`
	PA         *Hex   `json:"pa"`          // in the machine itself
	ParentPA   *Hex   `json:"parent_pa"`   // in its parent; null for QEMU's own machine
	RootPA     *Hex   `json:"root_pa"`     // in QEMU's machine
	FileOffset *Hex   `json:"file_offset"` // in the file behind RAM
	Fault      string `json:"fault"`       // where and why the walk ended, or ""
	// Why says which entry is at fault; null if nothing is.
	Why *Explanation `json:"why"`
	// Exit is the exit that the question is about, if it is about one.
	Exit string `json:"exit,omitempty"`

	// Detours are the second stages with a hole where the address was followed
	// through the memory of the VMM instead, and those where the VMM has it elsewhere.
	Detours []Detour `json:"detours,omitempty"`

	pages  []string    // size of the page at each stage, for people
	access paging.Perm // that every stage has to permit
}

// Detour is the second road, machine.Road, past a hole of a second stage, or where it
// leads elsewhere than the second stage.
type Detour struct {
	Stage int    `json:"stage"`
	PA    Hex    `json:"pa"`    // that the stage does not map, or maps elsewhere
	Hole  string `json:"hole"`  // why not; "" if it does
	Slot  Hex    `json:"slot"`  // where the VMM's memory slot begins, like PA
	User  Hex    `json:"user"`  // where the VMM has PA
	Fault string `json:"fault"` // why this road ended too, or ""
	// Why says which entry of the stage a processor stumbles over, although this road goes
	// on; null if it goes on by the stage too, or not even here.
	Why *Explanation `json:"why"`
}

// Step is one table entry that was read. Stage 1 is the machine's own page
// tables, 2 the second stage under it, 3 the one under that.
type Step struct {
	Stage int      `json:"stage"`
	Kind  string   `json:"kind"`
	Level int      `json:"level"`
	Table Hex      `json:"table"` // address of the table, in the memory it stands in
	In    string   `json:"in"`    // the machine whose physical memory that is
	Index uint     `json:"index"`
	Entry Hex      `json:"entry"`
	Flags []string `json:"flags"`
}

// NewVTop follows a virtual address of an address space of m.
func NewVTop(m *machine.Machine, space *paging.Space, va uint64, fileOffset func(mem.Phys) (uint64, bool)) *VTop {
	return NewVTopAccess(m, space, va, 0, fileOffset)
}

// NewVTopAccess is NewVTop for an access that every stage has to permit.
func NewVTopAccess(m *machine.Machine, space *paging.Space, va uint64, access paging.Perm, fileOffset func(mem.Phys) (uint64, bool)) *VTop {
	v := &VTop{Machine: m.Name, VA: hexPointer(va, true), access: access}
	pa, ok := v.walk(1, space, m, va)
	if !ok {
		return v
	}
	v.physical(m, pa, 2, fileOffset)
	return v
}

// NewPTop follows a physical address of m.
func NewPTop(m *machine.Machine, pa mem.Phys, fileOffset func(mem.Phys) (uint64, bool)) *VTop {
	return NewPTopAccess(m, pa, 0, fileOffset)
}

// NewPTopAccess is NewPTop for an access that every stage has to permit.
func NewPTopAccess(m *machine.Machine, pa mem.Phys, access paging.Perm, fileOffset func(mem.Phys) (uint64, bool)) *VTop {
	v := &VTop{Machine: m.Name, access: access}
	v.physical(m, pa, 2, fileOffset)
	return v
}

// physical follows a physical address through the second stages under m.
func (v *VTop) physical(m *machine.Machine, pa mem.Phys, stage int, fileOffset func(mem.Phys) (uint64, bool)) {
	v.PA = hexPointer(uint64(pa), true)
	for ; m.Parent != nil; m, stage = m.Parent, stage+1 {
		next, ok := v.walk(stage, m.Second.Space, m.Parent, uint64(pa))
		if !ok {
			if next, ok = v.detour(stage, m, pa); !ok {
				return
			}
		} else {
			v.compare(stage, m, pa, next)
		}
		if pa = next; v.ParentPA == nil {
			v.ParentPA = hexPointer(uint64(pa), true)
		}
	}
	var b [1]byte
	if _, err := m.Phys.ReadPhys(b[:], pa); err != nil {
		v.Fault = err.Error()
		v.because(explainHole(m, pa))
		return
	}
	v.RootPA = hexPointer(uint64(pa), true)
	if fileOffset != nil {
		if off, ok := fileOffset(pa); ok {
			v.FileOffset = hexPointer(off, true)
		}
	}
}

// detour follows pa, which the second stage of m does not map, through the memory
// of m's VMM.
func (v *VTop) detour(stage int, m *machine.Machine, pa mem.Phys) (mem.Phys, bool) {
	road := m.Road()
	if road == nil {
		return 0, false
	}
	slot, ok := road.Slot(pa)
	if !ok {
		return 0, false // the VMM has no memory there: the second stage is right
	}
	user := slot.User + mem.Virt(pa-slot.Base)
	d := Detour{Stage: stage, PA: Hex(pa), Hole: v.Fault, Slot: Hex(slot.Base), User: Hex(user)}
	t, err := road.Space.Walk(uint64(user))
	v.add(stage, road.Space.Format(), m.Parent, t.Steps)
	if err != nil {
		d.Fault = err.Error()
	} else {
		v.Fault = ""
		if v.Why != nil && v.Why.Stage == stage && v.Why.Cause != causePermission {
			d.Why, v.Why = v.Why, nil
		}
		v.pages = append(v.pages, fmt.Sprintf("stage %d: %s page of the VMM, instead of a hole in the second stage", stage, size(t.PageSize)))
	}
	v.Detours = append(v.Detours, d)
	return t.Phys, err == nil
}

// compare follows pa by the second road too, and says if that leads elsewhere than
// the second stage: one of the tables is not what it was taken for.
func (v *VTop) compare(stage int, m *machine.Machine, pa, first mem.Phys) {
	road := m.Road()
	if road == nil {
		return
	}
	slot, ok := road.Slot(pa)
	second, _, err := road.Translate(pa)
	if !ok || err == nil && second == first {
		return
	}
	d := Detour{Stage: stage, PA: Hex(pa), Slot: Hex(slot.Base), User: Hex(slot.User + mem.Virt(pa-slot.Base))}
	if d.Fault = fmt.Sprint(err); err == nil {
		d.Fault = fmt.Sprintf("the second stage leads to %#x, this to %#x", uint64(first), uint64(second))
	}
	v.Detours = append(v.Detours, d)
}

// walk adds the entries of one stage; its tables stand in the memory of in.
func (v *VTop) walk(stage int, s *paging.Space, in *machine.Machine, addr uint64) (mem.Phys, bool) {
	t, err := s.Walk(addr)
	v.add(stage, s.Format(), in, t.Steps)
	if err != nil {
		v.Fault = fmt.Sprintf("stage %d (%s): %v", stage, s.Format().Name, err)
		v.because(explainWalk(stage, s, in, addr, err))
		v.under(stage, in, err)
		return 0, false
	}
	v.because(explainAccess(stage, s, in, addr, t, v.access))
	v.pages = append(v.pages, fmt.Sprintf("stage %d: %s page", stage, size(t.PageSize)))
	return t.Phys, true
}

// because keeps the explanation of what a processor comes to first.
func (v *VTop) because(e *Explanation) {
	if v.Why == nil {
		v.Why = e
	}
}

// under shows the stage below when it is the one that has no answer for a
// table of this stage.
func (v *VTop) under(stage int, in *machine.Machine, err error) {
	var fault *mem.FaultError
	if in.Parent == nil || !errors.As(err, &fault) || fault.Space != in.Second.Space.Name() {
		return
	}
	t, _ := in.Second.Space.Walk(fault.Addr)
	v.add(stage+1, in.Second.Space.Format(), in.Parent, t.Steps)
}

func (v *VTop) add(stage int, f *paging.Format, in *machine.Machine, steps []paging.Step) {
	for _, s := range steps {
		v.Steps = append(v.Steps, Step{
			Stage: stage, Kind: f.Name, Level: s.Level, Table: Hex(s.Table), In: in.Name,
			Index: s.Index, Entry: Hex(s.Entry), Flags: f.Flags(s.Level, s.Leaf, s.Entry),
		})
	}
}

// Text implements Report.
func (v *VTop) Text(w io.Writer) {
	if v.Exit != "" {
		fmt.Fprintln(w, v.Exit)
	}
	if v.VA != nil {
		fmt.Fprintf(w, "%s va %s\n", v.Machine, v.VA)
	} else {
		fmt.Fprintf(w, "%s pa %s\n", v.Machine, v.PA)
	}
	for _, s := range v.Steps {
		fmt.Fprintf(w, "  stage %d %-10s level %d  table %#-13x[%3d]  %#-18x %s\n",
			s.Stage, s.Kind, s.Level, uint64(s.Table), s.Index, uint64(s.Entry), strings.Join(s.Flags, " "))
	}
	for _, p := range v.pages {
		fmt.Fprintf(w, "  %s\n", p)
	}
	if v.PA != nil && v.VA != nil {
		fmt.Fprintf(w, "  pa %s in %s\n", v.PA, v.Machine)
	}
	for _, d := range v.Detours {
		if d.Hole != "" && d.Hole != v.Fault {
			fmt.Fprintf(w, "  %s\n", d.Hole)
		}
		fmt.Fprintf(w, "  second road: pa %s is at %s in the VMM (memory slot of %s)\n", d.PA, d.User, d.Slot)
		if d.Fault != "" {
			fmt.Fprintf(w, "  second road: %s\n", d.Fault)
		}
	}
	if v.ParentPA != nil {
		fmt.Fprintf(w, "  pa %s in its parent\n", v.ParentPA)
	}
	if v.FileOffset != nil {
		fmt.Fprintf(w, "  offset %s in QEMU's RAM file\n", v.FileOffset)
	}
	if v.Fault != "" {
		fmt.Fprintf(w, "  %s\n", v.Fault)
	}
	if v.Why != nil {
		fmt.Fprintf(w, "  why: %s\n", v.Why.line())
	}
}
