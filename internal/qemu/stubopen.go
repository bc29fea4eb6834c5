package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nestdbg/internal/qmp"
)

// ownStub is the label of the character device of a stub that we open, and the
// name under which QEMU gets its descriptor.
const ownStub = "nestdbg-gdb"

// CheckStub tells whether OpenStub would find the stub taken, without a connection
// to it, which would stop the machine: then the error is its *BusyError.
func (m *Machine) CheckStub(ctx context.Context) error {
	d, _, err := m.askStub(ctx)
	if err == nil && d.connected {
		return m.stubBusy(d, 0)
	}
	return err
}

// stubDevice is the character device of QEMU's gdbstub.
type stubDevice struct {
	label     string
	addr      Address // zero for a device that cannot be connected to
	connected bool    // somebody is
}

// OpenStub connects to QEMU's gdbstub, which stops the machine. If QEMU has none,
// one is opened for us alone and closed at the end. A stub that somebody else uses
// is a *BusyError.
func (m *Machine) OpenStub(ctx context.Context) (*Stub, error) {
	d, running, err := m.askStub(ctx)
	if err != nil {
		return nil, err
	}
	if d.connected {
		return nil, m.stubBusy(d, 0)
	}
	s := &Stub{machine: m, wasRunning: running}
	s.c = stubConn{what: "gdbstub " + d.addr.String(), life: m.life}
	if m.beforeStop != nil {
		m.beforeStop(ctx) // who connects stops the machine
	}
	switch {
	case !d.addr.IsZero():
		// Who does not get a connection has stopped nothing.
		if s.c.conn, err = m.dialStub(ctx, s, d); err != nil {
			return nil, err
		}
	case d.label == "" || d.label == ownStub:
		s.c.what = "gdbstub of QEMU"
		err = m.openOwnStub(ctx, s, d)
	default:
		return nil, fmt.Errorf("the gdbstub of QEMU %d is not a socket (character device %s)", m.life.pid, d.label)
	}
	if err == nil {
		err = m.greetStub(ctx, s, d)
	}
	if err != nil {
		return nil, m.undoOpen(ctx, s, err)
	}
	return s, nil
}

// undoOpen lets go of a stub with which nothing can be done. The connection has stopped
// the machine, unless it is somebody else who has the stub. When ctx is over, which may
// be what went wrong, the machine is not left so either.
func (m *Machine) undoOpen(ctx context.Context, s *Stub, err error) error {
	ctx = context.WithoutCancel(ctx)
	if s.c.conn != nil {
		err = s.finish(ctx, err)
	}
	var busy *BusyError
	if !s.wasRunning || errors.As(err, &busy) || errors.Is(err, ErrGone) {
		return err
	}
	return errors.Join(err, m.ContMachine(ctx))
}

func (m *Machine) dialStub(ctx context.Context, s *Stub, d stubDevice) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	// A connection that is given up may stop the machine later, when QEMU accepts it.
	dial, cancel := context.WithTimeout(context.WithoutCancel(ctx), greetingTime)
	defer cancel()
	c, err := d.addr.dial(dial)
	if err != nil && dial.Err() != nil {
		return nil, m.stubBusy(d, 0) // the queue of those who wait is full
	}
	if err != nil {
		return nil, s.c.explain(ctx, err)
	}
	return c, nil
}

// greetStub does the handshake; a stub that keeps silent while somebody else is
// connected belongs to him. It does not end with ctx before QEMU has answered: until
// then the machine may yet be stopped.
func (m *Machine) greetStub(ctx context.Context, s *Stub, d stubDevice) error {
	greet, giveUp := context.WithCancelCause(context.WithoutCancel(ctx))
	defer giveUp(nil)
	defer time.AfterFunc(greetingTime, func() {
		if busy := m.stubBusy(d, inodeOf(s.c.conn)); len(busy.Holders) > 0 {
			giveUp(busy)
		}
	}).Stop()
	if err := s.handshake(greet); err != nil {
		return cmp.Or(context.Cause(greet), err)
	}
	return ctx.Err()
}

func (m *Machine) stubBusy(d stubDevice, mine uint64) *BusyError {
	return &BusyError{"gdbstub", d.addr, proc.holders(m.life.pid, d.addr, mine)}
}

// askStub asks for the stub's character device, zero if there is none, and whether
// the machine runs.
func (m *Machine) askStub(ctx context.Context) (d stubDevice, running bool, err error) {
	replies, err := m.monitor.exchange(ctx, command{name: "query-chardev"}, command{name: "query-status"})
	if err != nil {
		return d, false, err
	}
	var devices []chardev
	var status struct{ Running bool }
	if err := replies[0].decode("query-chardev", &devices); err != nil {
		return d, false, err
	}
	if err := replies[1].decode("query-status", &status); err != nil {
		return d, false, err
	}
	return m.findStub(devices), status.Running, nil
}

// findStub picks the stub's device. QEMU labels that of -gdb and of HMP gdbserver
// "gdb"; with -gdb chardev:ID it is that of the id.
func (m *Machine) findStub(devices []chardev) stubDevice {
	labels := []string{ownStub, "gdb"}
	if v := parseOptions(m.target.Args).all("gdb"); len(v) > 0 {
		if id, ok := strings.CutPrefix(v[len(v)-1], "chardev:"); ok {
			labels = append(labels, id)
		}
	}
	for _, label := range labels {
		for _, c := range devices {
			if c.Label == label {
				return m.stubDevice(c)
			}
		}
	}
	return stubDevice{}
}

// stubDevice reads what query-chardev shows of a socket: "unix:PATH,server=on", with
// "disconnected:" in front if nobody is connected.
func (m *Machine) stubDevice(c chardev) stubDevice {
	name, free := strings.CutPrefix(c.Filename, "disconnected:")
	d := stubDevice{label: c.Label}
	if opts := legacyDevice(name); opts != nil {
		d.connected = !free
		d.addr = chardevAddress(opts)
	}
	if d.addr.Network == "unix" {
		d.addr.Addr = proc.resolve(m.life.pid, d.addr.Addr)
	}
	return d
}

// openOwnStub opens a stub in a QEMU that has none. A leftover of a nestdbg that
// died is replaced.
func (m *Machine) openOwnStub(ctx context.Context, s *Stub, old stubDevice) error {
	if old.label == ownStub {
		if err := m.closeOwnStub(ctx); err != nil {
			return err
		}
	}
	// What QEMU was sent it executes, whoever waits for the reply: this is not cut short.
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	open := m.openPairStub
	if m.target.QMP.Network != "unix" {
		open = m.openPathStub
	}
	conn, cleanup, err := open(ctx)
	if err != nil {
		return fmt.Errorf("open a gdbstub in QEMU %d: %w", m.life.pid, err)
	}
	s.c.conn, s.cleanup = conn, cleanup
	return nil
}

// openPairStub gives QEMU one end of a pair of sockets. So the stub is ours alone:
// there is no path at which somebody else could connect, and QEMU need not be able
// to create one.
func (m *Machine) openPairStub(ctx context.Context) (net.Conn, func(context.Context) error, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(fds[1])
	ours := os.NewFile(uintptr(fds[0]), "gdbstub")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, nil, err
	}
	backend := map[string]any{"type": "socket", "data": map[string]any{
		"server": false,
		"addr":   map[string]any{"type": "fd", "data": map[string]string{"str": ownStub}},
	}}
	replies, err := m.monitor.exchange(ctx,
		command{name: "getfd", args: map[string]string{"fdname": ownStub}, fds: fds[1:]},
		command{name: "chardev-add", args: map[string]any{"id": ownStub, "backend": backend}},
		hmp("gdbserver chardev:"+ownStub))
	if err == nil {
		err = checkOpened(replies)
	}
	if err != nil {
		conn.Close()
		m.closeOwnStub(ctx) // what there is of it
		return nil, nil, err
	}
	return conn, m.closeOwnStub, nil
}

func checkOpened(replies []reply) error {
	for i, name := range []string{"getfd", "chardev-add"} {
		if err := replies[i].decode(name, nil); err != nil {
			return err
		}
	}
	var text string
	if err := replies[2].decode("gdbserver", &text); err != nil {
		return err
	}
	return checkGdbserver(text)
}

// checkGdbserver reads what HMP gdbserver says; it has no errors but text.
//
// Source: QEMU 7.2 monitor/misc.c:hmp_gdbserver.
func checkGdbserver(text string) error {
	if strings.Contains(text, "Waiting for gdb connection") || strings.Contains(text, "Disabled gdbserver") {
		return nil
	}
	return fmt.Errorf("gdbserver: %.200q", strings.TrimSpace(text))
}

// closeOwnStub closes a stub of ours, also when ctx is over: nobody else would.
// "gdbserver none" deletes its character device too, unless it never got that far.
func (m *Machine) closeOwnStub(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx) // what it asks has a bound of its own
	text, err := m.HMP(ctx, "gdbserver none")
	if err == nil {
		err = checkGdbserver(text)
	}
	if err != nil {
		return fmt.Errorf("close our gdbstub: %w", err)
	}
	var refused *qmp.Error
	err = m.monitor.ask(ctx, "chardev-remove", map[string]string{"id": ownStub}, nil)
	if err != nil && !errors.As(err, &refused) {
		return fmt.Errorf("close our gdbstub: %w", err)
	}
	return nil
}

// openPathStub opens a stub at a path in a private directory, for QMP over TCP,
// where no descriptors travel.
func (m *Machine) openPathStub(ctx context.Context) (net.Conn, func(context.Context) error, error) {
	dir, err := os.MkdirTemp("", "nestdbg-") // mode 0700
	if err != nil {
		return nil, nil, err
	}
	path := filepath.Join(dir, "gdb")
	text, err := m.HMP(ctx, "gdbserver unix:"+strings.ReplaceAll(path, ",", ",,")+",server=on,wait=off")
	if err == nil {
		err = checkGdbserver(text)
	}
	var conn net.Conn
	if err == nil {
		conn, err = Address{"unix", path}.dial(ctx)
	}
	cleanup := func(ctx context.Context) error {
		err := m.closeOwnStub(ctx)
		return errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		cleanup(ctx)
		return nil, nil, err
	}
	return conn, cleanup, nil
}
