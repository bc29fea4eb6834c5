package session

import (
	"context"
	"time"

	"nestdbg/internal/arch"
	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
)

// LookAside is a full Look that does not stop a machine whose stops are a risk
// (Peeker), for questions to kernels: those need page tables, and registers of no one
// moment. The tower's registers are what could be seen from outside; a CPU of QEMU's
// machine may be in another layer than it says. Where no kernel is found that way,
// where stops are harmless, and where the machine stands, it is Look.
func (s *Session) LookAside(ctx context.Context) (*machine.Tower, error) {
	running, err := s.backend.Running(ctx)
	if err != nil {
		return nil, err
	}
	if p, ok := s.backend.(Peeker); ok && running {
		cpus, err := s.peekKernel(ctx, p)
		if err != nil {
			return nil, err
		}
		if cpus != nil {
			return s.check(s.build(cpus, Full, running))
		}
	}
	return s.look(ctx, Full, running)
}

// peekKernel peeks until the registers lead to a kernel; nil if they do not, or if
// stops are harmless.
func (s *Session) peekKernel(ctx context.Context, p Peeker) ([]*arch.Registers, error) {
	for i := range peeks {
		if i > 0 {
			time.Sleep(peekPause)
		}
		cpus, err := p.Peek(ctx)
		if err != nil || len(cpus) == 0 {
			return nil, err
		}
		if s.leadToKernel(cpus) {
			return cpus, nil
		}
	}
	return nil, nil
}

// leadToKernel reports whether registers that are not of one moment lead to a kernel.
func (s *Session) leadToKernel(cpus []*arch.Registers) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peekedKernel(s.root(cpus)) != nil
}

// peekedKernel finds the kernel of QEMU's machine from registers that are not of one
// moment; nil if they lead to none. A CPU that is in its guest leads nowhere, another
// one may not. Preconditions: s.mu is held.
func (s *Session) peekedKernel(root *machine.Machine) *linux.Kernel {
	live := s.live(root)
	if r := s.kernels[root.Name]; r != nil && r.err == nil {
		root.Mode = r.mode
		if runs(r.kernel, root) {
			return r.kernel
		}
		root.Mode = nil
	}
	k, err := find(root, live, false)
	if err != nil {
		return nil
	}
	s.kernels[root.Name] = &kernelResult{fulls: s.fulls, kernel: k, mode: root.Mode}
	return k
}
