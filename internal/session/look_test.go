package session_test

import (
	"sync/atomic"
	"testing"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
	"nestdbg/internal/session"
)

// counted is memory that counts how many pages were looked at.
type counted struct {
	*memtest.Memory
	looks atomic.Int64
}

func (c *counted) SlicePhys(a mem.Phys, max int) []byte {
	c.looks.Add(1)
	return c.Memory.SlicePhys(a, max)
}

type countedSim struct {
	*sim
	memory *counted
}

func (c countedSim) Memory() machine.PhysMemory { return c.memory }

// A machine whose kernel is not known is searched once, not again at each
// instruction of a step.
func TestNoKernelIsSearchedOnce(t *testing.T) {
	s := newSim(1)
	b := countedSim{s, &counted{Memory: s.w.RAM}}
	one := session.New(b)
	cost := func(effort session.Effort) int64 {
		before := b.memory.looks.Load()
		tower, err := one.Look(t.Context(), effort)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range tower.Machines {
			if _, err := one.VirtMemory(m, m.CPUs[0]); err != nil {
				t.Error(err)
			}
			if _, err := one.Kernel(m); err == nil {
				t.Error("there is a kernel")
			}
		}
		return b.memory.looks.Load() - before
	}
	if full, glance := cost(session.Full), cost(session.Glance); full < 1000 || glance > 200 {
		t.Errorf("a full look reads %d times, a glance %d times", full, glance)
	}
	if again := cost(session.Full); again < 1000 {
		t.Errorf("the next full look reads %d times only: it would not see a machine boot", again)
	}
}

type sizedSim struct{ *sim }

func (sizedSim) PhysBits() uint { return 40 }

// How many address bits the processor has holds at every level.
func TestPhysBits(t *testing.T) {
	tower, err := session.New(sizedSim{newSim(1)}).Look(t.Context(), session.Full)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range tower.Machines {
		if m.PhysBits != 40 {
			t.Errorf("%s: %d bits", m.Name, m.PhysBits)
		}
	}
	if len(tower.Machines) != 2 {
		t.Errorf("%d machines", len(tower.Machines))
	}
}
