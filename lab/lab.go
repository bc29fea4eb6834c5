// Package lab boots real nested guests: L1 a Debian Linux with KVM under
// QEMU's emulation of AMD SVM, in it one or more L2, Debian Linux too. They are
// something to debug, for people (nestdbg lab) and for tests (Start). A deeper lab
// has a VM in each VM. Another kind of lab has a hypervisor of our own as L1.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"nestdbg/lab/wire"
)

const (
	// qemuDeadline bounds the time that QEMU takes to open its sockets.
	qemuDeadline = 30 * time.Second
	// exitGrace is how long QEMU may take to end after its sockets did.
	exitGrace = 3 * time.Second
	// logTail is how much of a log is shown when something fails, in bytes.
	logTail = 2000
)

// BootError says that a lab was started but did not come up.
type BootError struct {
	Lab    *Lab
	Reason error
	Tail   string // the end of what the machines and QEMU said last
}

func (e *BootError) Error() string {
	return fmt.Sprintf("lab %s: %v; logs are in %s, nestdbg lab down %s removes it",
		e.Lab.Name, e.Reason, e.Lab.Dir, e.Lab.Name)
}

func (e *BootError) Unwrap() error { return e.Reason }

// Up starts a lab. With a *BootError the lab is left for inspection and Down
// removes it; after any other error, the end of ctx included, nothing is left.
func Up(ctx context.Context, o Options) (*Lab, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	home, err := stateHome(o.StateHome)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(home, o.Name)
	if err := checkSockets(dir); err != nil {
		return nil, err
	}
	if err := checkFree(dir); err != nil {
		return nil, err
	}
	l := &Lab{Name: o.Name, Kind: o.Kind, Dir: dir}
	f, err := l.prepare(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		if busy := checkFree(dir); busy != nil { // somebody was faster
			return nil, busy
		}
		return nil, err
	}
	start := kinds[o.Kind].start
	if start == nil {
		start = (*Lab).startQEMU
	}
	if err := start(l, o, f); err != nil {
		return nil, errors.Join(err, l.Down(context.WithoutCancel(ctx)))
	}
	if err := l.wait(ctx, o); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("lab %s: given up while it booted: %w", l.Name, ctx.Err())
			return nil, errors.Join(err, l.Down(context.WithoutCancel(ctx)))
		}
		return nil, &BootError{Lab: l, Reason: err, Tail: l.Tail()}
	}
	return l, nil
}

// checkFree fails if there is a lab in dir, and says what to do about it: an
// *OptionError, for the name is the person's.
func checkFree(dir string) error {
	l, err := load(dir)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	case l.Running:
		return optionf("lab %s is running already: use another --name, or first nestdbg lab down %s", l.Name, l.Name)
	default:
		return optionf("lab %s is dead but still there: first nestdbg lab down %s", l.Name, l.Name)
	}
}

// prepare gets everything that QEMU needs and nothing that must be cleaned up.
func (l *Lab) prepare(ctx context.Context, o Options) (files, error) {
	dir, err := cacheHome(o.CacheHome)
	if err != nil {
		return files{}, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return files{}, err
	}
	return kinds[o.Kind].prepare(ctx, l, cache{dir}, o)
}

// prepareLinux gets kernels, and packs what L1 starts with.
func prepareLinux(ctx context.Context, l *Lab, c cache, o Options) (files, error) {
	host, err := findHostFiles(ctx, o.QEMU)
	if err != nil {
		return files{}, err
	}
	l1, err := findKernel(ctx, c, o.L1Kernel, o.L1Modules, o.Progress)
	if err != nil {
		return files{}, err
	}
	vm, err := findKernel(ctx, c, o.Kernel, o.Modules, o.Progress)
	if err != nil {
		return files{}, err
	}
	agentBinary, err := readAgent(o.Agent)
	if err != nil {
		return files{}, err
	}
	initramfs, err := buildInitramfs(c, l1, vm, host, agentBinary, o, o.Progress)
	if err != nil {
		return files{}, err
	}
	l.Machines = o.machines(l.Dir, l1, vm)
	return files{qemu: host.qemu, kernel: l1.Image, initramfs: initramfs}, nil
}

// machines describes the machines that will be started.
func (o Options) machines(dir string, l1, vm *Kernel) []Machine {
	out := []Machine{{Name: L1, CPUs: o.CPUs, MemBytes: o.Memory, Kernel: *l1,
		Log: filepath.Join(dir, machineLog(L1))}}
	for i := range o.VMs {
		c := o.config()
		for name := vmName(i); ; name += "." + vmName(0) {
			out = append(out, Machine{Name: name, CPUs: c.VMCPUs, MemBytes: c.VMMemory, Kernel: *vm,
				Log: filepath.Join(dir, machineLog(name))})
			if !c.Deeper() {
				break
			}
			c = c.OfVM()
		}
	}
	return out
}

// startQEMU starts QEMU in the lab's directory, which exists.
func (l *Lab) startQEMU(o Options, f files) (err error) {
	if l.MemoryFile, err = createMemoryFile(memDir, l.Dir, o.Name, o.Memory); err != nil {
		return err
	}
	f.memory = l.MemoryFile
	l.Command = o.qemuCommand(f)
	l.QMPPath = filepath.Join(l.Dir, qmpSocket)
	if !o.NoGDB {
		l.GDBPath = filepath.Join(l.Dir, gdbSocket)
	}
	// Written before there is a process: whatever happens now, down finds the
	// memory file.
	if err := l.save(); err != nil {
		return err
	}
	p, exited, err := startDetached(l.Command, l.Dir, qemuLog)
	if err != nil {
		return fmt.Errorf("start QEMU: %w", err)
	}
	l.PID, l.StartTicks, l.exited, l.Running, l.Started = p.PID, p.Start, exited, true, time.Now()
	return l.save()
}

// wait waits until QEMU is ready and, unless o says not to, until every
// machine is up.
func (l *Lab) wait(ctx context.Context, o Options) error {
	// With a cause, so that a machine that is not asked any more says why.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case err := <-l.exited:
			cancel(fmt.Errorf("QEMU ended: %w", exitReason(err)))
		case <-ctx.Done():
		}
	}()
	if err := l.waitSocket(ctx); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	if o.NoWait {
		return nil
	}
	o.Progress("booting " + l.Name)
	return kinds[o.Kind].wait(ctx, cancel, l, o)
}

// waitMachines waits until every machine has answered. The failure of one ends
// the wait for all.
func waitMachines(ctx context.Context, cancel context.CancelCauseFunc, l *Lab, o Options) error {
	ctx, stop := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("not up after %v", o.Timeout))
	defer stop()
	var all errgroup.Group
	booted := make(chan *Machine)
	for i := range l.Machines {
		all.Go(func() error { return l.waitMachine(ctx, cancel, &l.Machines[i], booted) })
	}
	go func() { all.Wait(); close(booted) }()
	for m := range booted {
		o.Progress(fmt.Sprintf("%s reached userspace after %.1f s (Linux %s)", m.Name, m.BootSeconds, m.Release))
	}
	if err := all.Wait(); err != nil {
		return context.Cause(ctx)
	}
	return l.save()
}

// exitReason turns a clean exit into an error too.
func exitReason(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// waitSocket waits until QEMU listens on every socket. It opens them one after
// the other while it is set up, so one that is there says nothing of the next.
func (l *Lab) waitSocket(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, qemuDeadline)
	defer stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := kinds[l.Kind].listens(l)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("QEMU did not open its sockets: %w", err)
		}
	}
}

// waitMachine waits for a machine's first answer. A failure of one ends the
// wait for all, with that one's reason.
func (l *Lab) waitMachine(ctx context.Context, cancel context.CancelCauseFunc, m *Machine,
	booted chan<- *Machine) error {
	release, err := l.Ask(ctx, m.Name, "ping")
	if err != nil {
		var refused *wire.RefusedError
		if !errors.As(err, &refused) {
			// When QEMU ends its channels do first: its exit status says more.
			select {
			case <-ctx.Done():
			case <-time.After(exitGrace):
			}
		}
		cancel(err)
		return err
	}
	m.Release = strings.TrimSpace(string(release))
	m.BootSeconds = time.Since(l.Started).Seconds()
	booted <- m
	return nil
}

// Down ends the lab's QEMU, waits for that and removes everything the lab has
// left: its directory and its memory file. A lab that is dead or was never
// complete is removed as well.
func (l *Lab) Down(ctx context.Context) error {
	if err := l.process().end(ctx, termGrace); err != nil {
		return fmt.Errorf("lab %s: %w", l.Name, err)
	}
	if filepath.Base(l.Dir) != l.Name {
		return fmt.Errorf("lab %s: directory %s is not its own; not removed", l.Name, l.Dir)
	}
	if err := removeMemoryFile(l.MemoryFile); err != nil {
		return err
	}
	return os.RemoveAll(l.Dir)
}

// Tail is the end of each log of the lab, for people.
func (l *Lab) Tail() string {
	logs := []string{filepath.Join(l.Dir, qemuLog)}
	for _, m := range l.Machines {
		logs = append(logs, m.Log)
	}
	var b strings.Builder
	for _, path := range logs {
		if text := tail(path, logTail); text != "" {
			fmt.Fprintf(&b, "--- %s\n%s\n", filepath.Base(path), text)
		}
	}
	return b.String()
}

// tail is the last size bytes of a file, from the start of a line on; empty if
// there is no such file. Escape sequences of firmware are not shown.
func tail(path string, size int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > size {
		f.Seek(-size, io.SeekEnd)
	}
	text, _ := io.ReadAll(io.LimitReader(f, size))
	clean := strings.Map(func(r rune) rune {
		if r == '\n' || r >= ' ' && r != 0x7f {
			return r
		}
		return -1
	}, string(text))
	return strings.TrimSpace(clean)
}
