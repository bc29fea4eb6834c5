package target

import (
	"context"
	"errors"
	"fmt"
	"os"

	"nestdbg/internal/mem"
	"nestdbg/internal/memfile"
	"nestdbg/internal/qemu"
	"nestdbg/internal/session"
	"nestdbg/internal/snapshot"
)

// Target is what a person named, open: a QEMU that runs, or a file in which a machine
// was left. It is the session's Backend.
type Target interface {
	session.Backend
	// Describe says what it is, for people.
	Describe() Description
	// FileOffset tells where in the description's file a byte of memory lies.
	FileOffset(a mem.Phys) (uint64, bool)
	// OpenStub takes control. What cannot be controlled has a stub all the same, with
	// which the machine stands still: it refuses everything else as session.ErrDead.
	OpenStub(ctx context.Context) (session.Stub, error)
	// CheckStub tells, without stopping the machine, whether somebody else controls it.
	CheckStub(ctx context.Context) error
	// WaitEnd returns a session.ErrGone when the machine has ended, or the error of ctx.
	WaitEnd(ctx context.Context) error
	// Close lets go; a machine stays as it is.
	Close() error
}

// Description is what a target is, for people.
type Description struct {
	QEMU     *qemu.Info // nil if no QEMU runs
	Kind     string     // what else it is, in words
	Path     string     // of that
	Source   string     // where memory comes from
	File     string     // that has the memory, "" if there is none
	Size     uint64     // of memory, bytes
	Problems []string
}

// Options say what a person knows of a target.
type Options struct {
	// Layout is where the bytes of a bare memory file lie in physical memory, "" to
	// find it: see memfile.ParseLayout.
	Layout string
}

// Recognise opens what spec names, by what it is: the one place where that is
// decided. A file is known by its content, a directory is a snapshot, and anything
// else is a QEMU.
func Recognise(ctx context.Context, spec string, opt Options) (Target, error) {
	st, err := os.Stat(spec)
	if spec != "" && err == nil && st.IsDir() && opt.Layout == "" {
		return openDirectory(spec)
	}
	if spec == "" || err != nil || !st.Mode().IsRegular() {
		if opt.Layout != "" {
			return nil, usageError{fmt.Errorf("--layout is for a memory file; %s is none", describeSpec(spec))}
		}
		return Open(ctx, spec)
	}
	return openFile(spec, st, opt)
}

// openDirectory opens a directory, which is a snapshot.
func openDirectory(dir string) (Target, error) {
	k, err := openSnapshot(dir)
	if errors.Is(err, snapshot.ErrNone) {
		return nil, usageError{err}
	}
	if err != nil {
		return nil, err
	}
	return k, nil
}

func describeSpec(spec string) string {
	if spec == "" {
		return "the target"
	}
	return spec
}

// usageError is for the person to mend.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// IsUsage reports whether an error of opening a target is for the person to
// mend: another target to name, an option to start QEMU with, somebody who
// holds a socket or owns it.
func IsUsage(err error) bool {
	var missing *qemu.MissingError
	var busy *qemu.BusyError
	var denied *qemu.PermissionError
	var usage usageError
	return errors.Is(err, qemu.ErrNotFound) || errors.As(err, &missing) || errors.As(err, &busy) ||
		errors.As(err, &denied) || errors.As(err, &usage) || errors.Is(err, memfile.ErrForeign)
}

// Describe implements Target.
func (l *Live) Describe() Description {
	info, ram := l.qemu.Info(), l.qemu.RAM()
	d := Description{QEMU: &info, Kind: "QEMU", Source: ram.Source(), File: ram.File(), Size: ram.Size()}
	for _, p := range l.Problems() {
		d.Problems = append(d.Problems, string(p))
	}
	return d
}

// FileOffset implements Target.
func (l *Live) FileOffset(a mem.Phys) (uint64, bool) { return l.qemu.RAM().FileOffset(a) }
