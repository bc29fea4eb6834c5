// Package target opens what a person names with -t and gives the debugger its
// backend. It is the only place that knows both QEMU and the session.
package target

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
	"nestdbg/internal/qemu"
	"nestdbg/internal/session"
	"nestdbg/internal/vmstate"
)

// Live is a QEMU that runs. It is the session's Backend.
type Live struct {
	qemu *qemu.Machine
	arch *arch.Arch
}

// architectures by QEMU's name for them.
var architectures = map[string]*arch.Arch{"x86_64": arch.X86}

// Open finds and opens the target: a PID of QEMU, a QMP socket, or "" for the
// only QEMU of this user.
func Open(ctx context.Context, spec string) (*Live, error) {
	t, err := qemu.Find(ctx, spec)
	if err != nil {
		return nil, err
	}
	q, err := qemu.Open(ctx, t)
	if err != nil {
		return nil, err
	}
	a, ok := architectures[q.Info().Arch]
	if !ok {
		return nil, errors.Join(fmt.Errorf("machines of architecture %s are not supported", q.Info().Arch), q.Close())
	}
	return &Live{qemu: q, arch: a}, nil
}

// Close lets go of QEMU; its machine stays as it is.
func (l *Live) Close() error { return l.qemu.Close() }

// Info says what the target is.
func (l *Live) Info() qemu.Info { return l.qemu.Info() }

// RAM says where memory comes from.
func (l *Live) RAM() *qemu.RAM { return l.qemu.RAM() }

// Problems is what was not as it should be.
func (l *Live) Problems() []qemu.Problem { return l.qemu.Problems() }

// HMP executes a line of QEMU's human monitor.
func (l *Live) HMP(ctx context.Context, line string) (string, error) { return l.qemu.HMP(ctx, line) }

// Arch implements session.Backend.
func (l *Live) Arch() *arch.Arch { return l.arch }

// Memory implements session.Backend.
func (l *Live) Memory() machine.PhysMemory { return l.qemu.RAM() }

// PhysBits implements session.Sized.
func (l *Live) PhysBits() uint { return l.qemu.Info().PhysBits }

// Pause stops a machine that runs; resume lets it run on, also after ctx has ended.
// The session may be asked for a good moment before: session.Session.ExpectStop.
func (l *Live) Pause(ctx context.Context) (resume func() error, err error) {
	resume = func() error { return gone(l.qemu.ContMachine(context.WithoutCancel(ctx))) }
	if err := l.qemu.StopMachine(ctx); err != nil {
		// The error may have come after the stop was carried out.
		return nil, errors.Join(gone(err), resume())
	}
	return resume, nil
}

// Running implements session.Backend.
func (l *Live) Running(ctx context.Context) (bool, error) {
	running, _, err := l.qemu.Status(ctx)
	return running, gone(err)
}

// Status tells whether the machine runs, and QEMU's name for its state.
func (l *Live) Status(ctx context.Context) (running bool, state string, err error) {
	running, state, err = l.qemu.Status(ctx)
	return running, state, gone(err)
}

// Heard is what QEMU said unasked; see qemu.Heard.
type Heard = qemu.Heard

// Events waits for QEMU's events; see qemu.Machine.Events.
func (l *Live) Events(ctx context.Context, d time.Duration) (Heard, error) {
	h, err := l.qemu.Events(ctx, d)
	return h, gone(err)
}

// IsBusy reports whether an error is that somebody else keeps QEMU's socket.
func IsBusy(err error) bool {
	var busy *qemu.BusyError
	return errors.As(err, &busy)
}

// Unlisten ends what Events began.
func (l *Live) Unlisten() { l.qemu.Unlisten() }

// Endings are what QEMU does when its machine ends; see qemu.Endings.
type Endings = qemu.Endings

// Endings is what QEMU does at a reset and a shutdown, by its command line.
func (l *Live) Endings() Endings { return l.qemu.Endings() }

// SetEndings makes QEMU do something else then.
func (l *Live) SetEndings(ctx context.Context, e Endings) error {
	return gone(l.qemu.SetEndings(ctx, e))
}

// Reset resets a machine that stands after its end, and lets it run; Quit ends QEMU.
func (l *Live) Reset(ctx context.Context) error {
	if err := l.qemu.ResetMachine(ctx); err != nil {
		return gone(err)
	}
	return gone(l.qemu.ContMachine(ctx))
}

// Quit ends QEMU.
func (l *Live) Quit(ctx context.Context) error { return gone(l.qemu.Quit(ctx)) }

// CPUs implements session.Backend.
func (l *Live) CPUs(ctx context.Context) ([]*arch.Registers, error) {
	b, err := l.qemu.DeviceState(ctx)
	if err != nil {
		return nil, gone(err)
	}
	s, err := vmstate.Parse(b, l.arch)
	if err != nil {
		return nil, fmt.Errorf("device state: %w", err)
	}
	return s.CPUs, nil
}

// BeforeStop implements session.Peeker.
func (l *Live) BeforeStop(f func(context.Context)) { l.qemu.BeforeStop(f) }

// peeked are the registers that lead to page tables or say whether a CPU waits, by
// arch's names and QEMU's.
var peeked = map[string]string{"cr0": "CR0", "cr3": "CR3", "cr4": "CR4", "efer": "EFER", "rip": "RIP",
	"eflags": "RFL", "halted": "HLT"}

// Peek implements session.Peeker. Stops are harmless where a processor does the
// work, and a risk under QEMU's emulation.
func (l *Live) Peek(ctx context.Context) ([]*arch.Registers, error) {
	if l.qemu.Info().Accel == "kvm" {
		return nil, nil
	}
	cpus, err := l.qemu.PeekRegisters(ctx)
	if err != nil {
		return nil, gone(err)
	}
	var out []*arch.Registers
	for _, c := range cpus {
		r := arch.NewRegisters(l.arch)
		for name, theirs := range peeked {
			if v, ok := c[theirs]; ok {
				r.Set(name, v)
			}
		}
		out = append(out, r)
	}
	return out, nil
}

// WaitEnd returns a session.ErrGone when QEMU has ended, or the error of ctx.
func (l *Live) WaitEnd(ctx context.Context) error { return gone(l.qemu.WaitEnd(ctx)) }

// gone gives the end of QEMU the class that the session knows.
func gone(err error) error {
	if errors.Is(err, qemu.ErrGone) {
		return fmt.Errorf("%w: %w", session.ErrGone, err)
	}
	return err
}
