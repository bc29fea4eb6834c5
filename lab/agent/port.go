package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// AgentPort is the name of the virtio-serial port that leads to a machine's
// own agent. One with VMs has further ports, named by VMPort.
const AgentPort = "nestdbg.agent"

// VMPort is the name of a machine's port that is joined to the agent of a VM of it,
// or of a VM in that.
func VMPort(vm string) string { return "nestdbg." + vm }

// portDeadline bounds the wait for a port to appear after its driver is loaded.
const portDeadline = 60 * time.Second

// port is one end of a virtio-serial channel.
type port struct {
	f   *os.File
	raw syscall.RawConn
}

// openPort waits for the port called name and opens it.
func openPort(name string) (*port, error) {
	path, err := findPort(name)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &port{f: f, raw: raw}, nil
}

// findPort finds the device of the port called name. The driver announces
// ports one after the other when it likes.
func findPort(name string) (string, error) {
	for end := time.Now().Add(portDeadline); ; time.Sleep(5 * time.Millisecond) {
		files, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return "", err
		}
		for _, file := range files {
			got, err := os.ReadFile(file)
			dev := "/dev/" + filepath.Base(filepath.Dir(file))
			if err != nil || strings.TrimSpace(string(got)) != name {
				continue
			}
			if _, err := os.Stat(dev); err == nil {
				return dev, nil
			}
		}
		if time.Now().After(end) {
			return "", fmt.Errorf("no virtio-serial port called %s in %v", name, portDeadline)
		}
	}
}

// Read waits for bytes also while nobody is connected to the other side, where
// the driver would report the end of the file again and again. Go's poller is
// edge triggered, and the driver wakes pollers when somebody connects and when
// data arrive (Linux 6.1 drivers/char/virtio_console.c:port_fops_poll).
func (p *port) Read(b []byte) (n int, err error) {
	errRaw := p.raw.Read(func(fd uintptr) bool {
		n, err = unix.Read(int(fd), b)
		return n > 0 || err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
	})
	if errRaw != nil {
		return 0, errRaw
	}
	if err != nil {
		return 0, err
	}
	return n, nil
}

// Write sends b; it waits while nobody is connected.
func (p *port) Write(b []byte) (int, error) { return p.f.Write(b) }

var _ io.ReadWriter = (*port)(nil)
