package session

import "testing"

// countingStub counts interrupts; nothing else is asked of it.
type countingStub struct {
	Stub
	interrupts int
}

func (s *countingStub) Interrupt() error {
	s.interrupts++
	return nil
}

// A request that was answered by another stop before it was sent is not sent to the
// next run, where its stop would look like somebody else's.
func TestLateInterrupt(t *testing.T) {
	var i interrupt
	s := &countingStub{}
	for _, c := range []struct {
		do   func()
		want int
	}{{i.ask, 1}, {func() {}, 2}, {i.take, 2}, {i.ask, 3}} {
		c.do()
		if err := i.send(s); err != nil || s.interrupts != c.want {
			t.Errorf("%d interrupts, %v, want %d", s.interrupts, err, c.want)
		}
	}
}
