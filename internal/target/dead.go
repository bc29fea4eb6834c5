package target

import (
	"context"
	"fmt"
	"os"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/memfile"
	"nestdbg/internal/qemu"
	"nestdbg/internal/session"
)

// Dead is what a file holds of a machine.
type Dead struct {
	still
	file *memfile.File
}

// openFile opens a file. One that a running QEMU has open is not of one moment.
func openFile(path string, st os.FileInfo, opt Options) (*Dead, error) {
	var o memfile.Options
	if opt.Layout != "" {
		l, err := memfile.ParseLayout(opt.Layout)
		if err != nil {
			return nil, usageError{err}
		}
		o.Layout = l
	}
	f, err := memfile.Open(path, o)
	if err != nil {
		return nil, err
	}
	if pid := qemu.Opened(st); pid != 0 {
		f.Problems = append(f.Problems, fmt.Sprintf("QEMU %d has the file open and may write to it while it is read: "+
			"what is seen may never have been so; look at the machine itself with -t %d", pid, pid))
	}
	return &Dead{still{fmt.Sprintf("%s (%s)", f.Path, f.Kind)}, f}, nil
}

// Close implements Target.
func (d *Dead) Close() error { return d.file.Close() }

// Arch implements session.Backend.
func (d *Dead) Arch() *arch.Arch { return d.file.Arch }

// Memory implements session.Backend.
func (d *Dead) Memory() machine.PhysMemory { return d.file }

// CPUs implements session.Backend. The registers are those of the file, without what
// QEMU keeps to itself.
func (d *Dead) CPUs(context.Context) ([]*arch.Registers, error) {
	var out []*arch.Registers
	for _, r := range d.file.CPUs {
		out = append(out, r.Clone())
	}
	return out, nil
}

// CPUSource implements session.Sourcer.
func (d *Dead) CPUSource() string {
	if d.file.DeviceState {
		return "device state"
	}
	return "notes of the " + d.file.Kind
}

// Describe implements Target.
func (d *Dead) Describe() Description {
	return Description{Kind: d.file.Kind, Path: d.file.Path, Source: d.file.Path, File: d.file.Path,
		Size: d.file.Size(), Problems: d.file.Problems}
}

// FileOffset implements Target.
func (d *Dead) FileOffset(a mem.Phys) (uint64, bool) { return d.file.FileOffset(a) }

// deadStub refuses everything but to let go, and traps, which nothing will run into:
// gdb says of one refused that memory cannot be read, and of what resumes the reason.
type deadStub struct{ err error }

func (s deadStub) WritePhys(context.Context, mem.Phys, []byte) error     { return s.err }
func (s deadStub) WriteRegister(context.Context, int, int, []byte) error { return s.err }
func (s deadStub) Registers(context.Context, int) (*arch.Registers, error) {
	return nil, s.err
}
func (s deadStub) SetTrap(context.Context, session.Trap) error      { return nil }
func (s deadStub) ClearTrap(context.Context, session.Trap) error    { return nil }
func (s deadStub) Resume(context.Context, session.Resumption) error { return s.err }
func (s deadStub) Wait(context.Context) (session.Event, error)      { return session.Event{}, s.err }
func (s deadStub) Interrupt() error                                 { return nil }
func (s deadStub) Paused(context.Context) (bool, error)             { return true, nil }
func (s deadStub) Regain(context.Context) error                     { return s.err }
func (s deadStub) Close(context.Context, bool) error                { return nil }
