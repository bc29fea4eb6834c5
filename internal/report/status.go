package report

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/session"
)

// Status is the tower as a whole.
type Status struct {
	QEMU     *QEMU     `json:"qemu"` // null if no QEMU runs; File is there instead
	File     *File     `json:"file,omitempty"`
	RAM      RAM       `json:"ram"`
	Running  bool      `json:"running"`
	Machines []Machine `json:"machines"`
	Problems []string  `json:"problems,omitempty"`
}

// QEMU is the process that runs it all.
type QEMU struct {
	Version string `json:"version"`
	Accel   string `json:"accel"`
	PID     int    `json:"pid"`
	Machine string `json:"machine,omitempty"`
	Name    string `json:"name,omitempty"`
	QMP     string `json:"qmp,omitempty"`
	Stub    string `json:"stub,omitempty"`
}

// File is what is left of a machine.
type File struct {
	Path string `json:"path"`
	Kind string `json:"kind"`
}

// RAM says where memory is read from.
type RAM struct {
	Source string `json:"source"`
	File   string `json:"file"`
	Size   uint64 `json:"size"`
}

// Machine is one machine of the tower.
type Machine struct {
	Name        string       `json:"name"`
	Level       int          `json:"level"`
	Parent      string       `json:"parent"`
	Process     int          `json:"process"`
	Arch        string       `json:"arch"`
	SecondStage *SecondStage `json:"second_stage"`
	Mapped      uint64       `json:"mapped"`
	OS          string       `json:"os"`
	Kernel      *Kernel      `json:"kernel"`
	VCPUs       []VCPU       `json:"vcpus"`
	Evidence    []string     `json:"evidence,omitempty"`
}

// SecondStage is how a nested machine's memory is translated.
type SecondStage struct {
	Kind string `json:"kind"`
	Root Hex    `json:"root"`
}

// Kernel is the Linux that a machine runs.
type Kernel struct {
	Release  string   `json:"release"`
	Banner   string   `json:"banner"`
	BuildID  string   `json:"build_id"`
	TextVA   Hex      `json:"text_va"`
	TextPA   Hex      `json:"text_pa"`
	Slide    Hex      `json:"slide"`
	Evidence []string `json:"evidence,omitempty"`
	Problems []string `json:"problems,omitempty"`
}

// VCPU is one CPU of a machine. CPU is the CPU of QEMU's own machine that
// carries it now, null if none does; In is the machine whose instructions that
// CPU executes now.
type VCPU struct {
	Index   int    `json:"index"`
	State   string `json:"state"`
	CPU     *int   `json:"cpu"`
	RIP     *Hex   `json:"rip"`
	Symbol  string `json:"symbol,omitempty"`
	In      string `json:"in,omitempty"`
	Control *Hex   `json:"control,omitempty"`
	Source  string `json:"source"`
	Why     string `json:"why,omitempty"`
}

// NewStatus reports on the last look of a session.
func NewStatus(s *session.Session, q *QEMU, ram RAM) *Status {
	t := s.Tower()
	st := &Status{QEMU: q, RAM: ram, Running: s.Running(), Problems: t.Problems}
	for _, m := range t.Machines {
		st.Machines = append(st.Machines, newMachine(s, t, m))
	}
	return st
}

// Only leaves out all machines but one.
func (s *Status) Only(name string) {
	s.Machines = slices.DeleteFunc(s.Machines, func(m Machine) bool { return m.Name != name })
}

func newMachine(s *session.Session, t *machine.Tower, m *machine.Machine) Machine {
	r := Machine{Name: m.Name, Level: m.Level, Process: s.Number(m), Arch: m.Arch.Name, Evidence: m.Evidence}
	if m.Parent != nil {
		r.Parent = m.Parent.Name
		r.SecondStage = &SecondStage{Kind: m.Second.Kind, Root: Hex(m.Second.Space.Root())}
	}
	for _, x := range m.Phys.PhysRanges() {
		r.Mapped += x.Size()
	}
	k, err := s.Kernel(m)
	if err == nil {
		r.OS, r.Kernel = "linux", newKernel(k)
	}
	for _, c := range m.CPUs {
		r.VCPUs = append(r.VCPUs, newVCPU(t, m, c, k))
	}
	return r
}

func newKernel(k *linux.Kernel) *Kernel {
	return &Kernel{
		Release: k.Release, Banner: k.Banner, BuildID: k.BuildID,
		TextVA: Hex(k.TextVA), TextPA: Hex(k.TextPA), Slide: Hex(k.Slide),
		Evidence: k.Evidence, Problems: k.Problems,
	}
}

func newVCPU(t *machine.Tower, m *machine.Machine, c *machine.CPU, k *linux.Kernel) VCPU {
	v := VCPU{Index: c.Index, State: c.State.String(), Source: c.Source, Why: c.Why}
	pc, known := c.Regs.PC()
	v.RIP = hexPointer(pc, known)
	if known {
		v.Symbol = Symbol(k, pc)
	}
	if c.On >= 0 {
		on := c.On
		v.CPU = &on
	}
	if in, _ := t.Guest(c); in != nil {
		v.In = in.Name
	}
	if m.Parent != nil {
		v.Control = hexPointer(uint64(c.Control), true)
	}
	return v
}

// Symbol renders an address as symbol+offset/size [module], "" if no symbol is known.
func Symbol(k *linux.Kernel, a uint64) string {
	if k == nil {
		return ""
	}
	place, ok := k.Symbolize(mem.Virt(a))
	if !ok {
		return ""
	}
	text := fmt.Sprintf("%s+%#x", place.Name, place.Offset)
	if place.Size != 0 {
		text += fmt.Sprintf("/%#x", place.Size)
	}
	if place.Module != "" {
		text += " [" + place.Module + "]"
	}
	return text
}

// Text implements Report.
func (s *Status) Text(w io.Writer) {
	state := "stopped"
	if s.Running {
		state = "running; what follows was true at one moment"
	}
	if s.QEMU != nil {
		fmt.Fprintf(w, "QEMU %s, %s, PID %d: %s\n", s.QEMU.Version, s.QEMU.Accel, s.QEMU.PID, state)
		fmt.Fprintf(w, "RAM %s, from %s\n", size(s.RAM.Size), s.RAM.Source)
	} else {
		fmt.Fprintf(w, "%s: %s, with %s of memory\n", s.File.Path, s.File.Kind, size(s.RAM.Size))
	}
	for _, m := range s.Machines {
		m.text(w)
	}
	for _, p := range s.Problems {
		fmt.Fprintf(w, "not sure: %s\n", p)
	}
}

func (m *Machine) text(w io.Writer) {
	indent := strings.Repeat("  ", m.Level-1)
	fmt.Fprintf(w, "\n%s%s  %s, %s", indent, m.Name, m.Arch, size(m.Mapped))
	if m.SecondStage != nil {
		fmt.Fprintf(w, " mapped by %s, root %s in %s", m.SecondStage.Kind, m.SecondStage.Root, m.Parent)
	}
	fmt.Fprintln(w)
	if k := m.Kernel; k != nil {
		fmt.Fprintf(w, "%s    Linux %s, text at %s (slide %s), build id %s\n", indent, k.Release, k.TextVA, k.Slide, k.BuildID)
		fmt.Fprintf(w, "%s    %s\n", indent, k.Banner)
		for _, p := range k.Problems {
			fmt.Fprintf(w, "%s    not sure: %s\n", indent, p)
		}
	} else {
		fmt.Fprintf(w, "%s    no Linux kernel found\n", indent)
	}
	for _, v := range m.VCPUs {
		fmt.Fprintf(w, "%s    CPU %d  %s\n", indent, v.Index, v.text(m))
	}
}

func (v *VCPU) text(m *Machine) string {
	var b strings.Builder
	b.WriteString(v.State)
	switch {
	case v.In != "" && v.In != m.Name:
		fmt.Fprintf(&b, " %s", v.In)
		if v.CPU == nil {
			b.WriteString(", which is parked")
		} else if m.Level > 1 {
			fmt.Fprintf(&b, " on L1 CPU %d", *v.CPU)
		}
	case v.CPU != nil && m.Level > 1:
		fmt.Fprintf(&b, " on L1 CPU %d", *v.CPU)
	case v.Why != "":
		fmt.Fprintf(&b, " after %s", v.Why)
	}
	fmt.Fprintf(&b, "  pc %s", orUnknown(v.RIP))
	if v.Symbol != "" {
		fmt.Fprintf(&b, " %s", v.Symbol)
	}
	if v.State == machine.Lost.String() {
		fmt.Fprintf(&b, ", from the %s", v.Source)
	}
	return b.String()
}
