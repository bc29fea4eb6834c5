package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"nestdbg/internal/qmp"
)

// MaxDeviceState is the largest device state that is accepted, in bytes. A machine
// without a display has under 100 KiB, video memory adds to it.
const MaxDeviceState = 256 << 20

// DeviceState returns the state of all devices as QEMU's migration stream, CPUs
// included, RAM not. A running machine is stopped for the millisecond that it
// takes and runs on; nobody who is attached to its gdbstub notices. The run state
// is not asked for again: QEMU restores it itself, and a paused machine is not
// touched.
//
// Source: QEMU 7.2 migration/savevm.c:qmp_xen_save_devices_state.
func (m *Machine) DeviceState(ctx context.Context) ([]byte, error) {
	if m.target.QMP.Network == "unix" {
		state, err := m.stateThroughFD(ctx)
		var refused *qmp.Error
		if !errors.As(err, &refused) {
			return state, err
		}
	}
	return m.stateThroughFile(ctx)
}

// stateFile is a memory file that QEMU writes the device state into. It gets the
// file as a descriptor, so it does not matter which files QEMU may write, as which
// user and where, and nothing is left behind.
type stateFile struct {
	in, out *os.File // the same file, for reading and for QEMU
	path    string   // QEMU's name for it
	lease   *lease   // by which QEMU has it
}

func newStateFile() (*stateFile, error) {
	fd, err := unix.MemfdCreate("nestdbg-device-state", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("device state: memfd: %w", err)
	}
	f := &stateFile{in: os.NewFile(uintptr(fd), "device state")}
	// QEMU takes a descriptor out of a set only if it is open as it wants it: for
	// writing alone (QEMU 7.2 monitor/misc.c:monitor_fdset_dup_fd_add).
	f.out, err = os.OpenFile("/proc/self/fd/"+strconv.Itoa(fd), os.O_WRONLY, 0)
	if err != nil {
		f.in.Close()
		return nil, fmt.Errorf("device state: %w", err)
	}
	// The number of the set is ours to choose, so that the command that uses it need
	// not wait for the reply. It has to differ from the sets of other clients.
	set := map[string]any{"fdset-id": 1<<30 + rand.N(1<<30)}
	f.path = fmt.Sprint("/dev/fdset/", set["fdset-id"])
	f.lease = &lease{
		take:     command{name: "add-fd", args: set, fds: []int{int(f.out.Fd())}},
		giveBack: command{name: "remove-fd", args: set},
	}
	return f, nil
}

func (f *stateFile) close() {
	f.in.Close()
	f.out.Close()
}

// rewind empties the file. QEMU's descriptor shares the position of ours.
func (f *stateFile) rewind() error {
	_, err := f.out.Seek(0, io.SeekStart)
	return errors.Join(err, f.out.Truncate(0))
}

// stateThroughFD keeps one file for all device states. After an error it takes a new
// one, since QEMU may still write into the old one.
func (m *Machine) stateThroughFD(ctx context.Context) (state []byte, err error) {
	m.stateMu.Lock()
	defer m.stateMu.Unlock()
	if m.state == nil {
		if m.state, err = newStateFile(); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			m.state.close()
			m.state = nil
		}
	}()
	if err := m.state.rewind(); err != nil {
		return nil, fmt.Errorf("device state: %w", err)
	}
	c := m.saveCommand(m.state.path)
	replies, err := m.monitor.exchangeWith(ctx, m.state.lease, c)
	if err == nil {
		err = replies[0].decode(c.name, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("device state: %w", err)
	}
	return readState(m.state.in)
}

// stateThroughFile is for QMP over TCP, where no descriptors travel.
func (m *Machine) stateThroughFile(ctx context.Context) ([]byte, error) {
	dir, err := os.MkdirTemp("", "nestdbg-") // mode 0700
	if err != nil {
		return nil, fmt.Errorf("device state: %w", err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "devices")
	c := m.saveCommand(path)
	replies, err := m.monitor.exchange(ctx, c)
	if err == nil {
		err = replies[0].decode(c.name, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("device state: %w", err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("device state: QEMU wrote it elsewhere: %w", err)
	}
	defer f.Close()
	return readState(f)
}

func (m *Machine) saveCommand(path string) command {
	return command{
		name: "xen-save-devices-state", args: map[string]any{"filename": path, "live": false}, before: m.beforeStop,
	}
}

func readState(f *os.File) ([]byte, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("device state: %w", err)
	}
	if fi.Size() == 0 || fi.Size() > MaxDeviceState {
		return nil, fmt.Errorf("%w: device state of %d bytes", ErrCorrupt, fi.Size())
	}
	state := make([]byte, fi.Size())
	if _, err := f.ReadAt(state, 0); err != nil && err != io.EOF {
		return nil, fmt.Errorf("device state: %w", err)
	}
	return state, nil
}
