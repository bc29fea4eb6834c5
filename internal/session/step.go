package session

import (
	"context"
	"fmt"
	"slices"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/nested"
)

// maxCrossings bounds how often one step follows its CPU through other layers.
// An instruction that touches several new pages leaves its machine once for
// each page and stage; nothing real comes near this.
const maxCrossings = 256

// othersEvery is how often the other CPUs run during a step.
const othersEvery = 16

// Step executes one instruction of a CPU, in its own layer: when the
// instruction leaves for the hypervisor, or enters a guest, it is followed until
// the same CPU is back behind it. others lets the other CPUs run now and then: at
// one of othersEvery steps, so that one of them can release what this CPU waits
// for. Each time, the end of the step stops them at a moment that nobody chose
// (see Peeker), and takes as long again.
func (d *Debugger) Step(ctx context.Context, m *machine.Machine, c *machine.CPU, others bool) (*Stop, error) {
	if err := d.traps.sync(ctx, d.stub); err != nil {
		return nil, err
	}
	s := stepper{d: d, name: m.Name, index: c.Index}
	if others {
		d.steps++
		s.others = d.steps%othersEvery == 0
	}
	if pc, ok := c.Regs.PC(); ok && c.State != machine.Parked {
		s.from, s.started = pc, true
	}
	for range maxCrossings {
		m, c, err := s.find()
		if err != nil {
			return nil, err
		}
		stop, done, err := s.advance(ctx, m, c)
		if err != nil || stop != nil {
			return stop, err
		}
		if done {
			m, c, err := s.find()
			if err != nil {
				return nil, err
			}
			return &Stop{Machine: m, CPU: c, Signal: signalTrap}, nil
		}
	}
	return nil, fmt.Errorf("step: %s CPU %d left its layer %d times in one instruction", m.Name, c.Index, maxCrossings)
}

// stepper is one step under way.
type stepper struct {
	d       *Debugger
	name    string
	index   int
	others  bool
	from    uint64 // where the instruction is
	started bool   // from is known
}

// find returns the CPU as of now.
func (s *stepper) find() (*machine.Machine, *machine.CPU, error) {
	m, ok := s.d.Tower().Machine(s.name)
	if !ok {
		return nil, nil, fmt.Errorf("step: %s is gone", s.name)
	}
	c, ok := m.CPU(s.index)
	if !ok {
		return nil, nil, fmt.Errorf("step: CPU %d of %s is gone", s.index, s.name)
	}
	return m, c, nil
}

// advance does the next part of a step; done when the instruction is behind.
func (s *stepper) advance(ctx context.Context, m *machine.Machine, c *machine.CPU) (stop *Stop, done bool, err error) {
	switch c.State {
	case machine.Parked:
		return s.awaitEntry(ctx, m, c)
	case machine.Hosting:
		// Its guest runs: the instruction is over when the hypervisor gets the
		// CPU back, behind the one that entered the guest.
		pc, ok := c.Regs.PC()
		if !ok {
			return nil, false, fmt.Errorf("step: where %s CPU %d will continue is not known", m.Name, c.Index)
		}
		stop, err = s.runTo(ctx, nil, pc)
		return stop, stop == nil && err == nil, err
	}
	pc, ok := c.Regs.PC()
	if !ok {
		return nil, false, fmt.Errorf("step: program counter of %s CPU %d is not known", m.Name, c.Index)
	}
	if !s.started {
		s.from, s.started = pc, true
	}
	if c.State == machine.Halted {
		// Interrupts are masked in a single step, so a halted CPU would never end
		// one. It goes on at pc when the handler of what wakes it returns.
		sp, ok := c.Regs.SP()
		if !ok {
			return nil, false, fmt.Errorf("step: stack pointer of %s CPU %d is not known", m.Name, c.Index)
		}
		stop, err = s.runTo(ctx, &sp, pc)
		return stop, stop == nil && err == nil, err
	}
	if size, ok := s.entersGuest(m, c, pc); ok {
		stop, err = s.runTo(ctx, nil, nested.AfterEntry(m, c, pc+uint64(size))...)
		return stop, stop == nil && err == nil, err
	}
	return s.single(ctx, m, c)
}

// single lets QEMU's CPU execute one instruction.
func (s *stepper) single(ctx context.Context, m *machine.Machine, c *machine.CPU) (*Stop, bool, error) {
	on := c.On
	ev, err := s.d.resume(ctx, Resumption{Step: on, Others: s.others})
	if err != nil || s.d.outside != nil {
		return s.d.outside, false, err
	}
	t, err := s.d.look(ctx, Glance)
	if err != nil {
		return nil, false, err
	}
	if ev.CPU != on || ev.Watch.watches() || ev.Signal != signalTrap {
		stop, foreign := s.d.classify(t, ev)
		if stop == nil && ev.Signal != signalTrap {
			stop = s.d.unexplained(t, ev) // QEMU has ended the machine, say
		}
		if stop != nil {
			return stop, false, nil
		}
		if foreign && ev.CPU != on {
			s.d.foreign++
			if stop, err := s.d.stepOver(ctx, ev); stop != nil || err != nil {
				return stop, false, err
			}
		}
	}
	_, after, err := s.find()
	if err != nil {
		return nil, false, err
	}
	if after.State == machine.Parked || after.State == machine.Hosting {
		return nil, false, nil // it left its layer: follow
	}
	pc, ok := after.Regs.PC()
	// Another CPU's event may have come before this one did its instruction; an
	// instruction that jumps to itself looks the same and may be done twice.
	return nil, ev.CPU == on || ok && pc != s.from, nil
}

// awaitEntry runs until a hypervisor is about to enter this parked CPU again, reads
// from the control block where it will land, and runs to there. If the CPU's own
// hypervisor is in it, the next entry is that of QEMU's own machine, unless it hands
// the CPU back first; nobody else is watched meanwhile, since every entry that is
// costs its guest the time in which its timer fires again.
func (s *stepper) awaitEntry(ctx context.Context, m *machine.Machine, c *machine.CPU) (*Stop, bool, error) {
	host, control := nested.ExecutedBy(m, c)
	entries, err := s.entryPoints(host)
	if err != nil {
		return nil, false, err
	}
	handed := false
	stop, err := s.d.run(ctx, &goal{places: entries, reached: func(hm *machine.Machine, hc *machine.CPU) bool {
		if pc, ok := hc.Regs.PC(); hm.Name != host.Name || !ok || !slices.Contains(entries, pc) {
			return false
		}
		if m, c, err := s.find(); err == nil {
			now, at := nested.ExecutedBy(m, c)
			handed = now.Name != host.Name || at != control
		}
		at, ok := nested.Entering(hm, hc)
		return handed || ok && at == control
	}})
	if stop != nil || err != nil || handed {
		return stop, false, err
	}
	m, c, err = s.find()
	if err != nil {
		return nil, false, err
	}
	landing, err := nested.Land(m, c)
	if err != nil {
		return nil, false, fmt.Errorf("step: %w", err)
	}
	stop, err = s.runTo(ctx, landing.SP, landing.PC)
	if stop != nil || err != nil {
		return stop, false, err
	}
	if !s.started {
		s.from, s.started = landing.PC, true
		return nil, false, nil // now it can execute the instruction
	}
	// The instruction is done if the hypervisor put the CPU behind it, or into a
	// handler for what it did. At the same place it must be executed again.
	return nil, landing.PC != s.from, nil
}

// runTo runs until this CPU executes at one of these places in its layer, with the
// given stack pointer if sp is not nil: then an interrupt handler that happens to pass
// there is not taken for the return from it.
func (s *stepper) runTo(ctx context.Context, sp *uint64, places ...uint64) (*Stop, error) {
	return s.d.run(ctx, &goal{
		places: places,
		reached: func(m *machine.Machine, c *machine.CPU) bool {
			if m.Name != s.name || c.Index != s.index {
				return false
			}
			at, ok := c.Regs.PC()
			if !ok || !slices.Contains(places, at) {
				return false
			}
			now, ok := c.Regs.SP()
			return sp == nil || ok && now == *sp
		},
	})
}

// entryPoints are the instructions with which a hypervisor enters its guests, from
// the state that it saved at its last entries.
func (s *stepper) entryPoints(parent *machine.Machine) ([]uint64, error) {
	for _, c := range parent.CPUs {
		v, err := s.d.VirtMemory(parent, c)
		if err != nil {
			continue
		}
		for behind := range s.d.entries[parent.Name] {
			if at := nested.EntryPoints(parent, c, v, behind); len(at) > 0 {
				return at, nil
			}
		}
	}
	return nil, fmt.Errorf("step: where %s enters its guests is not known", parent.Name)
}

// entersGuest reports whether the CPU's next instruction enters a nested guest,
// and how long it is.
func (s *stepper) entersGuest(m *machine.Machine, c *machine.CPU, pc uint64) (int, bool) {
	v, err := s.d.VirtMemory(m, c)
	if err != nil {
		return 0, false
	}
	for _, insn := range m.Arch.GuestEntry {
		code := make([]byte, len(insn))
		if _, err := v.ReadVirt(code, mem.Virt(pc)); err == nil && slices.Equal(code, insn) {
			return len(insn), true
		}
	}
	return 0, false
}
