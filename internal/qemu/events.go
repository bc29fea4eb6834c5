package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"time"

	"nestdbg/internal/qmp"
)

// Event is something that QEMU says unasked.
type Event struct {
	Name string          // "SHUTDOWN"
	Data json.RawMessage // may be nil
}

// Heard is what there was to hear.
type Heard struct {
	Events []Event
	// Missed says that there may have been others before: QEMU tells only who has its
	// socket, and that was somebody else.
	Missed bool
}

const (
	// heardMax bounds the events that are kept between two calls.
	heardMax = 256
	// yieldTime is how long the socket is left to whoever waits for it.
	yieldTime = 150 * time.Millisecond
)

// Events waits for events, for d at most, and returns those since the last call. QEMU
// tells events to the one who holds its QMP socket, so that is held from now on until
// Unlisten, also between calls; but as soon as somebody else wants the socket it is
// left to him for a while. If he keeps it, the error is a *BusyError. With an error
// there may be events, too: those before it.
func (m *Machine) Events(ctx context.Context, d time.Duration) (Heard, error) {
	return m.monitor.listen(ctx, d)
}

// Unlisten ends what Events began.
func (m *Machine) Unlisten() { m.monitor.unlisten() }

// listen is Machine.Events.
func (m *monitor) listen(ctx context.Context, d time.Duration) (Heard, error) {
	if err := m.take(ctx); err != nil {
		return Heard{}, err
	}
	defer m.release()
	err := m.comeBack(ctx)
	m.listens = true
	if err == nil {
		err = m.await(ctx, time.Now().Add(d))
	}
	out := Heard{Missed: m.missed}
	for _, msg := range m.heard {
		out.Events = append(out.Events, Event{msg.Event, msg.Data})
	}
	m.heard, m.missed = nil, false
	if err == nil && m.wanted() {
		m.giveBack(ctx)
		m.drop()
		m.missed, m.yielded = true, time.Now()
	}
	return out, err
}

// await reads events until there is one and no more, or until end.
func (m *monitor) await(ctx context.Context, end time.Time) error {
	for len(m.heard) < heardMax {
		left := time.Until(end)
		if len(m.heard) > 0 || left <= 0 {
			left = 1 // what is there already
		}
		msg, err := m.receive(ctx, left)
		if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
			break
		}
		if err != nil {
			m.drop()
			return m.explain(ctx, err)
		}
		if msg.Kind == qmp.Event {
			m.hear(msg)
		}
	}
	return nil
}

// comeBack connects, if need be after the time that somebody else was given.
// Preconditions: the caller has the turn.
func (m *monitor) comeBack(ctx context.Context) error {
	if m.conn != nil {
		return nil
	}
	if left := time.Until(m.yielded.Add(yieldTime)); left > 0 {
		select {
		case <-time.After(left):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	err := m.connect(ctx)
	var busy *BusyError
	if m.missed = m.missed || m.listens && err == nil || errors.As(err, &busy); err != nil {
		m.drop()
	}
	return err
}

// hear keeps an event for listen. Preconditions: the caller has the turn.
func (m *monitor) hear(msg qmp.Message) {
	switch {
	case !m.listens:
	case len(m.heard) >= heardMax:
		m.missed = true
	default:
		m.heard = append(m.heard, msg)
	}
}

// drain hears what is left on a connection that has failed: QEMU's last words stand
// behind a command that could not be sent any more. Preconditions: the caller has the
// turn.
func (m *monitor) drain(ctx context.Context) {
	for m.listens && len(m.heard) < heardMax {
		msg, err := m.receive(ctx, idleTime)
		if err != nil {
			return
		}
		if msg.Kind == qmp.Event {
			m.hear(msg)
		}
	}
}

// unlisten lets the socket go as others do.
func (m *monitor) unlisten() {
	<-m.turn
	m.listens, m.heard, m.missed = false, nil, false
	m.release()
}

// wanted reports whether somebody waits for the socket that we hold: QEMU accepts him
// when we leave. What cannot be seen is not wanted.
func (m *monitor) wanted() bool {
	if m.conn == nil {
		return false
	}
	return proc.waiting(m.life.pid, m.addr)
}

// waiting reports whether a connection waits to be accepted by the process at a.
func (p procFS) waiting(pid int, a Address) bool {
	if pid <= 0 {
		return false
	}
	if a.Network == "tcp" {
		sockets, err := p.tcpSockets(pid)
		for _, s := range sockets {
			if err == nil && s.listening && s.waiting > 0 && s.local.String() == a.Addr {
				return true
			}
		}
		return false
	}
	sockets, err := p.unixSockets(pid)
	if err != nil {
		return false
	}
	queues, err := unixWaiting()
	if err != nil {
		return false
	}
	for _, s := range sockets {
		if s.listening && queues[s.inode] > 0 && p.resolve(pid, s.path) == a.Addr {
			return true
		}
	}
	return false
}

// Endings are what QEMU does when its machine is reset and when it shuts down, as its
// command line has it: "reset" or "shutdown", "poweroff" or "pause"; empty if the
// command line is not known.
type Endings struct{ Reboot, Shutdown string }

// Endings is what the command line says.
func (m *Machine) Endings() Endings {
	if len(m.target.Args) == 0 {
		return Endings{}
	}
	reboot, shutdown := parseOptions(m.target.Args[1:]).endings()
	return Endings{reboot, shutdown}
}

// SetEndings makes QEMU do something else from now on (QMP set-action, QEMU 6.0).
// A panic that the guest tells by a device goes with a shutdown.
func (m *Machine) SetEndings(ctx context.Context, e Endings) error {
	args := map[string]string{"reboot": e.Reboot, "shutdown": e.Shutdown}
	return m.monitor.ask(ctx, "set-action", args, nil)
}

// ResetMachine resets the machine; one that is paused stays so.
func (m *Machine) ResetMachine(ctx context.Context) error {
	return m.monitor.ask(ctx, "system_reset", nil, nil)
}

// Quit ends QEMU.
func (m *Machine) Quit(ctx context.Context) error { return m.monitor.ask(ctx, "quit", nil, nil) }
