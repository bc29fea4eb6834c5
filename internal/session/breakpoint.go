package session

import (
	"context"
	"errors"
	"fmt"

	"nestdbg/internal/machine"
)

// Breakpoint is a place in the code of one machine.
type Breakpoint struct {
	Machine *machine.Machine
	Addr    uint64
}

// SetBreakpoints makes these the breakpoints of a debugger that serves no gdb. The error
// says what could not be set; the others are. Preconditions: it has control, and the
// machine stands still.
func (d *Debugger) SetBreakpoints(ctx context.Context, places []Breakpoint) error {
	clear(d.traps.wanted)
	var errs []error
	for _, b := range places {
		if err := d.traps.add(ctx, d.stub, d.Number(b.Machine), Trap{TrapSoftware, b.Addr, 1}); err != nil {
			errs = append(errs, fmt.Errorf("breakpoint at %#x of %s: %w", b.Addr, b.Machine.Name, err))
		}
	}
	return errors.Join(append(errs, d.traps.sync(ctx, d.stub))...)
}

// ContinuePast is Continue after a stop: a breakpoint that its CPU stands at is passed
// first, as gdb does by itself. stop may be nil.
func (d *Debugger) ContinuePast(ctx context.Context, stop *Stop) (*Stop, error) {
	if stop != nil && stop.Trap != nil && stop.CPU != nil {
		if next, err := d.stepOver(ctx, Event{CPU: stop.CPU.On}); next != nil || err != nil {
			return next, err
		}
	}
	return d.Continue(ctx)
}

// ForgetInterrupt drops an Interrupt that came when the machine had stopped already: it is
// not for what runs next.
func (d *Debugger) ForgetInterrupt() { d.interrupt.take() }
