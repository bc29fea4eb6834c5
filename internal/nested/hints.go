package nested

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
)

// Hint is what a person says of a guest: that there is one, and by what it is known.
type Hint struct {
	// Flag is how it was said: "--vmcb".
	Flag string
	// In is the machine in whose physical memory the address is.
	In string
	// Control is the technology's name ("VMCB", "VMCS") of a control block at At; ""
	// for a second stage.
	Control string
	// Second is the format of the second stage whose root is At.
	Second *paging.Format
	At     mem.Phys
}

// HintError is a hint that cannot be true, and why.
type HintError struct {
	Hint Hint
	Err  error
}

func (e *HintError) Error() string {
	return fmt.Sprintf("%s %#x: %v", e.Hint.Flag, uint64(e.Hint.At), e.Err)
}

func (e *HintError) Unwrap() error { return e.Err }

// CheckHint says what is wrong with a hint about the memory of m, as a *HintError. hints are
// all that a person says.
func CheckHint(m *machine.Machine, h Hint, hints []Hint) error {
	var err error
	if h.Control != "" {
		_, err = h.candidate(m, hints)
	} else {
		err = h.checkRoot(m)
	}
	if err != nil {
		return &HintError{h, err}
	}
	return nil
}

// errStageUnknown is the class of control blocks of which everything is known but where they
// have their second stage.
var errStageUnknown = errors.New("where the second stage stands in it is not known; --second-stage says what it is")

// stage completes a control block that does not tell its second stage by the only one that a
// person says of in that machine.
func (h Hint) stage(m *machine.Machine, b *controlBlock, hints []Hint) error {
	var given []Hint
	for _, s := range hints {
		if s.In == h.In && s.Second != nil {
			given = append(given, s)
		}
	}
	switch len(given) {
	case 0:
		return errStageUnknown
	case 1:
		b.second, b.root = given[0].Second.WithPhysBits(m.PhysBits), given[0].At
		return given[0].checkRoot(m)
	}
	return fmt.Errorf("%w, and which of %d is not known", errStageUnknown, len(given))
}

// candidate is the control block that a hint is about.
func (h Hint) candidate(m *machine.Machine, hints []Hint) (*candidate, error) {
	if h.At%pageSize != 0 {
		return nil, fmt.Errorf("a %s begins at a page; this is %#x into one", h.Control, uint64(h.At%pageSize))
	}
	page := make([]byte, pageSize)
	if _, err := m.Phys.ReadPhys(page, h.At); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(technologies[m.Arch.Name], func(t technology) bool { return t.name() == h.Control })
	if i < 0 {
		return nil, fmt.Errorf("control blocks of the kind %s are not known on %s", h.Control, m.Arch.Name)
	}
	tech := technologies[m.Arch.Name][i]
	block, ok := tech.parse(m, page)
	if !ok {
		var err error
		if block, err = tech.take(m, page); errors.Is(err, errStageUnknown) {
			err = h.stage(m, &block, hints)
			ok = block.plausible
		}
		if err != nil {
			return nil, err
		}
	}
	return &candidate{tech: tech, at: h.At, on: -1, index: -1, block: block, given: true, broken: !ok,
		evidence: []string{"given by " + h.Flag}}, nil
}

func (h Hint) checkRoot(m *machine.Machine) error {
	if h.Second.Root(uint64(h.At)) != h.At {
		return fmt.Errorf("a root of %s is not at such an address", h.Second.Name)
	}
	var bad error
	for _, err := range h.Second.Ranges(m.Phys, h.At, mem.Range{Last: ^uint64(0)}) {
		if err == nil {
			return nil
		}
		if bad == nil {
			bad = err
		}
	}
	if bad != nil {
		var fault *mem.FaultError
		if errors.As(bad, &fault) {
			return fault
		}
		return bad
	}
	return fmt.Errorf("read as %s, the tables there map nothing", h.Second.Name)
}

// hinted adds the control blocks that a person says are there.
func hinted(m *machine.Machine, found map[mem.Phys]*candidate, hints []Hint) {
	for _, h := range hints {
		if h.In != m.Name || h.Control == "" {
			continue
		}
		if c := found[h.At]; c != nil {
			c.given = true
			c.evidence = append(c.evidence, "given by "+h.Flag)
			continue
		}
		if c, err := h.candidate(m, hints); err == nil { // else CheckHint says it
			found[h.At] = c
		}
	}
}

// hintedStages adds a machine for every second stage that a person says is there and no
// control block has.
func hintedStages(m *machine.Machine, groups [][]*candidate, hints []Hint) [][]*candidate {
	for _, h := range hints {
		if h.In != m.Name || h.Second == nil || h.checkRoot(m) != nil {
			continue
		}
		known := false
		for _, g := range groups {
			for _, c := range g {
				if c.block.root == h.At {
					known = true
					c.evidence = append(c.evidence, "its second stage is given by "+h.Flag)
				}
			}
		}
		if known {
			continue
		}
		groups = append(groups, []*candidate{{
			tech: noTechnology{}, at: h.At, on: -1, index: -1, given: true,
			block:    controlBlock{regs: arch.NewRegisters(m.Arch), second: h.Second.WithPhysBits(m.PhysBits), root: h.At},
			evidence: []string{"given by " + h.Flag},
		}})
	}
	return groups
}

// noTechnology stands for a second stage of which no control block is known.
type noTechnology struct{ technology }

func (noTechnology) name() string { return "second stage" }

// isLost reports whether nothing but the memory of a candidate is known.
func (c *candidate) isLost() bool { _, none := c.tech.(noTechnology); return none }

// ParseStage reads "npt4:0x1000", "ept5:0x1000", or "ept:0x105e" with the value of an EPT
// pointer.
func ParseStage(text string, number func(string) (uint64, error)) (*paging.Format, mem.Phys, error) {
	kind, root, ok := strings.Cut(text, ":")
	if !ok {
		return nil, 0, fmt.Errorf("a second stage is KIND:ROOT, such as npt4:0x1234000, not %q", text)
	}
	n, err := number(root)
	if err != nil {
		return nil, 0, err
	}
	if kind == "ept" {
		return paging.EPTForPointer(n)
	}
	f, err := paging.ByName(kind)
	if err != nil || !strings.HasPrefix(kind, "npt") && !strings.HasPrefix(kind, "ept") {
		var names []string
		for _, f := range paging.Formats() {
			if strings.HasPrefix(f.Name, "npt") || strings.HasPrefix(f.Name, "ept") {
				names = append(names, f.Name)
			}
		}
		return nil, 0, fmt.Errorf("no second stage is of the kind %q; there are ept (with an EPT pointer), %s", kind, strings.Join(names, ", "))
	}
	return f, mem.Phys(n), nil
}
