package nested

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
)

// Points of a score, which is our own measure: 100 is a control block that a CPU
// executes, or one that follows every rule and whose guest makes sense throughout.
const (
	pointsRules   = 45 // the rules of the format, by how many hold
	pointsWalk    = 30 // the program counter leads to memory, through both stages
	pointsStack   = 10
	pointsTables  = 5  // each of the descriptor tables
	pointsNamed   = 5  // a CPU or a host save area names it
	pointsStale   = 25 // at most, for what cannot be entered as it is
	pointsCertain = 100
)

// confirm tells a parked CPU from the remains of one: its program counter must lead
// through both stages to memory, or to the very fault of the second stage that it left
// with. That of a guest which jumped to nowhere does not; then two other things must make
// sense. The error says where the walk ended instead.
func confirm(m *machine.Machine, c *candidate) error {
	second := paging.NewSpace(c.block.second.Name, c.block.second, m.Phys, c.block.root)
	probe := &machine.Machine{Name: "the guest", Arch: m.Arch, PhysBits: m.PhysBits, Phys: machine.NewNestedMemory(second)}
	space, err := probe.Space(&machine.CPU{Regs: c.block.regs})
	if err != nil {
		return err
	}
	pc, ok := linearPC(c.block.regs)
	if !ok {
		return fmt.Errorf("%w: program counter", machine.ErrNoState)
	}
	reads := func(a uint64) error {
		var b [1]byte
		_, err := space.ReadVirt(b[:], mem.Virt(a))
		return err
	}
	lost := reads(pc)
	at, known := faultAddr(lost, c.block.second.Name)
	f := c.block.fault
	stuck := f != nil && known && uint64(f.Addr)&^(pageSize-1) == at&^(pageSize-1) && rooted(m, c.block)
	switch {
	case lost == nil:
		c.say(pointsWalk, "its program counter %#x leads to memory", pc)
	case stuck:
		c.say(pointsWalk, "its program counter %#x leads to the fault of the second stage that it left with, at %#x", pc, at)
		return nil
	}
	others := c.context(reads)
	if lost == nil {
		return nil
	}
	lost = fmt.Errorf("its program counter %#x leads nowhere: %w", pc, lost)
	if strings.HasPrefix(c.block.why, "exception") || c.block.why == "shutdown" || c.block.why == "triple fault" {
		others++
	}
	if others < 2 || known {
		return lost
	}
	c.evidence = append(c.evidence, fmt.Sprintf("%v (last exit: %s)", lost, c.block.why))
	return nil
}

// context looks at what else of a CPU must be in memory, and returns how much of it is.
func (c *candidate) context(reads func(uint64) error) (count int) {
	if sp, ok := c.block.regs.SP(); ok && reads(sp) == nil {
		c.say(pointsStack, "its stack pointer %#x leads to memory", sp)
		count++
	}
	for _, r := range []string{"idtr_base", "gdtr_base"} {
		if base, ok := c.block.regs.Get(r); ok && base != 0 && reads(base) == nil {
			c.say(pointsTables, "%s %#x leads to memory", r, base)
			count++
		}
	}
	return count
}

// say adds evidence and its points.
func (c *candidate) say(points int, format string, args ...any) {
	c.score += points
	c.evidence = append(c.evidence, fmt.Sprintf(format, args...))
}

// faultAddr is the guest physical address at which a read through both stages ended, if it
// was the second stage, of this name, that had no answer.
func faultAddr(err error, second string) (uint64, bool) {
	for err != nil {
		var fault *mem.FaultError
		if !errors.As(err, &fault) {
			return 0, false
		}
		if fault.Space == second {
			return fault.Addr, true
		}
		err = fault.Err
	}
	return 0, false
}

// rooted reports whether the root of a second stage is a table that maps something: the
// tables of a guest that is gone are emptied first.
func rooted(m *machine.Machine, b controlBlock) bool {
	for _, err := range b.second.Ranges(m.Phys, b.root, mem.Range{Last: ^uint64(0)}) {
		return err == nil
	}
	return false
}

// linearPC is the linear address of the next instruction: outside 64-bit mode, CS has a
// base.
func linearPC(r *arch.Registers) (uint64, bool) {
	pc, ok := r.PC()
	if efer, known := r.Get("efer"); ok && known && efer&eferLMA == 0 {
		if base, known := r.Get("cs_base"); known {
			pc = (base + pc) & 0xffff_ffff
		}
	}
	return pc, ok
}

// eferLMA is long mode active (AMD APM Vol. 2, "Extended Feature Enable Register").
const eferLMA = 1 << 10

// judge decides which of the control blocks that were found by content or remembered can
// be those of a guest that is there, and says of the others why not.
func judge(m *machine.Machine, found map[mem.Phys]*candidate) {
	for _, c := range found {
		c.score = pointsRules
		if c.block.of > 0 {
			c.score = pointsRules * c.block.score / c.block.of
		}
		switch {
		case c.on >= 0:
			c.score = pointsCertain
			continue
		case c.named:
			c.score += pointsNamed
			if c.block.refused && rooted(m, c.block) {
				c.evidence = append(c.evidence, "the processor refused to enter it")
				continue // there is no guest yet that could make sense
			}
		}
		if err := confirm(m, c); err != nil {
			if c.stale = err.Error(); c.given {
				c.evidence = append(c.evidence, c.stale)
			}
		}
	}
	copies(found)
	for _, c := range found {
		if c.stale != "" {
			c.score = min(c.score, pointsStale)
		}
	}
}

// copies finds pages that tell of the same CPU: at most one of them is in use. Hypervisors
// move pages, and what was there stays.
func copies(found map[mem.Phys]*candidate) {
	all := slices.SortedFunc(maps.Values(found), func(a, b *candidate) int {
		return cmp.Or(cmp.Compare(b.standing(), a.standing()), cmp.Compare(a.at, b.at))
	})
	first := make(map[string]*candidate)
	for _, c := range all {
		key := c.sameCPU()
		if key == "" || c.stale != "" {
			continue
		}
		if b := first[key]; b == nil {
			first[key] = c
		} else if c.on < 0 && !c.given {
			c.stale = fmt.Sprintf("the same state of the same CPU is at %#x", b.at)
		}
	}
}

// standing is how much speaks for one of several copies.
func (c *candidate) standing() int {
	switch {
	case c.on >= 0:
		return 3
	case c.given:
		return 2
	case c.named:
		return 1
	}
	return 0
}

// sameCPU is equal for control blocks that can only be of one CPU at one moment: no two
// CPUs of a machine have a stack, a task register and per-CPU data in common. "" if there
// is none of that yet.
func (c *candidate) sameCPU() string {
	key, some := fmt.Sprintf("%#x", c.block.root), false
	for _, name := range []string{"rip", "rsp", "cr3", "gs_base", "tr_base"} {
		v, ok := c.block.regs.Get(name)
		if !ok || v == 0 && name == "rsp" {
			if name == "rip" || name == "rsp" || name == "cr3" {
				return ""
			}
			key += " ?"
			continue
		}
		some = some || v != 0 && (name == "gs_base" || name == "tr_base")
		key += fmt.Sprintf(" %#x", v)
	}
	if !some {
		return ""
	}
	return key
}
