package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"nestdbg/internal/machine"
)

// Debugger runs the machine. All methods are for one goroutine, except
// Interrupt; the machine is all-stop: every CPU runs or none does.
type Debugger struct {
	*Session
	open func(context.Context) (Stub, error)
	log  *slog.Logger

	stub       Stub // nil while nothing is attached
	wasRunning bool // when the stub was taken

	traps    traps
	attached map[int]string // machine names by process number
	// entries are the addresses behind the instruction that enters a guest, as
	// seen in the hypervisors' saved state, by the parent machine's name.
	entries map[string]map[uint64]bool
	// stale is set while the machine runs, and until a look has seen what came of it.
	stale bool
	// frozen are CPUs that stand still while the others run: their last stop is
	// not told yet.
	frozen []int
	// foreign counts hits that belonged to no machine that wanted them.
	foreign int
	// steps counts those during which other CPUs may run.
	steps int
	// tasks are those of the machines' kernels that are shown as threads.
	tasks taskThreads

	interrupt interrupt
	// outside is set while somebody else keeps the machine stopped.
	outside *Stop
}

// NewDebugger returns a debugger that has not taken control yet; open takes it,
// and the machine stands still from then on.
func NewDebugger(s *Session, open func(context.Context) (Stub, error), log *slog.Logger) *Debugger {
	return &Debugger{
		Session: s, open: open, log: log,
		traps:    newTraps(),
		attached: make(map[int]string),
		entries:  make(map[string]map[uint64]bool),
		tasks:    taskThreads{on: make(map[string]bool), stops: make(map[string]*taskStop)},
	}
}

// Take stops the machine and takes control of it, if that was not done yet.
func (d *Debugger) Take(ctx context.Context) error {
	if d.stub != nil {
		return nil
	}
	running, err := d.backend.Running(ctx)
	if err != nil {
		return err
	}
	if running {
		d.ExpectStop(ctx)
	}
	stub, err := d.open(ctx)
	if err != nil {
		return err
	}
	d.stub, d.wasRunning = stub, running
	t, err := d.look(ctx, Full)
	if err != nil {
		return errors.Join(err, d.Release(ctx))
	}
	for _, c := range t.Machines[0].CPUs {
		d.crossCheck(ctx, c.Index)
	}
	return nil
}

// Holds reports whether the debugger has control of the machine, which then stands still
// unless it lets it run: from Take to Release. A server has it while a machine is
// attached.
func (d *Debugger) Holds() bool { return d.stub != nil }

// Release clears every trap and gives control back: the machine runs on if it
// ran when it was taken, and nobody else has stopped it since. It does so also when ctx
// is over.
func (d *Debugger) Release(ctx context.Context) error {
	if d.stub == nil {
		return nil
	}
	ctx = context.WithoutCancel(ctx) // every question has a bound of its own
	stub := d.stub
	d.stub = nil
	d.ExpectStop(ctx) // it may run, and is stopped to clear the traps
	d.awaitExpected(ctx)
	clear(d.attached)
	run := d.wasRunning
	if d.outside != nil {
		d.outside = nil
		if paused, err := stub.Paused(ctx); err == nil && paused {
			run = false // they let it run
		} else if err := stub.Regain(ctx); err != nil {
			d.log.Warn("regain the machine", "error", err)
		}
	}
	cleared := d.traps.clearAll(ctx, stub)
	if err := stub.Close(ctx, run); err != nil {
		return errors.Join(cleared, err)
	}
	return nil // and no trap is left, whatever happened before
}

// look is Look, and remembers where hypervisors enter their guests.
func (d *Debugger) look(ctx context.Context, effort Effort) (*machine.Tower, error) {
	t, err := d.Session.look(ctx, effort, false) // it holds the stub: nothing runs
	if err != nil {
		return nil, err
	}
	d.stale = false
	for _, m := range t.Machines {
		for _, c := range m.CPUs {
			if c.EntryPC == 0 {
				continue
			}
			if d.entries[m.Name] == nil {
				d.entries[m.Name] = make(map[uint64]bool)
			}
			d.entries[m.Name][c.EntryPC] = true
		}
	}
	return t, nil
}

// Foreign is how many trap hits were passed because they belonged to another
// machine than the one the trap was set in.
func (d *Debugger) Foreign() int { return d.foreign }

// Thread finds a CPU of a machine by gdb's numbers: process number and CPU
// number plus one.
func (d *Debugger) Thread(pid, tid int) (*machine.Machine, *machine.CPU, error) {
	for _, m := range d.Tower().Machines {
		if d.Number(m) != pid {
			continue
		}
		if c, ok := m.CPU(tid - 1); ok {
			return m, c, nil
		}
		return nil, nil, fmt.Errorf("%s has no CPU %d", m.Name, tid-1)
	}
	return nil, nil, fmt.Errorf("machine %d is gone", pid)
}
