package nested

import (
	"fmt"

	"nestdbg/internal/arch"
	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
)

// A processor runs guests of QEMU's own machine and of nothing else. When a guest
// enters a guest of its own, its hypervisor makes one control block of two, that of
// the guest and the one that the guest made, with a second stage that is both stages
// in one, and runs that. So a CPU that executes a merged block is in the guest's
// guest: the hypervisor says whose block it is, and at which address of the guest's
// memory the guest made its own. The guest's CPU then is what a CPU of hardware is in
// that state: it has a control block, and its own registers wait somewhere.

// innerGuest is the guest that a CPU of a guest is in.
type innerGuest struct {
	at      mem.Phys        // of the control block that the guest made, in its own memory
	run     *candidate      // the merged one, in its hypervisor's
	host    *arch.Registers // the CPU's own registers meanwhile
	source  string          // of host
	save    mem.Phys        // of the host save area that the CPU was given, or 0
	pending bool            // nothing was executed yet: the guest's own block is the newer one
	kept    []byte          // what the hypervisor has of the guest's own block, nil if it is in memory
}

// keeper is a technology whose processors keep an active control block in themselves; so
// do hypervisors that play one.
type keeper interface {
	// keep gives a CPU the page of its current control block, at an address.
	keep(cpu *arch.Registers, at mem.Phys, page []byte)
}

func keep(tech technology, cpu *arch.Registers, at mem.Phys, page []byte) {
	if k, ok := tech.(keeper); ok && page != nil {
		k.keep(cpu, at, page)
	}
}

// keptPage is what the hypervisor of m has of the control block that a CPU of its guest
// made last; nil if that is in the guest's memory.
func keptPage(m *machine.Machine, control linux.ControlBlock) []byte {
	page := make([]byte, pageSize)
	if control.Kept == 0 {
		return nil
	}
	if _, err := m.Phys.ReadPhys(page, control.Kept); err != nil {
		return nil
	}
	return page
}

// splitter is a technology of which hypervisors leave a part of the inner guest's
// registers in the outer guest's control block.
type splitter interface {
	// split takes them out of own, where they are another's, and gives them to inner,
	// which may be nil.
	split(own, inner *arch.Registers)
}

// deeper makes of a CPU's own control block and of the merged one that the hypervisor
// has for it one candidate, and returns the merged one; nil if the CPU is in no guest
// of its own. A machine that runs is seen at several moments: what a CPU executes is
// what counts, and what does not belong to that moment is not known.
func deeper(m *machine.Machine, found map[mem.Phys]*candidate, own *candidate, control linux.ControlBlock) (*candidate, error) {
	run := found[control.Merged]
	executes := run != nil && run != own && run.on >= 0
	if executes && control.Untold && control.LastInner != 0 {
		control.Current, control.Inner = control.Merged, control.LastInner
	}
	if !executes && own.on < 0 && !own.live {
		control = settled(m, own, control)
	}
	own.merged = control.Merged
	switch {
	case own.on >= 0:
		control.Inner = 0
	case executes && !control.InGuest():
		control.Inner, control.HostSave = control.LastInner, 0
		own.block.regs = machine.ModeOf(own.block.regs) // the others are of a later moment
		own.block.regs.Forget(m.RootRegister())
	case control.Between():
		own.between = true
		splitOff(own, nil)
		own.block.why = "its own VM entry or exit, which its hypervisor is half through"
		if control.Untold {
			own.block.why = "a guest of its own, of which its hypervisor's types say nothing"
		}
	}
	kept := keptPage(m, control)
	keep(own.tech, own.block.regs, control.LastInner, kept)
	if control.Inner == 0 && executes {
		delete(found, control.Merged)
		own.on, own.executed, own.away = run.on, run.executed, true
		if m.Parent == nil {
			own.executed = control.Merged
		}
		return nil, fmt.Errorf("CPU %d executes a guest of a guest, and whose is not known", run.on)
	}
	if control.Inner == 0 {
		if run != nil && run != own {
			delete(found, control.Merged) // it stands for a guest of the guest, at times
		}
		return nil, nil
	}
	if run == nil {
		run = inspect(m, own.tech, control.Merged)
	}
	if run == nil {
		return nil, fmt.Errorf("the merged control block at %#x, which stands for a guest of a guest, is not valid", control.Merged)
	}
	delete(found, control.Merged)
	inner := run.block.regs
	if executes {
		inner = nil // a CPU has them all
	}
	splitOff(own, inner)
	if m.Parent == nil {
		run.executed = control.Merged
	}
	own.on, own.halted, own.executed = run.on, run.halted, run.executed
	own.inner = &innerGuest{at: control.Inner, run: run, host: own.block.regs, save: control.HostSave, pending: control.Pending, kept: kept,
		source: fmt.Sprintf("%s at %#x, where its hypervisor keeps them while its guest runs", own.tech.name(), own.at)}
	own.evidence = append(own.evidence, run.evidence...)
	own.evidence = append(own.evidence, fmt.Sprintf("its CPU is in a guest of its own, with the control block at %#x of its memory and the merged one at %#x",
		control.Inner, control.Merged))
	return run, nil
}

// settleTries bounds how often a control block is read together with what the
// hypervisor says of it, until both are of one moment.
const settleTries = 4

// settled reads own's control block again until the hypervisor says the same of it
// before and after.
func settled(m *machine.Machine, own *candidate, control linux.ControlBlock) linux.ControlBlock {
	for range settleTries {
		if own.again == nil {
			return control
		}
		page := inspect(m, own.tech, own.at)
		now, err := own.again.Read()
		if err != nil || page == nil {
			return control
		}
		own.block = page.block
		if now == control {
			return control
		}
		control = now
	}
	return control
}

func splitOff(own *candidate, inner *arch.Registers) {
	if s, ok := own.tech.(splitter); ok {
		s.split(own.block.regs, inner)
	}
}

// controlReader reads what a hypervisor says of one CPU's control block again.
type controlReader interface {
	Read() (linux.ControlBlock, error)
}

// deeperAgain is deeper for the CPUs of machines that were known before, where the
// hypervisor's list is not asked for.
func (f *Finder) deeperAgain(m *machine.Machine, found map[mem.Phys]*candidate, problem func(string, ...any)) {
	for _, id := range f.known {
		if id.parent != m.Name {
			continue
		}
		for at, again := range id.again {
			own := found[at]
			if own == nil {
				continue
			}
			control, err := again.Read()
			if err != nil || control.Phys != at {
				continue // that CPU is gone, and so is what was known of it
			}
			own.again = again
			if _, err := deeper(m, found, own, control); err != nil {
				problem("%v", err)
			}
		}
	}
}

// enterInner gives the CPUs of m that are in guests of their own, made of g, the hidden
// state of such a CPU, and returns what else is known of them.
func enterInner(m *machine.Machine, g []*candidate, problem func(string, ...any)) map[*machine.CPU]*innerGuest {
	out := make(map[*machine.CPU]*innerGuest)
	for i, c := range g {
		in, cpu := c.inner, m.CPUs[i]
		if in == nil {
			continue
		}
		if cpu.On < 0 {
			cpu.Source += " in " + m.Parent.Name
		}
		keep(c.tech, cpu.Regs, in.at, in.kept)
		if made := inspect(m, c.tech, in.at); made != nil && in.pending && cpu.On < 0 {
			complete(made.block.regs, cpu.Regs, arch.General)
			cpu.Regs, cpu.Source = made.block.regs, fmt.Sprintf("%s at %#x, and general registers from %s", c.tech.name(), in.at, cpu.Source)
		}
		keep(c.tech, cpu.Regs, in.at, in.kept)
		if err := c.tech.enter(m, cpu.Regs, in.at, in.save, in.host); err != nil {
			problem("CPU %d of %s is in a guest of its own: %v", cpu.Index, m.Name, err)
			cpu.State, cpu.Regs, cpu.Source = machine.Hosting, in.host, in.source
			continue
		}
		out[cpu] = in
	}
	return out
}

// own returns the registers of the CPU itself, and where they are from. saved are those
// in its host save area, or nil: hardware would save all that VMRUN replaces there. A
// hypervisor that plays hardware keeps that elsewhere, and there is only what the
// guest itself put there, to load it again after the exit.
func (in *innerGuest) own(saved *arch.Registers) (*arch.Registers, string) {
	if in.save == 0 || saved == nil {
		return in.host, in.source
	}
	regs := in.host.Clone()
	complete(regs, saved, arch.System)
	return regs, in.source + fmt.Sprintf(", and its host save area at %#x", in.save)
}

// remember keeps how the control blocks of a machine's CPUs are read again.
func (id *identity) remember(g []*candidate) {
	for _, c := range g {
		if c.again != nil {
			id.again[c.at] = c.again
		}
	}
}
