package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nestdbg/internal/qmp"
)

// How long things may take. QEMU's main loop answers in well under a millisecond
// unless the machine is badly overloaded.
const (
	greetingTime = 2 * time.Second  // then ask who holds the socket
	stuckTime    = 8 * time.Second  // and wait this much more if nobody does
	answerTime   = 20 * time.Second // for one command
	idleTime     = 50 * time.Millisecond
	dyingTime    = 500 * time.Millisecond // between closed sockets and the end
)

// monitor is the client of a QMP socket. It connects when there is something to
// ask and lets go soon after, since QEMU serves one client at a time. It is safe
// for concurrent use; commands of several goroutines follow each other.
type monitor struct {
	addr Address
	life life

	turn chan struct{} // holds one token; who took it owns the fields below
	conn net.Conn      // nil if not connected
	in   qmp.Parser
	id   uint64
	vers qmp.Version
	idle *time.Timer
	held *lease // what this connection has set up

	listens bool          // it stays connected, for the events
	heard   []qmp.Message // events that came and were not asked for yet
	missed  bool          // there were more, or a time when somebody else had the socket
	yielded time.Time     // when the socket was last left to somebody else

	mu     sync.Mutex
	closed bool // guarded by mu
}

func newMonitor(a Address, l life) *monitor {
	m := &monitor{addr: a, life: l, turn: make(chan struct{}, 1)}
	m.turn <- struct{}{}
	return m
}

// command is one question. fds travel with it and stay the caller's.
type command struct {
	name string
	args any
	fds  []int
	// before is called when everything is ready for the command to be sent; or nil.
	before func(context.Context)
}

// ask executes one command and stores its result, which may be nil to drop it.
func (m *monitor) ask(ctx context.Context, name string, args, result any) error {
	replies, err := m.exchange(ctx, command{name: name, args: args})
	if err != nil {
		return err
	}
	return replies[0].decode(name, result)
}

// reply is the answer to one command.
type reply struct {
	value json.RawMessage
	err   *qmp.Error
}

// decode stores the result, or returns QEMU's refusal.
func (r reply) decode(name string, result any) error {
	if r.err != nil {
		return fmt.Errorf("QMP %s: %w", name, r.err)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(r.value, result); err != nil {
		return fmt.Errorf("%w: QMP %s: %v", ErrCorrupt, name, err)
	}
	return nil
}

// lease is something that commands need and that lasts for a connection: take is
// executed once before them, giveBack when the socket is let go.
type lease struct{ take, giveBack command }

// exchange sends the commands in one go and returns their replies. A later one is
// executed even if an earlier one is refused. When ctx ends first, QEMU may still
// execute what it was sent.
func (m *monitor) exchange(ctx context.Context, commands ...command) ([]reply, error) {
	return m.exchangeWith(ctx, nil, commands...)
}

// exchangeWith is exchange for commands that need a lease. If QEMU refuses that, its
// *qmp.Error is returned.
func (m *monitor) exchangeWith(ctx context.Context, l *lease, commands ...command) ([]reply, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime+greetingTime+stuckTime)
	defer cancel()
	if err := m.take(ctx); err != nil {
		return nil, err
	}
	defer m.release()
	if m.conn == nil {
		if err := m.connect(ctx); err != nil {
			m.drop()
			return nil, err
		}
	}
	takes := l != nil && m.held != l
	if takes {
		m.giveBack(ctx)
		commands = append([]command{l.take}, commands...)
	}
	replies, err := m.converse(ctx, commands)
	if err != nil {
		m.drain(ctx)
		m.drop()
		return nil, m.explain(ctx, err)
	}
	if takes {
		if err := replies[0].decode(l.take.name, nil); err != nil {
			return nil, err
		}
		m.held, replies = l, replies[1:]
	}
	return replies, nil
}

// giveBack ends the lease, if there is one. QEMU before 9.1 does it by itself when
// the connection ends, so a failure is of no account.
func (m *monitor) giveBack(ctx context.Context) {
	if m.held == nil || m.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, greetingTime)
	defer cancel()
	back := m.held.giveBack
	m.held = nil
	if _, err := m.converse(ctx, []command{back}); err != nil {
		m.drop()
	}
}

// take gets the turn to use the socket.
func (m *monitor) take(ctx context.Context) error {
	select {
	case <-m.turn:
	case <-ctx.Done():
		return fmt.Errorf("wait for the QMP socket: %w", ctx.Err())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		m.turn <- struct{}{}
		return fmt.Errorf("ask QEMU %d: %w", m.life.pid, net.ErrClosed)
	}
	if m.idle != nil {
		m.idle.Stop()
		m.idle = nil
	}
	return nil
}

// release gives the turn back and arranges for the socket to be let go.
func (m *monitor) release() {
	if m.conn != nil && !m.listens {
		m.idle = time.AfterFunc(idleTime, m.letGo)
	}
	m.turn <- struct{}{}
}

// letGo closes the connection unless somebody uses it right now.
func (m *monitor) letGo() {
	select {
	case <-m.turn:
		m.giveBack(context.Background())
		m.drop()
		m.turn <- struct{}{}
	default:
	}
}

// close ends the use of the monitor; it waits for a command that is under way.
func (m *monitor) close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	<-m.turn
	m.giveBack(context.Background())
	m.drop()
	m.turn <- struct{}{}
}

// drop closes the connection. Preconditions: the caller has the turn.
func (m *monitor) drop() {
	if m.idle != nil {
		m.idle.Stop()
		m.idle = nil
	}
	if m.conn != nil {
		m.conn.Close()
	}
	m.conn, m.in, m.held = nil, qmp.Parser{}, nil
}

// maxEarly bounds the messages that are passed over before the greeting.
const maxEarly = 64

// receiveGreeting receives the greeting. QEMU 7.2 can send an event to a client whose
// greeting is still to come: until it has noticed the new connection, the monitor is in
// the mode of the last one. 10.0 can send it the reply to a command of the last client,
// who gave up (seen).
func (m *monitor) receiveGreeting(ctx context.Context, patience time.Duration) (qmp.Message, error) {
	for range maxEarly {
		first, err := m.receive(ctx, patience)
		if err != nil || first.Kind == qmp.Greeting {
			return first, err
		}
	}
	return qmp.Message{}, fmt.Errorf("%w: %d messages and no greeting", ErrCorrupt, maxEarly)
}

// connect connects and waits for the greeting. Nothing is sent before it came:
// QEMU would execute it when the client before us leaves, long after we gave up.
func (m *monitor) connect(ctx context.Context) error {
	c, err := m.dial(ctx)
	if err != nil {
		return err
	}
	m.conn = c
	first, err := m.receiveGreeting(ctx, greetingTime)
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
		if who := proc.holders(m.life.pid, m.addr, inodeOf(c)); len(who) > 0 || m.life.pid == 0 {
			return &BusyError{"QMP socket", m.addr, who}
		}
		first, err = m.receiveGreeting(ctx, stuckTime)
	}
	if err != nil {
		return m.explain(ctx, err)
	}
	m.vers = first.Version
	_, err = m.converse(ctx, []command{{name: "qmp_capabilities"}})
	if err != nil {
		return m.explain(ctx, err)
	}
	return nil
}

func (m *monitor) dial(ctx context.Context) (net.Conn, error) {
	dialCtx, cancel := context.WithTimeout(ctx, greetingTime)
	defer cancel()
	c, err := m.addr.dial(dialCtx)
	switch {
	case err == nil:
		return c, nil
	case ctx.Err() != nil || m.life.gone(0):
		return nil, m.explain(ctx, err)
	case errors.Is(err, context.DeadlineExceeded):
		// The queue of those who wait to be accepted is full.
		return nil, &BusyError{"QMP socket", m.addr, proc.holders(m.life.pid, m.addr, 0)}
	case m.life.pid == 0 && errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	case errors.Is(err, fs.ErrPermission):
		return nil, &PermissionError{"QMP socket " + m.addr.String(), m.life.pid}
	}
	return nil, fmt.Errorf("QMP socket: %w", err)
}

// converse sends commands and reads their replies.
func (m *monitor) converse(ctx context.Context, commands []command) ([]reply, error) {
	first := m.id
	for _, c := range commands {
		line, err := qmp.AppendCommand(nil, m.id, c.name, c.args)
		if err != nil {
			return nil, err
		}
		m.id++
		if c.before != nil {
			c.before(ctx)
		}
		if err := m.send(ctx, line, c.fds); err != nil {
			return nil, err
		}
	}
	replies := make([]reply, 0, len(commands))
	for len(replies) < len(commands) {
		msg, err := m.receive(ctx, answerTime)
		switch {
		case err != nil:
			return nil, err
		case msg.Kind == qmp.Event:
			m.hear(msg)
			continue
		case msg.Kind != qmp.Greeting && msg.ID < first:
			continue // of a command that was given up: QEMU sends it to whoever is connected
		case msg.Kind == qmp.Greeting || msg.ID != first+uint64(len(replies)):
			return nil, fmt.Errorf("%w: %s that answers no question", ErrCorrupt, msg.Kind)
		}
		replies = append(replies, reply{msg.Return, msg.Err})
	}
	return replies, nil
}

// send writes one line, with descriptors if there are any.
func (m *monitor) send(ctx context.Context, line []byte, fds []int) error {
	defer bound(ctx, m.conn, answerTime)()
	if len(fds) == 0 {
		_, err := m.conn.Write(line)
		return err
	}
	c, ok := m.conn.(*net.UnixConn)
	if !ok {
		return errors.New("descriptors cannot travel over TCP")
	}
	n, _, err := c.WriteMsgUnix(line, unix.UnixRights(fds...), nil)
	if err == nil && n < len(line) {
		_, err = c.Write(line[n:])
	}
	return err
}

// receive reads the next message, at most d.
func (m *monitor) receive(ctx context.Context, d time.Duration) (qmp.Message, error) {
	defer bound(ctx, m.conn, d)()
	buf := make([]byte, 32<<10)
	for {
		msg, ok, err := m.in.Next()
		if err != nil {
			return qmp.Message{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		if ok {
			return msg, nil
		}
		n, err := m.conn.Read(buf)
		if n > 0 {
			m.in.Feed(buf[:n])
			continue
		}
		if err != nil {
			return qmp.Message{}, err
		}
	}
}

// bound limits what is read and written on c to the time d and to the life of ctx.
// The function it returns ends the watch over ctx.
func bound(ctx context.Context, c net.Conn, d time.Duration) (end func()) {
	c.SetDeadline(time.Now().Add(d))
	return cutOff(ctx, c.SetDeadline)
}

// cutOff ends what is done on a connection when ctx is over. Once end has returned it
// does not any more: what comes next on the connection has another ctx.
func cutOff(ctx context.Context, setDeadline func(time.Time) error) (end func()) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		setDeadline(time.Unix(1, 0))
		close(done)
	})
	return func() {
		if !stop() {
			<-done
		}
	}
}

// explain turns the failure of a socket into what it means.
func (m *monitor) explain(ctx context.Context, err error) error {
	return explain(ctx, m.life, "QMP socket "+m.addr.String(), err)
}

func explain(ctx context.Context, l life, what string, err error) error {
	timeout := errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)
	switch {
	case errors.Is(err, ErrCorrupt) || errors.Is(err, ErrGone):
		return err
	case timeout && ctx.Err() != nil:
		return fmt.Errorf("%s: %w", what, ctx.Err())
	case timeout && l.gone(0), !timeout && l.gone(dyingTime):
		return fmt.Errorf("%w: %s: %v", ErrGone, what, err)
	case timeout && proc.stopped(l.pid):
		return fmt.Errorf("%s does not answer: process %d is stopped; continue it with kill -CONT %d", what, l.pid, l.pid)
	case timeout:
		return fmt.Errorf("%s does not answer: %w", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
