// Package session is the debugger: it owns all state that changes. A Session
// looks at a machine; a Debugger, on top of it, runs it. It knows neither
// QEMU nor an architecture: a Backend brings memory and registers, and what is
// special about a processor is data of arch, paging and nested.
package session

import (
	"context"
	"errors"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
)

// Backend is where the first machine of the tower is looked at.
type Backend interface {
	// Arch is the architecture of the machine.
	Arch() *arch.Arch
	// Memory is its RAM. It stays the same object for the backend's life.
	Memory() machine.PhysMemory
	// CPUs is the state of every CPU, hidden registers included, of one moment.
	// A running machine is stopped for it and runs on (about 1 ms).
	CPUs(ctx context.Context) ([]*arch.Registers, error)
	// Running says whether the machine runs.
	Running(ctx context.Context) (bool, error)
}

// Sized is a Backend that knows how many bits its CPUs' physical addresses have; 0 if it
// does not after all.
type Sized interface{ PhysBits() uint }

// Stub controls how the machine runs. Its methods are for one goroutine, except
// Interrupt. CPUs are QEMU's, from 0.
type Stub interface {
	// WritePhys writes physical memory so that the machine's emulator notices.
	WritePhys(ctx context.Context, a mem.Phys, p []byte) error
	// Registers are those of whatever a CPU executes, as the stub has them.
	Registers(ctx context.Context, cpu int) (*arch.Registers, error)
	// WriteRegister sets a register of whatever the CPU executes.
	WriteRegister(ctx context.Context, cpu, reg int, value []byte) error
	// SetTrap and ClearTrap place a trap at a virtual address; it fires in
	// every layer that executes or touches that address.
	SetTrap(ctx context.Context, t Trap) error
	ClearTrap(ctx context.Context, t Trap) error
	// Resume lets CPUs run: all of them, or one for a single instruction, with
	// or without the others.
	Resume(ctx context.Context, how Resumption) error
	// Wait returns when the machine stopped.
	Wait(ctx context.Context) (Event, error)
	// Interrupt makes a running machine stop. Any goroutine may call it.
	Interrupt() error
	// Paused reports whether the machine stands still because it was told to stop, and
	// not at a trap.
	Paused(ctx context.Context) (bool, error)
	// Regain makes a machine stand still that somebody else let run.
	Regain(ctx context.Context) error
	// Close removes the traps that are left and lets go. The machine runs on if run
	// is true.
	Close(ctx context.Context, run bool) error
}

// TrapKind is a kind of trap, in the order of gdb's Z packets.
type TrapKind int

// The kinds of trap.
const (
	TrapSoftware TrapKind = iota
	TrapHardware
	TrapWrite
	TrapRead
	TrapAccess
)

// watches reports whether the trap is for data.
func (k TrapKind) watches() bool { return k >= TrapWrite }

// Trap is a breakpoint or watchpoint of the stub.
type Trap struct {
	Kind TrapKind
	Addr uint64
	Size int
}

// Resumption says which CPUs run, and how.
type Resumption struct {
	Step   int  // CPU that executes one instruction; -1: none, all run freely
	Others bool // the other CPUs run while Step executes its instruction
	// Frozen CPUs stand still whatever the others do.
	Frozen []int
}

// Event is why the machine stopped.
type Event struct {
	CPU    int
	Signal int      // 5 for a trap, 2 for an interrupt
	Watch  TrapKind // if a watchpoint: its kind, else 0
	Addr   uint64   // of the data, if a watchpoint
}

// Sourcer is a backend whose registers are not of QEMU's device state: it says where
// they are from.
type Sourcer interface{ CPUSource() string }

// ErrDead is the class of what only a machine that lives can do: be written, run,
// stop. A file cannot.
var ErrDead = errors.New("a file cannot be written or resumed")

// ErrGone is the class of "there is no machine any more".
var ErrGone = errors.New("the machine is gone")
