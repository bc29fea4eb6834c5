package session

import (
	"cmp"
	"context"
	"errors"
	"slices"
)

// traps is the table of logical breakpoints and of what the stub has of them.
// A trap of the stub fires in every layer; a logical one belongs to a machine.
type traps struct {
	wanted    map[wantedTrap]int // how often each was asked for
	installed map[Trap]bool
}

type wantedTrap struct {
	pid int
	Trap
}

func newTraps() traps {
	return traps{wanted: make(map[wantedTrap]int), installed: make(map[Trap]bool)}
}

// add places a breakpoint at once, so that a stub that has no room for it says
// so to the one who asked.
func (t *traps) add(ctx context.Context, stub Stub, pid int, trap Trap) error {
	if err := t.install(ctx, stub, trap); err != nil {
		return err
	}
	t.wanted[wantedTrap{pid, trap}]++
	return nil
}

func (t *traps) install(ctx context.Context, stub Stub, trap Trap) error {
	if t.installed[trap] {
		return nil
	}
	if err := stub.SetTrap(ctx, trap); err != nil {
		return err
	}
	t.installed[trap] = true
	return nil
}

// remove forgets a breakpoint. The stub keeps it until the next sync: gdb
// removes and inserts all of them around every stop.
func (t *traps) remove(pid int, trap Trap) {
	w := wantedTrap{pid, trap}
	if t.wanted[w]--; t.wanted[w] <= 0 {
		delete(t.wanted, w)
	}
}

// removeProcess forgets all breakpoints of one machine.
func (t *traps) removeProcess(pid int) {
	for w := range t.wanted {
		if w.pid == pid {
			delete(t.wanted, w)
		}
	}
}

// sync clears what the stub has and nobody wants.
func (t *traps) sync(ctx context.Context, stub Stub) error {
	needed := make(map[Trap]bool, len(t.wanted))
	for w := range t.wanted {
		needed[w.Trap] = true
	}
	for trap := range t.installed {
		if needed[trap] {
			continue
		}
		if err := stub.ClearTrap(ctx, trap); err != nil {
			return err
		}
		delete(t.installed, trap)
	}
	return nil
}

func (t *traps) clearAll(ctx context.Context, stub Stub) error {
	clear(t.wanted)
	var all []error
	for trap := range t.installed {
		if err := stub.ClearTrap(ctx, trap); err != nil {
			all = append(all, err)
		}
		delete(t.installed, trap)
	}
	return errors.Join(all...)
}

// execAt returns the breakpoint of a machine at an address.
func (t *traps) execAt(pid int, addr uint64) (Trap, bool) {
	for w := range t.wanted {
		if w.pid == pid && w.Addr == addr && !w.Kind.watches() {
			return w.Trap, true
		}
	}
	return Trap{}, false
}

// watchAt returns the watchpoint of a machine that was hit: one that covers the address,
// of the kind that the stub names, or else of one that the same access may hit, since
// the stub names one of several, and that may be another machine's.
func (t *traps) watchAt(pid int, kind TrapKind, addr uint64) (Trap, bool) {
	var hit []Trap
	for w := range t.wanted {
		if w.pid == pid && w.Kind.watches() && addr-w.Addr < uint64(w.Size) &&
			(w.Kind == kind || w.Kind == TrapAccess || kind == TrapAccess) {
			hit = append(hit, w.Trap)
		}
	}
	if len(hit) == 0 {
		return Trap{}, false
	}
	return slices.MinFunc(hit, func(a, b Trap) int {
		exact := func(t Trap) int {
			if t.Kind == kind {
				return 0
			}
			return 1
		}
		return cmp.Or(exact(a)-exact(b), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Addr, b.Addr), a.Size-b.Size)
	}), true
}

// anyAt reports whether the stub has a breakpoint at an address.
func (t *traps) anyAt(addr uint64) bool {
	for trap := range t.installed {
		if trap.Addr == addr && !trap.Kind.watches() {
			return true
		}
	}
	return false
}
