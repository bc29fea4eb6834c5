package lab

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nestdbg/lab/wire"
)

// ErrBusy is the class of channels that somebody else uses.
var ErrBusy = errors.New("no answer")

// Ask sends a request to the agent of a machine, l1, vm0 or vm0.vm0, and
// returns its answer. It waits as long as ctx allows, also for a machine that
// still boots, and for others that ask the same machine. A *wire.RefusedError
// is what the agent itself has to say.
func (l *Lab) Ask(ctx context.Context, machine, request string) ([]byte, error) {
	path, err := l.socket(machine, agentSocket(machine))
	if err != nil {
		return nil, err
	}
	id := rand.Text()[:16]
	line, err := wire.Request{ID: id, Text: request}.Append(nil)
	if err != nil {
		return nil, err
	}
	conn, err := l.dial(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", machine, err)
	}
	defer conn.Close()
	// A deadline in the past ends reads and writes when ctx does.
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err = conn.Write(line); err == nil {
		var body []byte
		if body, err = wire.ReadAnswer(bufio.NewReaderSize(conn, 1<<16), id); err == nil {
			return body, nil
		}
	}
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, fmt.Errorf("ask %s %q: %w: "+
			"not booted, stopped by a debugger, or busy with another client: %w",
			machine, request, ErrBusy, ctx.Err())
	}
	return nil, fmt.Errorf("ask %s %q: %w", machine, request, err)
}

// socket is the path of one of a machine's sockets.
func (l *Lab) socket(machine, name string) (string, error) {
	if !IsMachineName(machine) {
		return "", fmt.Errorf("machine %q: %w: there are l1, vm0, vm1, ..., vm0.vm0, ...", machine, ErrNotFound)
	}
	path := filepath.Join(l.Dir, name)
	if _, err := os.Stat(path); l.Machine(machine) == nil && errors.Is(err, os.ErrNotExist) {
		var names []string
		for _, m := range l.Machines {
			names = append(names, m.Name)
		}
		return "", fmt.Errorf("machine %q: %w in lab %s: there are %s", machine, ErrNotFound, l.Name, strings.Join(names, ", "))
	}
	return path, nil
}

// dial connects to one of QEMU's sockets.
func (l *Lab) dial(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	for errors.Is(err, unix.EAGAIN) && ctx.Err() == nil {
		// QEMU's queue has room for one, who may be on the way out.
		time.Sleep(10 * time.Millisecond)
		conn, err = d.DialContext(ctx, "unix", path)
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, fmt.Errorf("lab %s is not running: nestdbg lab down %s; nestdbg lab up", l.Name, l.Name)
	}
	return conn, err
}
