package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Target is a QEMU to open: what is known of it without asking it anything.
type Target struct {
	PID  int      // 0 if the QMP socket is all there is
	Args []string // its command line, program first; nil if the PID is 0
	Name string
	QMP  Address
	Stub Address // zero if the command line opens none
}

// Find finds one QEMU. spec is a PID, the path of a QMP socket, host:port of one
// on this machine, or "" for the only QEMU of this user. Errors: ErrNotFound,
// *AmbiguousError, *MissingError when it has no QMP socket.
func Find(ctx context.Context, spec string) (*Target, error) {
	if spec == "" {
		return findOnly()
	}
	if pid, err := strconv.Atoi(spec); err == nil {
		return findPID(pid)
	}
	if fi, err := os.Stat(spec); err == nil {
		if fi.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("%w: %s is not a socket", ErrNotFound, spec)
		}
		return findUnix(ctx, spec)
	}
	if strings.HasPrefix(spec, "@") {
		return findUnix(ctx, spec)
	}
	if host, port, err := net.SplitHostPort(spec); err == nil && !strings.Contains(host, "/") {
		return findTCP(tcpAddress(host, port))
	}
	return nil, fmt.Errorf("%w: %q is not a PID, a QMP socket or host:port", ErrNotFound, spec)
}

func findOnly() (*Target, error) {
	all, err := Processes()
	if err != nil {
		return nil, err
	}
	switch len(all) {
	case 0:
		return nil, fmt.Errorf("%w: no QEMU of this user runs here", ErrNotFound)
	case 1:
		return all[0].target()
	}
	return nil, &AmbiguousError{all}
}

func findPID(pid int) (*Target, error) {
	p, ok := proc.process(pid)
	if ok {
		return p.target()
	}
	if _, err := os.Stat(proc.path(pid, "")); err != nil {
		return nil, fmt.Errorf("%w: no process %d", ErrNotFound, pid)
	}
	return nil, fmt.Errorf("%w: process %d is %s", ErrNotFound, pid, proc.comm(pid))
}

// target is the process as something to open; it must have a QMP socket.
func (p Process) target() (*Target, error) {
	if p.QMP.IsZero() {
		return nil, &MissingError{What: "QMP socket", Option: "-qmp unix:PATH,server=on,wait=off", PID: p.PID}
	}
	if a := p.QMP; a.Network == "unix" && !strings.HasPrefix(a.Addr, "/") && !strings.HasPrefix(a.Addr, "@") {
		// It is relative to a directory that we may not know.
		return nil, &PermissionError{"QMP socket " + a.String(), p.PID}
	}
	return &Target{PID: p.PID, Args: p.Args, Name: p.Name, QMP: p.QMP, Stub: p.Stub}, nil
}

// targetAt is the QEMU behind a QMP socket that a person named; an unknown process
// (pid 0, or one of another PID namespace) is no error.
func targetAt(qmp Address, pid int) *Target {
	t := &Target{QMP: qmp}
	if p, ok := proc.process(pid); ok {
		t.PID, t.Args, t.Name, t.Stub = p.PID, p.Args, p.Name, p.Stub
	}
	return t
}

// findUnix finds the QEMU that has the socket among its descriptors; that does not
// disturb it. Only if there is none in sight it connects and asks who is there: a
// path may be spelled in ways that are not recognised.
func findUnix(ctx context.Context, path string) (*Target, error) {
	if path[0] != '@' {
		abs, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		path = abs
	}
	a := Address{"unix", path}
	if pid := proc.listenerAt(a); pid != 0 {
		return targetAt(a, pid), nil
	}
	ctx, cancel := context.WithTimeout(ctx, greetingTime)
	defer cancel()
	c, err := a.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: nobody answers at %s: %w", ErrNotFound, a, err)
	}
	defer c.Close()
	pid, err := peerPID(c)
	if err != nil {
		return nil, fmt.Errorf("who listens at %s: %w", a, err)
	}
	return targetAt(a, pid), nil
}

// peerPID is the process that opened the socket c is connected to.
func peerPID(c net.Conn) (int, error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return 0, fmt.Errorf("%T has no descriptor", c)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err != nil || credErr != nil {
		return 0, fmt.Errorf("SO_PEERCRED: %w", errors.Join(err, credErr))
	}
	return int(cred.Pid), nil
}

func findTCP(a Address) (*Target, error) {
	if !a.isLoopback() {
		return nil, fmt.Errorf("%w: %s is not on this machine, where its memory is", ErrNotFound, a)
	}
	return targetAt(a, proc.listenerAt(a)), nil
}

// listenerAt returns the QEMU that listens at a, or 0.
func (p procFS) listenerAt(a Address) int {
	all, err := p.processes(0)
	if err != nil {
		return 0
	}
	for _, q := range all {
		listeners, err := p.listeners(q.PID, a.Network)
		if err != nil {
			continue
		}
		for _, l := range listeners {
			if l.Network == "unix" {
				l.Addr = p.resolve(q.PID, l.Addr)
			}
			if l == a {
				return q.PID
			}
		}
	}
	return 0
}
