package session

import (
	"context"
	"runtime"
	"time"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
	"nestdbg/internal/nested"
)

// Stopping a machine that runs is not harmless everywhere. QEMU's emulation of
// SVM keeps the number of the event that VMRUN injected until the guest's next
// exit. If a request to stop comes before that, it takes the request for the end
// of the event's exception, delivers the event a second time and forgets the
// request (QEMU 7.2 target/i386/tcg/sysemu/svm_helper.c:helper_vmrun,
// accel/tcg/cpu-exec.c:cpu_handle_interrupt, cpu_handle_exception). A guest that
// was at its first instructions then, with the user's GS or with a lock, is lost,
// and one that never leaves its CPU keeps QEMU waiting for ever.
//
// So the moment is chosen: just after a delivery, or when there is none for
// longer than a guest's timer takes. What comes between that and QEMU's thread is
// a fraction of a millisecond, and nobody can close it from outside.

// Peeker is a Backend whose machine should be stopped at a good moment only.
type Peeker interface {
	// Peek is what can be known of the CPUs of a running machine without stopping
	// it: not of one moment, and at least the registers that lead to page tables.
	// None are returned where a stop is harmless.
	Peek(ctx context.Context) ([]*arch.Registers, error)
	// BeforeStop sets what is called right before something is done that stops a
	// machine that runs. What takes longer, such as a connection, is done by then.
	BeforeStop(f func(context.Context))
}

// How long a good moment is waited for.
const (
	// lull is how long nothing has to be delivered: a little more than a tick of a
	// kernel with HZ=250, which is what distributions use.
	lull = 5 * time.Millisecond
	// quietLimit bounds the wait for the end of a delivery. A guest that computes
	// has a tick in that time, and with it an exit.
	quietLimit = 50 * time.Millisecond
	// peeks bounds how often the CPUs are asked until one is outside its guest,
	// and peekPause is the time between.
	peeks     = 4
	peekPause = 2 * time.Millisecond
)

// ExpectStop says that the next stop is that of a machine that runs: the backend
// waits for a good moment before it. What is needed for that is found out now.
func (s *Session) ExpectStop(ctx context.Context) { s.expected.Store(s.watched(ctx)) }

// awaitExpected is what the backend calls before a stop.
func (s *Session) awaitExpected(ctx context.Context) {
	if d := s.expected.Swap(nil); d != nil {
		awaitQuiet(ctx, d)
	}
}

// awaitQuiet waits until the machine can be stopped, as far as that can be known,
// for lull in most cases and quietLimit at most. It looks without a pause: a
// delivery takes some microseconds, and its end is the best moment there is.
func awaitQuiet(ctx context.Context, d *nested.Deliveries) {
	begin := time.Now()
	for pending := false; ; runtime.Gosched() {
		now := d.Pending()
		if pending && !now {
			return
		}
		pending = pending || now
		since := time.Since(begin)
		if !pending && since > lull || since > quietLimit || ctx.Err() != nil {
			return
		}
	}
}

// watched are the deliveries to look at; nil where there are none, where a stop
// is harmless, and where nothing can be known without a stop.
func (s *Session) watched(ctx context.Context) *nested.Deliveries {
	p, ok := s.backend.(Peeker)
	if !ok {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := 0; s.deliveries == nil && !s.harmless && i < peeks; i++ {
		if i > 0 {
			time.Sleep(peekPause)
		}
		cpus, err := p.Peek(ctx)
		s.harmless = err == nil && len(cpus) == 0
		if err != nil {
			return nil // the stop itself will meet it too, and report it
		}
		s.deliveries = s.peeked(cpus)
	}
	if s.harmless {
		return nil
	}
	return s.deliveries
}

// peeked finds the guests of the machine's kernel from registers that are not of one
// moment. Preconditions: s.mu is held.
func (s *Session) peeked(cpus []*arch.Registers) *nested.Deliveries {
	root := s.root(cpus)
	k := s.peekedKernel(root)
	if k == nil {
		return nil
	}
	d, err := nested.ListedDeliveries(root, k)
	if err != nil {
		return nil
	}
	return d
}

// root is QEMU's machine with these registers.
func (s *Session) root(cpus []*arch.Registers) *machine.Machine {
	root := &machine.Machine{Name: "l1", Level: 1, Arch: s.backend.Arch(), Phys: s.backend.Memory()}
	if b, ok := s.backend.(Sized); ok {
		root.PhysBits = b.PhysBits()
	}
	source := "device state"
	if b, ok := s.backend.(Sourcer); ok {
		source = b.CPUSource()
	}
	for i, r := range cpus {
		c := &machine.CPU{Index: i, On: i, Regs: r, Source: source}
		if halted, _ := r.Get("halted"); halted != 0 {
			c.State = machine.Halted
		}
		root.CPUs = append(root.CPUs, c)
	}
	return root
}
