package target

import (
	"context"
	"errors"
	"time"

	"nestdbg/internal/snapshot"
)

// SaveOptions says how a snapshot is taken.
type SaveOptions struct {
	// Nestdbg is the version of this program.
	Nestdbg string
	// Live lets the machine run on while its memory is copied.
	Live bool
	// Expect is told before a running machine is stopped.
	Expect func(context.Context)
	// Stood is since when a machine that ran stands for this, by whoever asks; zero if
	// nobody stopped it.
	Stood time.Time
	// Done is called when the machine need not stand any more; nil: nobody asks.
	Done func()
	// Progress is told bytes done and in all, from several goroutines; nil: nobody asks.
	Progress func(done, all uint64)
}

// Save keeps the machine as a snapshot in the new directory dir. A machine that
// runs is stopped while its memory is copied, and runs on afterwards, whatever
// happens to the snapshot; one that stands still is left so. What fails or is cut
// short leaves no files.
func (l *Live) Save(ctx context.Context, dir string, opt SaveOptions) (m *snapshot.Manifest, err error) {
	w, err := snapshot.Create(dir)
	if err != nil {
		return nil, err
	}
	defer w.Abort()
	running, err := l.Running(ctx)
	if err != nil {
		return nil, err
	}
	// Blocks are shared when they are on the disk. For a machine that runs that is seen to
	// before the stop, in which there is little left to write then.
	clones := !running || w.CloneRAM(l.qemu.RAM())
	if running {
		opt.Expect(ctx)
	}
	begin := time.Now()
	if !opt.Stood.IsZero() {
		begin = opt.Stood
	}
	resume := func() error { return nil }
	if running && !opt.Live {
		if resume, err = l.Pause(ctx); err != nil {
			return nil, err
		}
	}
	devices, err := l.qemu.DeviceState(ctx)
	stopped := time.Since(begin) // by the device state alone
	cloned := err == nil && clones && w.CloneRAM(l.qemu.RAM())
	if err == nil && !cloned {
		err = w.CopyRAM(ctx, l.qemu.RAM(), opt.Progress)
	}
	if err == nil && !opt.Live {
		err = l.checkStood(ctx)
	}
	err = errors.Join(gone(err), resume())
	if opt.Done != nil {
		opt.Done()
	}
	switch {
	case err != nil:
		return nil, err
	case !running && opt.Stood.IsZero():
		stopped = 0
	case !opt.Live:
		stopped = time.Since(begin)
	}
	if cloned {
		if err := w.SumRAM(ctx, opt.Progress); err != nil {
			return nil, err
		}
	}
	return w.Commit(snapshot.Manifest{
		Created: time.Now().UTC().Truncate(time.Second), Machine: l.kept(), Nestdbg: opt.Nestdbg,
		Live: opt.Live && running, WasRunning: running || !opt.Stood.IsZero(), StoppedSeconds: stopped.Seconds(),
	}, devices)
}

// checkStood refuses a copy of a machine that somebody else let run meanwhile: its pages
// are of different moments, and nothing would say so.
func (l *Live) checkStood(ctx context.Context) error {
	running, err := l.Running(ctx)
	if err == nil && running {
		err = errors.New("somebody let the machine run while its memory was copied; nothing was kept")
	}
	return err
}

// kept is what a manifest says of QEMU.
func (l *Live) kept() snapshot.Machine {
	info := l.qemu.Info()
	return snapshot.Machine{
		Version: info.Version, Accel: info.Accel, Arch: info.Arch, Type: info.MachineType, Name: info.Name,
		PID: info.PID, CPUs: info.CPUs, PhysBits: info.PhysBits,
	}
}

// SaveMemory keeps the memory alone as a snapshot in the new directory dir, as it is
// now: of a QEMU that has ended, whose memory file is mapped here still, whoever
// removed its name, or of one that cannot be asked and runs on meanwhile (live). why
// says where the registers are, nestdbg the version of this program. It asks QEMU for
// nothing.
func (l *Live) SaveMemory(ctx context.Context, dir, nestdbg, why string, live bool) (*snapshot.Manifest, error) {
	w, err := snapshot.Create(dir)
	if err != nil {
		return nil, err
	}
	defer w.Abort()
	if w.CloneRAM(l.qemu.RAM()) {
		err = w.SumRAM(ctx, nil)
	} else {
		err = w.CopyRAM(ctx, l.qemu.RAM(), nil)
	}
	if err != nil {
		return nil, gone(err)
	}
	return w.Commit(snapshot.Manifest{
		Created: time.Now().UTC().Truncate(time.Second), Machine: l.kept(), Nestdbg: nestdbg, DevicesLost: why,
		Live: live, WasRunning: true,
	}, nil)
}
