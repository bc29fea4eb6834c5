package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Address is where a socket of QEMU listens. The zero value is "none".
type Address struct {
	Network string // "unix" or "tcp"
	Addr    string // absolute path, "@name" in the abstract namespace, or host:port
}

func (a Address) String() string {
	if a.Network == "" {
		return "none"
	}
	return a.Network + ":" + a.Addr
}

// IsZero reports whether there is no address.
func (a Address) IsZero() bool { return a.Network == "" }

// chardevAddress is the address in the options of a socket chardev; zero for a
// device that is no socket or has none of its own.
func chardevAddress(opts map[string]string) Address {
	switch {
	case opts["backend"] != "socket":
	case opts["path"] != "" && on(opts["abstract"]):
		return Address{"unix", "@" + opts["path"]}
	case opts["path"] != "":
		return Address{"unix", opts["path"]}
	case opts["port"] != "":
		return tcpAddress(opts["host"], opts["port"])
	}
	return Address{}
}

// tcpAddress names the side to connect to; a server on all interfaces is reached
// on this machine.
func tcpAddress(host, port string) Address {
	switch host {
	case "", "0.0.0.0", "localhost":
		host = "127.0.0.1"
	case "::":
		host = "::1"
	}
	return Address{"tcp", net.JoinHostPort(host, port)}
}

// isLoopback reports whether a TCP address is on this machine for sure.
func (a Address) isLoopback() bool {
	host, _, err := net.SplitHostPort(a.Addr)
	ip := net.ParseIP(host)
	return err == nil && ip != nil && ip.IsLoopback()
}

// maxUnixPath is the room in struct sockaddr_un, without the final NUL (Linux
// include/uapi/linux/un.h).
const maxUnixPath = 107

// dial connects, and waits until ctx ends if others wait to be served. A path that
// is too long for a socket address is reached through its directory.
func (a Address) dial(ctx context.Context) (net.Conn, error) {
	addr := a.Addr
	if a.Network == "unix" && len(addr) > maxUnixPath && addr[0] != '@' {
		dir, err := os.Open(filepath.Dir(addr))
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		addr = "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + filepath.Base(addr)
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, a.Network, addr)
	// A unix socket with a full queue refuses at once; QEMU's has room for one.
	for errors.Is(err, syscall.EAGAIN) && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(queueRetry):
			c, err = d.DialContext(ctx, a.Network, addr)
		}
	}
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("connect to %s: %w", a, errors.Join(ctx.Err(), err))
	}
	return c, err
}

// queueRetry is the time between attempts to get into a full queue.
const queueRetry = 20 * time.Millisecond
