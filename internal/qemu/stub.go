package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"nestdbg/internal/mem"
	"nestdbg/internal/rsp"
)

// Stub is a connection to QEMU's gdbstub: it runs and stops the machine, and
// writes. It is for one goroutine, only Interrupt may be called at any time. While
// it is open, no gdb can use the stub; the machine stands still unless Resume was
// called. It never kills QEMU.
//
// CPUs are numbered from 0. Breakpoints, steps and registers are of whatever layer
// a CPU is in.
type Stub struct {
	c        stubConn
	machine  *Machine
	cleanup  func(context.Context) error // closes a stub that we opened
	patience time.Duration               // for a stop at the end; 0: stopPatience

	threads []rsp.ThreadID // by CPU
	current int            // the CPU that g, p and P are about, -1 if not told yet
	regs    []stubReg      // of the g packet, in its order

	wasRunning bool // when we connected
	running    bool // Resume was called and Wait did not yet say that it stopped
	runnable   bool // it is certain that the machine has not ended; see checkRunnable
	// interrupted is set by Interrupt, and cleared when the machine is resumed.
	interrupted atomic.Bool
	stepMask    uint64 // now
	stepFound   uint64 // when we connected
}

// handshake brings the connection into a known state, whatever the client before us
// left: replies in step, no breakpoints, virtual addresses.
func (s *Stub) handshake(ctx context.Context) error {
	reply, err := s.c.ask(ctx, "qSupported:multiprocess+")
	if err != nil {
		return err
	}
	for _, want := range []string{"multiprocess+", "vContSupported+"} {
		if !strings.Contains(string(reply), want) {
			return fmt.Errorf("%w: %s lacks %s; it says %.200q", ErrCorrupt, s.c.what, want, reply)
		}
	}
	if err := s.c.command(ctx, "Qqemu.PhyMemMode:0"); err != nil {
		return err
	}
	if err := s.readThreads(ctx); err != nil {
		return err
	}
	if err := s.clearBreaks(ctx); err != nil {
		return err
	}
	if s.stepMask, err = s.askStepMask(ctx); err != nil {
		return err
	}
	s.stepFound = s.stepMask
	s.current = -1
	return s.readLayout(ctx)
}

// clearBreaks removes the breakpoints and watchpoints of all clients before us, which
// QEMU keeps when they die. "?" does that, but only for the CPU of Hc, although
// setting one sets it for every CPU (QEMU 7.2 gdbstub/gdbstub.c:handle_target_halt,
// accel/tcg/tcg-accel-ops.c:tcg_remove_all_breakpoints).
func (s *Stub) clearBreaks(ctx context.Context) error {
	for i := len(s.threads) - 1; i >= 0; i-- { // Hc ends at the first, where it begins
		if err := s.c.command(ctx, "Hc%s", s.threads[i]); err != nil {
			return err
		}
		if err := s.c.write(rsp.AppendFrame(nil, []byte("?"))); err != nil {
			return s.c.explain(ctx, err)
		}
		// The reply of the next command means that this one is done. The reply to "?"
		// looks like the stop reply that connecting causes; ask drops whichever is
		// left over.
		if _, err := s.c.ask(ctx, "qC"); err != nil {
			return err
		}
	}
	return nil
}

// readThreads learns the ids of the CPUs. Their numbers are those of the CPUs plus
// one (QEMU 7.2 gdbstub.c:cpu_gdb_index).
func (s *Stub) readThreads(ctx context.Context) error {
	const maxCPUs = 4096
	reply, err := s.c.ask(ctx, "qfThreadInfo")
	for err == nil && len(reply) > 0 && reply[0] == 'm' {
		for id := range strings.SplitSeq(string(reply[1:]), ",") {
			t, err := rsp.ParseThreadID(id, true)
			if err != nil || t.PID <= 0 || t.TID != len(s.threads)+1 || t.TID > maxCPUs {
				return fmt.Errorf("%w: %s: thread %q follows %d others", ErrCorrupt, s.c.what, id, len(s.threads))
			}
			s.threads = append(s.threads, t)
		}
		reply, err = s.c.ask(ctx, "qsThreadInfo")
	}
	if err != nil {
		return err
	}
	if string(reply) != "l" || len(s.threads) == 0 {
		return fmt.Errorf("%w: %s: list of threads ends with %.40q", ErrCorrupt, s.c.what, reply)
	}
	return nil
}

// CPUs is the number of CPUs that the stub shows.
func (s *Stub) CPUs() int { return len(s.threads) }

// WasRunning reports whether the machine ran when the stub was opened.
func (s *Stub) WasRunning() bool { return s.wasRunning }

// The bits of a step mask (QEMU docs/system/gdb.rst, "Advanced debugging options").
const (
	StepEnable  = 1 // always set
	StepNoIRQ   = 2 // no interrupts while stepping
	StepNoTimer = 4 // virtual time stands still while stepping; TCG only
)

// SetStepMask says what is held back while a CPU steps. What the machine was found
// with comes back at the end.
func (s *Stub) SetStepMask(ctx context.Context, mask uint64) error {
	if err := s.c.command(ctx, "Qqemu.sstep=%x", mask); err != nil {
		return fmt.Errorf("set step mask %#x: %w", mask, err)
	}
	s.stepMask = mask
	return nil
}

// StepMask is what is held back now while a CPU steps.
func (s *Stub) StepMask() uint64 { return s.stepMask }

// askStepMask parses the reply to qqemu.sstep, "0x7".
func (s *Stub) askStepMask(ctx context.Context) (uint64, error) {
	reply, err := s.c.ask(ctx, "qqemu.sstep")
	if err != nil {
		return 0, err
	}
	mask, err := rsp.ParseHex(strings.TrimPrefix(string(reply), "0x"))
	if err != nil {
		return 0, fmt.Errorf("%w: %s: step mask %.40q", ErrCorrupt, s.c.what, reply)
	}
	return mask, nil
}

// PhysRanges implements mem.PhysRanger: what ReadPhys and WritePhys accept.
func (s *Stub) PhysRanges() []mem.Range { return s.machine.ram.PhysRanges() }

// Close lets go of the stub and leaves the machine as it was found, running or
// paused.
func (s *Stub) Close(ctx context.Context) error {
	if s.wasRunning {
		return s.Detach(ctx)
	}
	return s.CloseStopped(ctx)
}

// Detach removes all breakpoints, lets the machine run and lets go of the stub.
func (s *Stub) Detach(ctx context.Context) error { return s.leave(ctx, true) }

// CloseStopped removes all breakpoints and lets go of the stub; the machine stands
// still.
func (s *Stub) CloseStopped(ctx context.Context) error { return s.leave(ctx, false) }

// leave lets go of the stub. One that was closed under our feet leaves QEMU with
// everything that was set through it, so another is opened to take that back.
func (s *Stub) leave(ctx context.Context, run bool) error {
	err := s.finish(ctx, s.letGo(ctx, run))
	if err == nil || errors.Is(err, ErrGone) || errors.Is(err, ErrHung) || ctx.Err() != nil {
		return err
	}
	again, openErr := s.machine.OpenStub(ctx)
	if openErr != nil {
		return errors.Join(err, openErr)
	}
	again.stepFound = s.stepFound
	return again.finish(ctx, again.letGo(ctx, run))
}

func (s *Stub) letGo(ctx context.Context, run bool) error {
	if err := s.tidy(ctx); err != nil {
		return err
	}
	if !run {
		return s.clearBreaks(ctx)
	}
	// With the reply QEMU already runs; the ack that answers it does not stop it.
	return s.c.command(ctx, "D;%x", s.threads[0].PID)
}

// stopPatience bounds the wait for a stop that nobody but us waits for. QEMU's
// emulation can lose a request to stop, and all that comes after it.
const stopPatience = 10 * time.Second

// tidy stops the machine and takes back what outlives the connection.
func (s *Stub) tidy(ctx context.Context) error {
	if s.running {
		if err := s.Interrupt(); err != nil {
			return err
		}
		patience := cmp.Or(s.patience, stopPatience)
		bounded, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		if _, err := s.Wait(bounded); bounded.Err() != nil && ctx.Err() == nil {
			return fmt.Errorf("%w: told to stop its machine, it did not within %v; "+
				"its breakpoints stay until it is restarted", ErrHung, patience)
		} else if err != nil {
			return err
		}
	}
	if s.stepMask != s.stepFound {
		return s.SetStepMask(ctx, s.stepFound)
	}
	return nil
}

// finish closes the connection, and the stub if it is ours.
func (s *Stub) finish(ctx context.Context, err error) error {
	s.c.conn.Close()
	if s.cleanup != nil {
		if cerr := s.cleanup(ctx); err == nil {
			err = cerr
		}
	}
	return err
}
