package session

import (
	"context"

	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/nested"
)

// Find searches the memory of every machine of the last look for all that a guest is
// known by, best first, also what the look had no use for. blind leaves unused what the
// kernels of hypervisors say of their guests.
func (s *Session) Find(ctx context.Context, blind bool) (candidates []nested.Candidate, problems []string, err error) {
	t := s.Tower()
	s.mu.Lock()
	opt := s.options(Full)
	s.mu.Unlock()
	if blind {
		opt.Kernel = nil
	}
	if opt.Kernel != nil { // that one is for those who hold s.mu
		opt.Kernel = func(m *machine.Machine) *linux.Kernel {
			k, _ := s.Kernel(m)
			return k
		}
	}
	candidates, problems = nested.Find(t, opt)
	return candidates, problems, ctx.Err()
}
