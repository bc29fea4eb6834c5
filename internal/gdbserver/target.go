package gdbserver

import (
	"context"
	"io"

	"nestdbg/internal/arch"
)

// Target is what gdb sees, one part per capability. A nil part is unsupported
// and not advertised; Core is required. All methods are called from one goroutine
// at a time, except Resumer.Interrupt.
type Target struct {
	Core      Core
	Memory    MemoryWriter
	Registers RegisterWriter
	Resume    Resumer
	Break     Breaker
	Symbols   Symbols
	Monitor   Monitor
	OSData    OSData
}

// Core is what every target can do. pid is a machine (1 is L1), tid a thread as
// Threads numbers them.
type Core interface {
	// Processes returns the machines that exist now, attached or not.
	Processes(ctx context.Context) []int

	// Attach makes the machine inspectable. If the machines run, it stops them all.
	Attach(ctx context.Context, pid int) error
	// Detach forgets the machine and its breakpoints. With the last one gone the
	// machines are left as they were found. It is also called for a machine whose
	// exit was reported.
	Detach(ctx context.Context, pid int) error

	// Threads returns the vCPUs of an attached machine, at least one and before all
	// that is Inert.
	Threads(ctx context.Context, pid int) ([]Thread, error)
	// Registers returns a thread's registers. The result belongs to the caller.
	Registers(ctx context.Context, pid, tid int) (*arch.Registers, error)
	// ReadMemory reads virtual memory as the thread sees it into p and returns how
	// many bytes it read, which may be fewer than asked; an error counts only when
	// that is 0. An address that cannot be read is a mem.ErrFault.
	ReadMemory(ctx context.Context, pid, tid int, p []byte, addr uint64) (int, error)

	// Close tells that the client is gone: detach everything. It may be called
	// with nothing attached, and is called once.
	Close()
}

// MemoryWriter writes virtual memory as a thread sees it: all of p or an error.
type MemoryWriter interface {
	WriteMemory(ctx context.Context, pid, tid int, addr uint64, p []byte) error
}

// RegisterWriter sets a register. reg is its index in arch.Arch.Regs, value has
// its size and is little-endian.
type RegisterWriter interface {
	WriteRegister(ctx context.Context, pid, tid, reg int, value []byte) error
}

// Resumer runs the machines.
type Resumer interface {
	// Resume runs until there is something to report, in any attached machine. See
	// the package comment for what it may report. The first action that covers a
	// thread is the one that counts for it. Threads that no action covers were not
	// resumed by gdb: they run only as far as the others need it, and no faster way
	// to have them stand still may keep a nested machine from running.
	// When several things happen at once, it returns one and keeps the others for the
	// next Resume. A Step that is not done when another thread's stop is returned is
	// asked for again.
	// The machines stand still when it returns, also with an error. When ctx is
	// done it returns at once, in whatever state the machines are.
	Resume(ctx context.Context, actions []Action) (Stop, error)

	// Interrupt asks the Resume that runs, or else the next one, to return soon
	// with the reason Interrupted. It may be called from any goroutine. A request that
	// crosses the end of a Resume does no harm: the engine runs the machines again
	// when it gets an Interrupted that no client asked for.
	Interrupt()
}

// Action says what the threads it covers shall do. A PID or TID of -1 covers all.
type Action struct {
	PID, TID int
	Step     bool // one instruction, instead of running
	Hold     bool // stay frozen: this thread's last stop is not delivered yet
	Signal   int  // gdb's number of a signal to deliver; machines have no use for it
	// RangeFirst and RangeLast, when not both 0, belong to a Step: go on stepping
	// while the PC is in this range, both ends included. Returning after one step is
	// right as well, the engine then steps on.
	RangeFirst, RangeLast uint64
}

// Stop is something worth telling the client.
type Stop struct {
	// PID and TID are the thread it happened to; PID 0 leaves the choice among the
	// resumed threads to the engine. A TID of 0 is the process's first thread.
	PID, TID int
	Signal   int // gdb's number: 5 trap, 2 interrupt, 0 an event that is no trap
	Reason   Reason
	Addr     uint64 // Watch: the address that was accessed
	Access   BreakKind
	Text     string // printed on gdb's console before the stop
	Core     int    // 0-based CPU of QEMU's machine on which it happened, -1 for none
}

// Reason says why a thread stopped.
type Reason int

// The reasons of a Stop.
const (
	None        Reason = iota // a step is done, or a trap that is none of gdb's own
	SwBreak                   // a SoftwareBreak; the PC is its address
	HwBreak                   // a HardwareBreak; the PC is its address
	Watch                     // Access tells which kind, Addr where
	LibraryLoad               // the list of libraries changed; gdb reads it and goes on
	Interrupted               // by Resumer.Interrupt; Signal does not count
	Exited                    // the machine PID ended; Signal is its exit status
	Killed                    // the machine PID is gone; Signal says by which, 0 means SIGKILL
)

// Thread is one vCPU, or Inert. Its ID is positive; Name and Extra are shown by "info
// threads"; Core is the 0-based CPU of QEMU's machine it is on, -1 for none.
type Thread struct {
	ID    int
	Name  string
	Extra string
	Core  int

	// Inert: it is no vCPU, but something with registers and memory that does not run
	// now, such as a task that sleeps. It cannot be resumed, and no stop is about it.
	Inert bool
}

// BreakKind is a kind of breakpoint; the values are the protocol's, Z0 to Z4.
type BreakKind int

// The kinds of breakpoint.
const (
	SoftwareBreak BreakKind = iota
	HardwareBreak
	WriteWatch
	ReadWatch
	AccessWatch
)

// Breaker sets breakpoints of one machine. size is the length of a watched
// range, or the length of the breakpoint instruction that gdb has in mind. The
// engine never sets one twice nor clears one that is not set. An error that wraps
// ErrUnsupported makes gdb give up on this kind for the session.
type Breaker interface {
	Set(ctx context.Context, pid int, kind BreakKind, addr uint64, size int) error
	Clear(ctx context.Context, pid int, kind BreakKind, addr uint64, size int) error
}

// Symbols tells gdb which files describe a machine.
type Symbols interface {
	// ExecFile is the path of the kernel's ELF file on this host, "" for none.
	ExecFile(pid int) string
	// TextSegment is the run-time address of that file's first PT_LOAD.
	TextSegment(pid int) (uint64, bool)
	// Slide is run-time address minus linked address, for clients that want that.
	Slide(pid int) (uint64, bool)
	// Libraries are the loaded modules.
	Libraries(pid int) []Library
}

// Library is a loaded file. Of a relocatable one Sections has the address of each
// section with SHF_ALLOC, in the file's order, none left out; of one with PT_LOADs
// Segments has the address of each of these. No address may be 0: gdb 18 takes a library
// at 0 for one that it has (seen; 13 and 16 do not).
//
// A file that two machines loaded must have a Path of its own for each; a symbolic
// link is enough. gdb notes where it put the sections of a relocatable file in what
// it keeps of the file itself, and adds the second machine's addresses to the
// first's (gdb 13.1, symfile.c:default_symfile_offsets; seen).
type Library struct {
	Path     string
	Sections []uint64
	Segments []uint64
}

// Monitor runs what a person types behind "monitor". pid and tid are the current
// thread, 0 when none is attached. What goes to out is printed by gdb.
type Monitor interface {
	Monitor(ctx context.Context, pid, tid int, command string, out io.Writer) error
}

// OSData has the tables of "info os".
type OSData interface {
	Tables(ctx context.Context) ([]OSTable, error)
}

// OSTable is one of them: Name is what the person types, every row has a cell
// for each column.
type OSTable struct {
	Name, Title, Description string
	Columns                  []string
	Rows                     [][]string
}
