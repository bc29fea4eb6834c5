package session

import (
	"context"
	"fmt"

	"nestdbg/internal/machine"
)

// Stop is why the machine stopped, told of one CPU of one machine.
type Stop struct {
	Machine *machine.Machine // nil if it cannot be said
	CPU     *machine.CPU
	Signal  int
	Trap    *Trap  // the logical breakpoint or watchpoint that was hit, or nil
	Addr    uint64 // of the data, for a watchpoint
	// Outside: somebody else stopped the machine, and may let it run again; no machine
	// is named. Or they have let it run meanwhile, and what was done is not: then a
	// machine is named.
	Outside bool
}

// The signals that a stop can carry, in gdb's numbering.
const (
	signalInterrupt = 2
	signalTrap      = 5
)

// goal is a place the debugger itself wants a CPU to reach, or one of several.
type goal struct {
	places  []uint64
	reached func(m *machine.Machine, c *machine.CPU) bool
}

// Continue lets everything run until something belongs to the person.
func (d *Debugger) Continue(ctx context.Context) (*Stop, error) {
	if err := d.traps.sync(ctx, d.stub); err != nil {
		return nil, err
	}
	stop, err := d.run(ctx, nil)
	if err != nil {
		return nil, err
	}
	return stop, nil
}

// run lets everything run until a logical breakpoint is hit, somebody
// interrupts, or the goal is reached; in the last case the stop is nil.
// Foreign hits are stepped over unseen.
func (d *Debugger) run(ctx context.Context, g *goal) (*Stop, error) {
	if g != nil {
		for _, at := range g.places {
			trap := Trap{Kind: TrapSoftware, Addr: at, Size: 1}
			had := d.traps.installed[trap]
			if err := d.traps.install(ctx, d.stub, trap); err != nil {
				return nil, err
			}
			if !had {
				defer func() { // the next sync would do it too, but a stop shows the table clean
					if d.stub.ClearTrap(ctx, trap) == nil {
						delete(d.traps.installed, trap)
					}
				}()
			}
		}
	}
	for {
		ev, err := d.resume(ctx, Resumption{Step: -1})
		if err != nil || d.outside != nil {
			return d.outside, err
		}
		t, err := d.look(ctx, Glance)
		if err != nil {
			return nil, err
		}
		stop, foreign := d.classify(t, ev)
		if stop != nil {
			return stop, nil
		}
		if m, c := t.At(ev.CPU); g != nil && c != nil && g.reached(m, c) {
			return nil, nil
		}
		if !foreign {
			return d.unexplained(t, ev), nil
		}
		d.foreign++
		if stop, err := d.stepOver(ctx, ev); stop != nil || err != nil {
			return stop, err
		}
	}
}

// resume runs and waits, and turns an interrupt that came in between into an
// event of its own. If somebody else has stopped the machine, d.outside is set, and
// the event says nothing.
func (d *Debugger) resume(ctx context.Context, how Resumption) (Event, error) {
	if d.outside != nil {
		interrupted, err := d.awaitOutside(ctx)
		if err != nil {
			return Event{}, err
		}
		if interrupted {
			return Event{Signal: signalInterrupt}, nil
		}
	}
	how.Frozen = d.frozen
	if err := d.stub.Resume(ctx, how); err != nil {
		return Event{}, err
	}
	d.stale = true
	// An interrupt may have been asked for while nothing ran.
	if err := d.interrupt.send(d.stub); err != nil {
		return Event{}, err
	}
	ev, err := d.stub.Wait(ctx)
	if err != nil {
		return Event{}, fmt.Errorf("wait for a stop: %w", err)
	}
	if ev.Signal == signalInterrupt && !d.interrupt.isAsked() {
		d.outside = &Stop{Signal: signalInterrupt, Outside: true}
	}
	return ev, nil
}

// classify finds out whom an event belongs to. A nil stop with foreign set is
// a hit of somebody else's trap.
func (d *Debugger) classify(t *machine.Tower, ev Event) (stop *Stop, foreign bool) {
	m, c := t.At(ev.CPU)
	if stop, foreign = d.ownTrap(m, c, ev); stop != nil {
		d.interrupt.take() // the person gets a stop, and the trap is not lost
		return stop, false
	}
	if ev.Signal == signalInterrupt || d.interrupt.isAsked() {
		d.interrupt.take()
		return &Stop{Machine: m, CPU: c, Signal: signalInterrupt}, false
	}
	return nil, foreign
}

// ownTrap matches an event with the traps of the machine that the CPU is in.
func (d *Debugger) ownTrap(m *machine.Machine, c *machine.CPU, ev Event) (stop *Stop, foreign bool) {
	if c == nil || ev.Signal != signalTrap {
		return nil, false
	}
	pid := d.Number(m)
	if ev.Watch.watches() {
		if trap, ok := d.traps.watchAt(pid, ev.Watch, ev.Addr); ok {
			return &Stop{Machine: m, CPU: c, Signal: signalTrap, Trap: &trap, Addr: ev.Addr}, false
		}
		return nil, true
	}
	pc, ok := c.Regs.PC()
	if !ok {
		return nil, false
	}
	if trap, ok := d.traps.execAt(pid, pc); ok {
		return &Stop{Machine: m, CPU: c, Signal: signalTrap, Trap: &trap}, false
	}
	return nil, d.traps.anyAt(pc)
}

// unexplained is the stop for an event that matches no trap: something else
// stopped the machine, and the person should see it.
func (d *Debugger) unexplained(t *machine.Tower, ev Event) *Stop {
	m, c := t.At(ev.CPU)
	return &Stop{Machine: m, CPU: c, Signal: ev.Signal}
}

// stepOver takes a CPU past a trap that is not meant for its layer. A CPU that
// single-steps ignores breakpoints; the others stand still meanwhile, so none
// of them can pass a trap unseen. After a watchpoint the access is done already.
func (d *Debugger) stepOver(ctx context.Context, ev Event) (*Stop, error) {
	if ev.Watch.watches() {
		return nil, nil
	}
	next, err := d.resume(ctx, Resumption{Step: ev.CPU})
	if err != nil || d.outside != nil {
		return d.outside, err
	}
	if next.Signal == signalTrap && !next.Watch.watches() {
		return nil, nil // the step is done
	}
	t, err := d.look(ctx, Glance)
	if err != nil {
		return nil, err
	}
	stop, foreign := d.classify(t, next)
	switch {
	case foreign:
		d.foreign++
	case stop == nil:
		stop = d.unexplained(t, next)
	}
	return stop, nil
}
