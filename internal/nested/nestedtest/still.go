package nestedtest

import (
	"context"
	"errors"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
)

// Still is a backend of a session whose machine never changes.
type Still struct {
	World *World
	State []*arch.Registers // device state of each CPU
	Runs  bool              // what it says of itself
}

// NewStill is a machine whose only CPU has this device state.
func NewStill(w *World, r *arch.Registers) Still {
	return Still{World: w, State: []*arch.Registers{r}}
}

// Arch is the machine's architecture.
func (s Still) Arch() *arch.Arch { return arch.X86 }

// Memory is the machine's RAM.
func (s Still) Memory() machine.PhysMemory { return s.World.RAM }

// Running says what Runs says.
func (s Still) Running(context.Context) (bool, error) { return s.Runs, nil }

// CPUs is a copy of State.
func (s Still) CPUs(context.Context) ([]*arch.Registers, error) {
	var out []*arch.Registers
	for _, r := range s.State {
		out = append(out, r.Clone())
	}
	return out, nil
}

// NoRegisters is the part of a stub that tells registers, and has none: what was looked
// at cannot be compared with it.
type NoRegisters struct{}

// Registers fails.
func (NoRegisters) Registers(context.Context, int) (*arch.Registers, error) {
	return nil, errors.New("this stub has no registers")
}
