package session_test

import (
	"context"
	"testing"
	"time"

	"nestdbg/internal/arch"
	"nestdbg/internal/session"
	"nestdbg/internal/svm/svmtest"
)

// peekedSim is a sim whose stops are a risk, unless harmless.
type peekedSim struct {
	*sim
	harmless bool
	peeks    int
	before   func(context.Context)
}

func (s *peekedSim) BeforeStop(f func(context.Context)) { s.before = f }

func (s *peekedSim) CPUs(ctx context.Context) ([]*arch.Registers, error) {
	s.before(ctx)
	return s.sim.CPUs(ctx)
}

func (s *peekedSim) Peek(ctx context.Context) ([]*arch.Registers, error) {
	s.peeks++
	if s.harmless {
		return nil, nil
	}
	return s.sim.CPUs(ctx)
}

// TestAwaitQuiet has only lower bounds of times: the machine that tests run on
// may be busy.
func TestAwaitQuiet(t *testing.T) {
	const lull, limit = 5 * time.Millisecond, 50 * time.Millisecond
	const injected = 0xec // without the valid bit: delivered, and no exit since
	for name, c := range map[string]struct {
		event   uint64
		ends    time.Duration // when the event ends; 0: never
		running bool
		harm    bool
		atLeast time.Duration
		atMost  time.Duration // generous; 0: not checked
	}{
		"nothing":      {running: true, harm: true, atLeast: lull},
		"an event":     {event: injected, ends: 20 * time.Millisecond, running: true, harm: true, atLeast: 20 * time.Millisecond},
		"for ever":     {event: injected, running: true, harm: true, atLeast: limit, atMost: 10 * limit},
		"harmless":     {event: injected, running: true, atMost: limit},
		"it stands":    {event: injected, harm: true, atMost: limit},
		"an exception": {event: 0xb0e, running: true, harm: true, atLeast: lull, atMost: 45 * time.Millisecond},
		"valid, to be": {event: 1<<31 | injected, ends: 20 * time.Millisecond, running: true, harm: true, atLeast: 20 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			b := &peekedSim{sim: newSim(1), harmless: !c.harm}
			s := session.New(b)
			if !c.harm {
				s.ExpectStop(t.Context()) // learns it
			}
			if _, err := s.Look(t.Context(), session.Full); err != nil {
				t.Fatal(err)
			}
			guest := b.cpus[0].guest
			guest.Park(text+0x20, stack, svmtest.Values{"EVENTINJ": c.event})
			b.running = c.running
			begin := time.Now()
			if c.ends != 0 {
				time.AfterFunc(c.ends, func() { guest.Park(text+0x20, stack, nil) })
			}
			if _, err := s.Look(t.Context(), session.Glance); err != nil {
				t.Fatal(err)
			}
			took := time.Since(begin)
			if took < c.atLeast || c.atMost != 0 && took > c.atMost {
				t.Errorf("it took %v, want %v to %v", took, c.atLeast, c.atMost)
			}
		})
	}
}

// TestAwaitQuietKnowsNothing: with no kernel to be found, it asks a few times
// and lets the stop happen.
func TestAwaitQuietKnowsNothing(t *testing.T) {
	b := &peekedSim{sim: newSim(1)}
	b.running = true
	if _, err := session.New(b).Look(t.Context(), session.Full); err != nil {
		t.Fatal(err)
	}
	if b.peeks == 0 || b.peeks > 10 {
		t.Errorf("the CPUs were asked %d times", b.peeks)
	}
}

// TestLookAsideFindsNoKernel: where the registers lead to no kernel, and where the
// machine stands, it is a look like any other.
func TestLookAsideFindsNoKernel(t *testing.T) {
	for name, running := range map[string]bool{"it runs": true, "it stands": false} {
		b := &peekedSim{sim: newSim(1)}
		b.running = running
		s := session.New(b)
		stops := 0
		b.before = func(context.Context) { stops++ }
		tower, err := s.LookAside(t.Context())
		if err != nil || stops != 1 || len(tower.Machines) != 2 || (b.peeks > 0) != running {
			t.Errorf("%s: %v, %d stops, %d peeks", name, err, stops, b.peeks)
		}
	}
}
