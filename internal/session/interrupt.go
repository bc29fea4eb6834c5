package session

import (
	"context"
	"sync"
	"time"
)

// interrupt is a request to stop the machine. Any goroutine may use it.
type interrupt struct {
	mu    sync.Mutex
	asked bool // guarded by mu
}

// ask makes the request; send, to the stub, may follow later.
func (i *interrupt) ask() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked = true
}

// send tells the stub, if the request still stands. One that was answered meanwhile
// never reaches a machine that was resumed after it: its stop would be nobody's.
func (i *interrupt) send(stub Stub) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.asked {
		return nil
	}
	return stub.Interrupt()
}

// isAsked reports whether there is a request.
func (i *interrupt) isAsked() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked
}

// take ends the request: the person gets a stop.
func (i *interrupt) take() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked = false
}

// Interrupt asks a running machine to stop. Any goroutine may call it.
func (d *Debugger) Interrupt() error {
	d.interrupt.ask()
	d.ExpectStop(context.Background())
	d.awaitExpected(context.Background())
	return d.interrupt.send(d.stub)
}

// Somebody else may stop the machine, over QMP: a person, libvirt, "snapshot save"
// while it copies memory. To run it would undo that. They let it run again without a
// word too, and QEMU's stub says nothing of either to one who does not wait for a stop.
// So a continue goes on meanwhile, and the machine is taken back when it runs again.

// outsidePause is how often a machine that somebody else stopped is looked at: traps
// that are hit within it after they let it run are hit once more, but for watchpoints.
const outsidePause = 50 * time.Millisecond

// outsideNote is what gdb's person reads of that.
const outsideNote = "[nestdbg: somebody else stopped the machine, over QMP; it goes on when they let it. " +
	"Ctrl-C ends the wait; they may let it run all the same]\n"

// awaitOutside waits until somebody else lets the machine run again, or the person
// interrupts. Either way the machine stands still then, and is ours to run.
func (d *Debugger) awaitOutside(ctx context.Context) (interrupted bool, err error) {
	for !interrupted {
		paused, err := d.stub.Paused(ctx)
		if err != nil {
			return false, err
		}
		if !paused {
			break
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(outsidePause):
		}
		interrupted = d.interrupt.isAsked()
	}
	if !interrupted { // it runs, most likely
		d.ExpectStop(ctx)
		d.awaitExpected(ctx)
	}
	if err := d.stub.Regain(ctx); err != nil {
		return false, err
	}
	d.outside = nil
	return interrupted, nil
}
