package qemu

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// life tells whether a process has ended, without being fooled by another one
// that got its PID.
type life struct {
	pid   int
	pidfd int // -1 if there is none
}

func watchLife(pid int) life {
	l := life{pid, -1}
	if pid > 0 {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			l.pidfd = fd
		}
	}
	return l
}

func (l life) close() {
	if l.pidfd >= 0 {
		unix.Close(l.pidfd)
	}
}

// WaitEnd returns an ErrGone when QEMU has ended, or ctx's error when that is done
// first. Of a QEMU whose process is not known it waits for ctx.
func (m *Machine) WaitEnd(ctx context.Context) error {
	const interval = 200 * time.Millisecond
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			if m.life.gone(0) {
				return fmt.Errorf("%w (PID %d)", ErrGone, m.life.pid)
			}
		}
	}
}

// gone reports whether the process has ended, waiting up to d for that: a dying
// process closes its sockets some time before it has ended. A process that is not
// known is believed to live.
func (l life) gone(d time.Duration) bool {
	if l.pidfd < 0 {
		if l.pid > 0 {
			_, err := os.Stat(proc.path(l.pid, ""))
			return os.IsNotExist(err)
		}
		return false
	}
	deadline := time.Now().Add(d)
	for {
		left := max(0, time.Until(deadline))
		fds := []unix.PollFd{{Fd: int32(l.pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(left.Milliseconds()))
		if err != unix.EINTR {
			return err == nil && n > 0
		}
	}
}
