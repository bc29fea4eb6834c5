package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"nestdbg/internal/rsp"
)

// Action is what one CPU does when the machine resumes.
type Action struct {
	CPU  int
	Step bool // one instruction; else it runs
}

// BreakKind is the number of a Z packet.
type BreakKind int

// The kinds of breakpoint (GDB manual, "Packets", Z). All match virtual addresses,
// in whatever address space and layer.
const (
	BreakSoftware BreakKind = iota
	BreakHardware
	WatchWrite
	WatchRead
	WatchAccess
)

// The signals of stops after which a machine can run on (QEMU 7.2
// gdbstub.c:gdb_vm_state_change; the others are for states of QEMU).
const (
	signalInterrupt = 2
	signalTrap      = 5
)

// NoWatch is the Watch of a Stop that no watchpoint caused.
const NoWatch BreakKind = -1

// Stop is why the machine stopped.
type Stop struct {
	CPU    int
	Signal int       // 5 for a trap, 2 for an interrupt or a "stop" over QMP, 3 for a shutdown, 6 for QEMU's internal error
	Watch  BreakKind // the kind of watchpoint that was hit, or NoWatch
	Addr   uint64    // the address it was hit at
}

// errRuns is our bug: a question to a machine that Resume made run.
var errRuns = errors.New("the machine runs; interrupt it and wait for the stop")

// SetBreak places a breakpoint or watchpoint of size bytes. Setting one twice needs
// clearing it twice.
func (s *Stub) SetBreak(ctx context.Context, kind BreakKind, addr uint64, size int) error {
	return s.breakpoint(ctx, 'Z', kind, addr, size)
}

// ClearBreak removes what SetBreak placed with the same arguments.
func (s *Stub) ClearBreak(ctx context.Context, kind BreakKind, addr uint64, size int) error {
	return s.breakpoint(ctx, 'z', kind, addr, size)
}

func (s *Stub) breakpoint(ctx context.Context, packet byte, kind BreakKind, addr uint64, size int) error {
	if s.running {
		return errRuns
	}
	return s.c.command(ctx, "%c%d,%x,%x", packet, kind, addr, size)
}

// Resume makes the CPUs of the actions run or step; the others stand still. It
// returns at once, Wait tells how it ended. A device state that is asked for before
// that lets the CPUs run that stand still now: QEMU then resumes all of them.
func (s *Stub) Resume(ctx context.Context, actions []Action) error {
	if s.running {
		return errRuns
	}
	packet, err := s.vCont(actions)
	if err != nil {
		return err
	}
	if err := s.checkRunnable(ctx); err != nil {
		return err
	}
	s.interrupted.Store(false)
	if err := s.c.write(rsp.AppendFrame(nil, packet)); err != nil {
		return s.c.explain(ctx, err)
	}
	s.running = true
	return nil
}

// checkRunnable refuses what QEMU would accept in silence and not do: a machine that
// has ended runs only after a reset (QEMU 7.2 gdbstub.c:gdb_continue_partial,
// softmmu/runstate.c:runstate_needs_reset), and meanwhile interrupts do nothing either.
// After a trap or an interrupt it has not ended.
func (s *Stub) checkRunnable(ctx context.Context) error {
	if s.runnable {
		return nil
	}
	running, state, err := s.machine.Status(ctx)
	switch {
	case err != nil:
		return err
	case state == "shutdown" || state == "internal-error":
		return fmt.Errorf("the machine has ended (QEMU's state %q) and cannot run; "+
			"it can after a reset: system_reset in QEMU's monitor, or over QMP", state)
	case state == "suspended":
		return errors.New("the machine sleeps (ACPI S3) and cannot run; system_wakeup in QEMU's monitor, or over QMP, wakes it")
	case running:
		if err := s.Regain(ctx); err != nil {
			return err
		}
	}
	s.runnable = true
	return nil
}

// Paused reports whether the machine stands because it was told to, over QMP or by
// Interrupt. At a trap it is not paused.
func (s *Stub) Paused(ctx context.Context) (bool, error) {
	_, state, err := s.machine.Status(ctx)
	return state == "paused", err
}

// Regain makes a machine stand still that somebody made run over QMP. QEMU's stub does
// not tell of such a machine's stops (QEMU 8.1 gdbstub: allow_stop_reply), or tells
// when nobody waits for it, so a trap that was hit meanwhile is not told of; it is hit
// again by who goes on from there. The interrupt is read before the question, which so
// is one to a machine that stands.
func (s *Stub) Regain(ctx context.Context) error {
	if s.running {
		return errRuns
	}
	s.runnable = false
	if err := s.Interrupt(); err != nil {
		return err
	}
	_, err := s.c.ask(ctx, "qC")
	return err
}

// Continue makes all CPUs run.
func (s *Stub) Continue(ctx context.Context) error {
	actions := make([]Action, len(s.threads))
	for i := range actions {
		actions[i].CPU = i
	}
	return s.Resume(ctx, actions)
}

// StepOne makes one CPU execute one instruction while the others stand still, and
// waits for it.
func (s *Stub) StepOne(ctx context.Context, cpu int) (Stop, error) {
	if err := s.Resume(ctx, []Action{{CPU: cpu, Step: true}}); err != nil {
		return Stop{}, err
	}
	return s.Wait(ctx)
}

// vCont builds the packet (GDB manual, "Packets", vCont). The first action that
// covers a thread counts, so "c" alone at the end is for all that are left.
func (s *Stub) vCont(actions []Action) ([]byte, error) {
	seen := make([]bool, len(s.threads))
	for _, a := range actions {
		if a.CPU < 0 || a.CPU >= len(seen) || seen[a.CPU] {
			return nil, fmt.Errorf("resume: no CPU %d, or it is named twice", a.CPU)
		}
		seen[a.CPU] = true
	}
	if len(actions) == 0 {
		return nil, errors.New("resume: no CPU would run")
	}
	packet := []byte("vCont")
	all := len(actions) == len(seen)
	for _, a := range actions {
		switch {
		case a.Step:
			packet = s.threads[a.CPU].Append(append(packet, ";s:"...), true)
		case !all:
			packet = s.threads[a.CPU].Append(append(packet, ";c:"...), true)
		}
	}
	if all && slices.ContainsFunc(actions, func(a Action) bool { return !a.Step }) {
		packet = append(packet, ";c"...)
	}
	return packet, nil
}

// Wait returns when the machine has stopped. If ctx ends before, the machine goes
// on running and Wait may be called again.
func (s *Stub) Wait(ctx context.Context) (Stop, error) {
	if !s.running {
		return Stop{}, errors.New("wait for a stop: the machine stands still")
	}
	for {
		packet, err := s.c.read(ctx, time.Now().Add(stopSilence))
		if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
			if s.standsUntold(ctx) {
				return Stop{Signal: signalInterrupt, Watch: NoWatch}, nil
			}
			continue
		}
		if err != nil {
			return Stop{}, s.c.explain(ctx, err)
		}
		if len(packet) == 0 || packet[0] == 'O' {
			continue
		}
		stop, err := s.parseStop(string(packet))
		s.running, s.runnable = false, stop.Signal == signalInterrupt || stop.Signal == signalTrap
		return stop, err
	}
}

// stopSilence is how long after an interrupt a stop may take before QEMU is asked.
const stopSilence = 2 * time.Second

// standsUntold reports whether a machine that was interrupted stands already, and QEMU
// has not told: one that goes to sleep stops so, and does not notice an interrupt then
// (QEMU 7.2 softmmu/runstate.c:qemu_system_suspend).
func (s *Stub) standsUntold(ctx context.Context) bool {
	if !s.interrupted.Load() {
		return false
	}
	running, _, err := s.machine.Status(ctx)
	if err != nil || running {
		return false // it may be told yet, and who cannot be asked now can be later
	}
	s.running, s.runnable = false, false
	return true
}

// parseStop parses a stop reply, "T05thread:p01.01;watch:1000;".
func (s *Stub) parseStop(packet string) (Stop, error) {
	bad := func() (Stop, error) {
		return Stop{}, fmt.Errorf("%w: %s: stop reply %.100q", ErrCorrupt, s.c.what, packet)
	}
	if packet[0] == 'W' || packet[0] == 'X' {
		return Stop{}, fmt.Errorf("%w: it exited (%.20q)", ErrGone, packet)
	}
	if len(packet) < 3 || packet[0] != 'T' && packet[0] != 'S' {
		return bad()
	}
	signal, err := rsp.ParseHex(packet[1:3])
	if err != nil {
		return bad()
	}
	stop := Stop{Signal: int(signal), Watch: NoWatch}
	for pair := range strings.SplitSeq(strings.TrimSuffix(packet[3:], ";"), ";") {
		key, value, _ := strings.Cut(pair, ":")
		switch key {
		case "thread":
			id, err := rsp.ParseThreadID(value, true)
			if err != nil || id.TID < 1 || id.TID > len(s.threads) {
				return bad()
			}
			stop.CPU = id.TID - 1
		case "watch", "rwatch", "awatch":
			kinds := map[string]BreakKind{"watch": WatchWrite, "rwatch": WatchRead, "awatch": WatchAccess}
			stop.Watch = kinds[key]
			if stop.Addr, err = rsp.ParseHex(value); err != nil {
				return bad()
			}
		}
	}
	return stop, nil
}

// Interrupt makes a running machine stop; Wait then says so. Any goroutine may call
// it at any time. A machine that stands still does not notice.
func (s *Stub) Interrupt() error {
	s.interrupted.Store(true)
	err := s.c.write([]byte{rsp.InterruptByte})
	if err != nil {
		return s.c.explain(context.Background(), err)
	}
	return nil
}
