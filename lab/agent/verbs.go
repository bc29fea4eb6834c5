package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nestdbg/lab/wire"
)

const (
	execLimit = 60 * time.Second
	// afterDelay leaves an answer the time to leave the machine.
	afterDelay = 200 * time.Millisecond
)

// commonVerbs are the requests that every machine answers.
func commonVerbs(children *children) verbs {
	patterns := &patternHolder{children: children}
	return verbs{
		"ping":      simple(func(string) ([]byte, error) { return release() }),
		"kallsyms":  simple(func(string) ([]byte, error) { return kallsyms() }),
		"modules":   simple(func(string) ([]byte, error) { return os.ReadFile("/proc/modules") }),
		"tasks":     simple(func(string) ([]byte, error) { return tasks() }),
		"commands":  simple(func(string) ([]byte, error) { return commands() }),
		"kmsg":      simple(func(string) ([]byte, error) { return kmsg("/dev/kmsg") }),
		"clock":     simple(func(string) ([]byte, error) { return clock() }),
		"stack":     simple(stack),
		"cat":       simple(cat),
		"exec":      simple(func(args string) ([]byte, error) { return execute(children, args) }),
		"pattern":   simple(func(string) ([]byte, error) { return patterns.start() }),
		"unpattern": simple(func(string) ([]byte, error) { return nil, patterns.stop() }),
		"crash":     lastWords(func() error { return os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0) }),
		"reboot":    lastWords(func() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) }),
		"poweroff":  lastWords(func() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) }),
	}
}

// lastWords is a verb whose effect comes after its answer.
func lastWords(f func() error) verb {
	return func(string) ([]byte, func(), error) {
		return nil, func() {
			time.Sleep(afterDelay)
			if err := f(); err != nil {
				fmt.Fprintln(os.Stderr, "nestdbg lab agent:", err)
			}
		}, nil
	}
}

// release is the running kernel's release, as in uname -r.
func release() ([]byte, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, err
	}
	return []byte(unix.ByteSliceToString(u.Release[:]) + "\n"), nil
}

// kallsyms is /proc/kallsyms, with addresses.
func kallsyms() ([]byte, error) {
	// 0: root sees addresses whatever it is, but nobody else may have changed it.
	if err := os.WriteFile("/proc/sys/kernel/kptr_restrict", []byte("0"), 0); err != nil {
		return nil, err
	}
	return readSlowly("/proc/kallsyms")
}

// readSlowly reads a file of unknown size in large pieces: each read of a
// generated file may cost a page at most, and each call is dear when nested.
func readSlowly(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := make([]byte, 0, 1<<20)
	for len(out) <= wire.MaxAnswer {
		if cap(out)-len(out) < 1<<16 {
			out = append(make([]byte, 0, 2*cap(out)), out...)
		}
		n, err := unix.Read(int(f.Fd()), out[len(out):cap(out)])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, fmt.Errorf("read %s: %w", path, err)
		case n == 0:
			return out, nil
		default:
			out = out[:len(out)+n]
		}
	}
	return nil, fmt.Errorf("read %s: longer than %d bytes", path, wire.MaxAnswer)
}

func tasks() ([]byte, error) {
	all, err := listTasks()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	for _, t := range all {
		fmt.Fprintln(&b, t)
	}
	return b.Bytes(), nil
}

// kmsg reads all records of the kernel log, in the format of the Linux
// document "/dev/kmsg": one read gives one record.
func kmsg(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	var out []byte
	record := make([]byte, 8192)
	for len(out) < wire.MaxAnswer {
		n, err := unix.Read(fd, record)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return out, nil
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EINTR):
			// The record was overwritten before it was read: go on with the next.
		case err != nil:
			return nil, fmt.Errorf("read %s: %w", path, err)
		case n == 0:
			return out, nil
		default:
			out = append(out, record[:n]...)
		}
	}
	return out, nil
}

// clock answers with lines "NAME VALUE": monotonic and boottime in nanoseconds,
// uptime as in /proc/uptime, jiffies if the kernel tells.
func clock() ([]byte, error) {
	var b bytes.Buffer
	for _, c := range []struct {
		name string
		id   int32
	}{{"monotonic", unix.CLOCK_MONOTONIC}, {"boottime", unix.CLOCK_BOOTTIME}} {
		var ts unix.Timespec
		if err := unix.ClockGettime(c.id, &ts); err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%s %d\n", c.name, ts.Nano())
	}
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(&b, "uptime %s", uptime)
	timers, err := os.ReadFile("/proc/timer_list")
	if err != nil {
		return b.Bytes(), nil // CONFIG_PROC_FS alone does not promise it
	}
	for line := range strings.Lines(string(timers)) {
		if v, ok := strings.CutPrefix(line, "jiffies: "); ok {
			fmt.Fprintf(&b, "jiffies %s", v)
			break
		}
	}
	return b.Bytes(), nil
}

// stack is the kernel's own backtrace of one thread.
func stack(args string) ([]byte, error) {
	pid, err := strconv.Atoi(args)
	if err != nil || pid <= 0 {
		return nil, fmt.Errorf("stack takes the number of a thread, not %q", args)
	}
	return os.ReadFile(fmt.Sprintf("/proc/%d/stack", pid))
}

func cat(args string) ([]byte, error) {
	f, err := os.Open(args)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, wire.MaxAnswer))
}

// execute runs a command line with busybox's shell and answers with what it
// wrote, to both its outputs.
func execute(children *children, line string) ([]byte, error) {
	var out limitedBuffer
	cmd := exec.Command(Busybox, "sh", "-c", line)
	cmd.Env = []string{toolPath, "HOME=/"}
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second // for a background job that holds the output
	if err := children.start(cmd); err != nil {
		return nil, err
	}
	kill := time.AfterFunc(execLimit, func() { cmd.Process.Kill() })
	defer kill.Stop()
	if err := children.wait(cmd); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return nil, fmt.Errorf("%w: %s", err, out.Bytes())
	}
	return out.Bytes(), nil
}

// limitedBuffer keeps what fits into an answer and drops the rest.
type limitedBuffer struct{ bytes.Buffer }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if room := wire.MaxAnswer - b.Len(); len(p) > room {
		b.Buffer.Write(p[:max(room, 0)])
		return len(p), nil
	}
	return b.Buffer.Write(p)
}
