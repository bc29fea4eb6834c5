package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// The classes of error of this package, besides mem.ErrFault.
var (
	// ErrGone means that QEMU has ended. It is never a memory fault: no address
	// will be readable any more.
	ErrGone = errors.New("QEMU has ended")
	// ErrNotFound means that there is no QEMU of this description.
	ErrNotFound = errors.New("no such QEMU")
	// ErrCorrupt means that QEMU said something that this package does not
	// understand; the connection it came over is closed.
	ErrCorrupt = errors.New("unexpected answer from QEMU")
	// ErrHung means that QEMU lives and does not do what it accepted.
	ErrHung = errors.New("QEMU hangs")
)

// AmbiguousError means that there are several QEMU to choose from.
type AmbiguousError struct{ Candidates []Process }

func (e *AmbiguousError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d QEMU processes run here, choose one with -t, by its PID or QMP socket:", len(e.Candidates))
	for _, p := range e.Candidates {
		b.WriteString("\n  " + p.String())
	}
	return b.String()
}

// Is makes every AmbiguousError an ErrNotFound.
func (e *AmbiguousError) Is(target error) bool { return target == ErrNotFound }

// MissingError means that QEMU was started without something that is needed.
type MissingError struct {
	What   string // "QMP socket"
	Option string // the QEMU option that provides it
	PID    int
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("QEMU %d has no %s; start it with %s", e.PID, e.What, e.Option)
}

// PermissionError means that QEMU belongs to somebody else.
type PermissionError struct {
	What string // "QMP socket /run/qmp"
	PID  int    // 0 if it is not known
}

func (e *PermissionError) Error() string {
	who := "QEMU"
	if e.PID != 0 {
		who = fmt.Sprintf("QEMU %d", e.PID)
	}
	return fmt.Sprintf("%s: no permission for its %s; run nestdbg as the user who runs QEMU, or as root", who, e.What)
}

// Is makes every PermissionError a fs.ErrPermission.
func (e *PermissionError) Is(target error) bool { return target == fs.ErrPermission }

// Holder is a process that uses something only one can use.
type Holder struct {
	PID  int
	Name string // as in /proc/PID/comm
}

func (h Holder) String() string { return fmt.Sprintf("%s (PID %d)", h.Name, h.PID) }

// BusyError means that somebody else uses a socket that serves one client.
type BusyError struct {
	What    string // "QMP socket", "gdbstub"
	Address Address
	Holders []Holder // may be empty: somebody whom we may not see
}

func (e *BusyError) Error() string {
	who := "a process that cannot be seen from here"
	if len(e.Holders) > 0 {
		names := make([]string, len(e.Holders))
		for i, h := range e.Holders {
			names[i] = h.String()
		}
		who = strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s %s serves one client at a time and is taken by %s", e.What, e.Address, who)
}

// Problem is something that is not as it should be but did not stop the work.
type Problem string
