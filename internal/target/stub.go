package target

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
	"nestdbg/internal/qemu"
	"nestdbg/internal/session"
)

// OpenStub takes control of the machine, which stands still from then on.
func (l *Live) OpenStub(ctx context.Context) (session.Stub, error) {
	s, err := l.qemu.OpenStub(ctx)
	if err != nil {
		return nil, gone(err)
	}
	return &stub{Stub: s, onlyHardware: l.qemu.Info().Accel == "kvm"}, nil
}

// CheckStub tells, without stopping the machine, whether somebody else controls it.
func (l *Live) CheckStub(ctx context.Context) error { return gone(l.qemu.CheckStub(ctx)) }

// stub is QEMU's gdbstub in the session's terms.
type stub struct {
	*qemu.Stub
	// onlyHardware turns software breakpoints into hardware ones. Under KVM the
	// stub writes a software breakpoint through a walk of one stage, into whatever
	// page of the hypervisor that leads to when the CPU is in a guest (QEMU 7.2
	// target/i386/kvm/kvm.c:kvm_arch_insert_sw_breakpoint).
	onlyHardware bool
}

// kind is what the stub is asked for to get a trap.
func (s *stub) kind(t session.Trap) qemu.BreakKind {
	if s.onlyHardware && t.Kind == session.TrapSoftware {
		return qemu.BreakHardware
	}
	return qemu.BreakKind(t.Kind)
}

func (s *stub) WritePhys(ctx context.Context, a mem.Phys, p []byte) error {
	return gone(s.Stub.WritePhys(ctx, a, p))
}

func (s *stub) Registers(ctx context.Context, cpu int) (*arch.Registers, error) {
	r, err := s.Stub.Registers(ctx, cpu)
	return r, gone(err)
}

func (s *stub) WriteRegister(ctx context.Context, cpu, reg int, value []byte) error {
	return gone(s.Stub.WriteRegister(ctx, cpu, reg, value))
}

func (s *stub) SetTrap(ctx context.Context, t session.Trap) error {
	err := gone(s.SetBreak(ctx, s.kind(t), t.Addr, t.Size))
	if err != nil && s.onlyHardware && !errors.Is(err, session.ErrGone) {
		return fmt.Errorf("QEMU has no room for another breakpoint or watchpoint: under KVM there are "+
			"the four of the processor, for all machines together: %w", err)
	}
	return err
}

func (s *stub) ClearTrap(ctx context.Context, t session.Trap) error {
	return gone(s.ClearBreak(ctx, s.kind(t), t.Addr, t.Size))
}

func (s *stub) Resume(ctx context.Context, how session.Resumption) error {
	var actions []qemu.Action
	for i := range s.CPUs() {
		switch {
		case i == how.Step:
			actions = append(actions, qemu.Action{CPU: i, Step: true})
		case slices.Contains(how.Frozen, i):
		case how.Step < 0 || how.Others:
			actions = append(actions, qemu.Action{CPU: i})
		}
	}
	return gone(s.Stub.Resume(ctx, actions))
}

func (s *stub) Wait(ctx context.Context) (session.Event, error) {
	stop, err := s.Stub.Wait(ctx)
	if err != nil {
		return session.Event{}, gone(err)
	}
	ev := session.Event{CPU: stop.CPU, Signal: stop.Signal}
	if stop.Watch != qemu.NoWatch {
		ev.Watch, ev.Addr = session.TrapKind(stop.Watch), stop.Addr
	}
	return ev, nil
}

func (s *stub) Paused(ctx context.Context) (bool, error) {
	paused, err := s.Stub.Paused(ctx)
	return paused, gone(err)
}

func (s *stub) Regain(ctx context.Context) error { return gone(s.Stub.Regain(ctx)) }

func (s *stub) Close(ctx context.Context, run bool) error {
	if run {
		return gone(s.Detach(ctx))
	}
	return gone(s.CloseStopped(ctx))
}
