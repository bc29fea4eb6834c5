package session

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"nestdbg/internal/machine"
)

// Refresh makes sure that the tower is of now. It is of the past when the machine has
// run and could not be looked at then, since somebody else has QMP or the device state
// makes no sense; then another look is tried, and if it fails too, nothing is known.
func (d *Debugger) Refresh(ctx context.Context) error {
	if d.stub == nil || !d.stale {
		return nil
	}
	if _, err := d.look(ctx, Quick); err != nil {
		return fmt.Errorf("the machine has run, and what its CPUs do now is not known: %w", err)
	}
	return nil
}

// thread is Thread in a tower of now.
func (d *Debugger) thread(ctx context.Context, pid, tid int) (*machine.Machine, *machine.CPU, error) {
	if err := d.Refresh(ctx); err != nil {
		return nil, nil, err
	}
	return d.Thread(pid, tid)
}

// crossCheck compares what the look says of what a CPU of QEMU's executes with the
// stub's registers. The device state has no names in it: if the layout is not the one
// that we know, its values are somebody else's, and only this shows it. What is told is
// "" if they agree. It takes 0.1 ms.
func (d *Debugger) crossCheck(ctx context.Context, on int) (told string) {
	m, c := d.Tower().At(on)
	if c == nil || c.State != machine.Running && c.State != machine.Halted {
		return ""
	}
	theirs, err := d.stub.Registers(ctx, on)
	if err != nil {
		if !errors.Is(err, ErrDead) {
			d.log.Warn("the stub's registers", "cpu", on, "error", err)
		}
		return ""
	}
	var b strings.Builder
	a := m.Arch
	for _, name := range []string{a.Regs[a.PC].Name, a.Regs[a.SP].Name, m.RootRegister()} {
		ours, ok := c.Regs.Get(name)
		stubs, known := theirs.Get(name)
		// Of a CPU that is not in 64-bit code the stub tells the low half.
		if ok && known && stubs != ours && stubs != ours&0xffffffff {
			fmt.Fprintf(&b, "[nestdbg: %s of L1 CPU %d is %#x by QEMU's device state, %#x by its stub: "+
				"registers of this QEMU cannot be relied on]\n", name, on, ours, stubs)
		}
	}
	if b.Len() > 0 {
		d.log.Warn("the device state and the stub disagree", "told", b.String())
	}
	return b.String()
}
