package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process names a process for good: its number, which the kernel gives to
// others later, and when it started.
type process struct {
	PID   int
	Start uint64 // clock ticks since boot: field 22 of /proc/PID/stat
}

// termGrace is what a process gets between SIGTERM and SIGKILL.
const termGrace = 5 * time.Second

// killDeadline bounds the wait for a process that was sent SIGKILL.
const killDeadline = 10 * time.Second

// startDetached starts argv in dir, in a session of its own so that it
// survives the end of this command and its terminal, with both outputs
// appended to log. The channel gets the exit status when the process ends
// before we do.
func startDetached(argv []string, dir, log string) (process, <-chan error, error) {
	out, err := os.OpenFile(filepath.Join(dir, log), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return process{}, nil, err
	}
	defer out.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return process{}, nil, err
	}
	exited := make(chan error, 1)
	// Not reaped before its start time is read, so the number is still its own.
	start, err := startTime(cmd.Process.Pid)
	go func() { exited <- cmd.Wait() }()
	if err != nil {
		cmd.Process.Kill()
		return process{}, nil, err
	}
	return process{PID: cmd.Process.Pid, Start: start}, exited, nil
}

// startTime reads when a process started, dead but not reaped ones included.
func startTime(pid int) (uint64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, field 2, is in parentheses and may hold anything.
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(f) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat: %d fields behind the name", pid, len(f))
	}
	return strconv.ParseUint(string(f[19]), 10, 64)
}

// open returns a descriptor that stands for this very process, or ErrNotFound
// when it has ended.
func (p process) open() (fd int, err error) {
	fd, err = unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return -1, ErrNotFound
	}
	if err != nil {
		return -1, fmt.Errorf("open process %d: %w", p.PID, err)
	}
	// Compared after the descriptor is open: from here on the number cannot be
	// given to another without us noticing.
	start, err := startTime(p.PID)
	if err != nil || start != p.Start || exited(fd, 0) {
		unix.Close(fd)
		return -1, ErrNotFound
	}
	return fd, nil
}

// alive reports whether the process is still there.
func (p process) alive() bool {
	if p.PID <= 0 {
		return false
	}
	fd, err := p.open()
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// exited waits at most for wait until the process of a descriptor has ended.
func exited(pidfd int, wait time.Duration) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(wait.Milliseconds()))
	return err == nil && n > 0
}

// end ends the process and waits until it is gone; one that is gone already is
// no error. It asks with SIGTERM and, after grace, insists with SIGKILL.
func (p process) end(ctx context.Context, grace time.Duration) error {
	if p.PID <= 0 {
		return nil
	}
	fd, err := p.open()
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, step := range []struct {
		signal unix.Signal
		wait   time.Duration
	}{{unix.SIGTERM, grace}, {unix.SIGKILL, killDeadline}} {
		err := unix.PidfdSendSignal(fd, step.signal, nil, 0)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end process %d: %w", p.PID, err)
		}
		for end := time.Now().Add(step.wait); time.Now().Before(end); {
			if exited(fd, 100*time.Millisecond) {
				return nil
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("process %d did not end in %v after SIGKILL", p.PID, killDeadline)
}
