package paging

import (
	"errors"
	"fmt"

	"nestdbg/internal/mem"
)

// Step is one entry that a walk read.
type Step struct {
	Level int      // 5 to 1; see the package comment
	Table mem.Phys // the table's address
	Index uint     // of the entry in the table
	At    mem.Phys // the entry's address
	Entry uint64
	Leaf  bool // it stands for a page, not for a table; meaningless if not present
}

// Translation is the result of a walk.
type Translation struct {
	Phys     mem.Phys // where the address itself lies, not its page
	PageSize uint64   // of the leaf, in bytes
	Perm     Perm     // what all levels together allow
	Steps    []Step   // every entry read, root first
}

// Cause is the class of reasons for which an address has no translation.
type Cause int

// The causes. A hole that a hypervisor may fill later is NotPresent; an entry
// that is there and refused, as KVM's marks for MMIO are, is Malformed.
const (
	NotPresent Cause = iota // an entry is not present
	Malformed               // an entry breaks the format's rules
	Outside                 // no table can translate such an address
	Unreadable              // a table could not be read
)

// NotMappedError says that an address has no translation, and why. It is a
// mem.ErrFault, except when a table could not be read for another reason than a
// fault: then it is whatever Err is.
type NotMappedError struct {
	Format string
	Addr   uint64
	Level  int // where the walk ended; of the table if that could not be read; 0 if none was reached
	Cause  Cause
	Reason string // in words: "not present", "reserved bit 51 set"
	Steps  []Step // every entry read, the refused one last
	Err    error  // the reader's error if Cause is Unreadable, else nil
}

func (e *NotMappedError) Error() string {
	s := fmt.Sprintf("%#x is not mapped by %s: %s", e.Addr, e.Format, e.Reason)
	if e.Level > 0 {
		s += fmt.Sprintf(" at level %d", e.Level)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Is makes the error a memory fault, unless a reader failed otherwise.
func (e *NotMappedError) Is(target error) bool { return target == mem.ErrFault && e.Err == nil }

func (e *NotMappedError) Unwrap() error { return e.Err }

// Walk translates addr by the tables at root, which it reads from r. The
// Translation holds the steps taken also when the error is not nil; such an
// error is always a *NotMappedError.
func (f *Format) Walk(r mem.PhysReader, root mem.Phys, addr uint64) (Translation, error) {
	tr := Translation{Perm: f.perms}
	if !f.inside(addr) {
		return tr, &NotMappedError{Format: f.Name, Addr: addr, Cause: Outside, Reason: f.outside()}
	}
	tr.Steps = make([]Step, 0, len(f.levels))
	table := root
	for i := range f.levels {
		l := &f.levels[i]
		index := addr >> l.shift & l.mask
		at := table + mem.Phys(index*uint64(f.EntrySize))
		e, err := f.readEntry(r, at)
		if err != nil {
			return tr, f.unreadable(i, addr, tr.Steps, err)
		}
		next, leaf, ok := f.follow(i, e)
		tr.Steps = append(tr.Steps,
			Step{Level: f.level(i), Table: table, Index: uint(index), At: at, Entry: e, Leaf: leaf})
		if !ok {
			cause, reason := f.refusal(i, e)
			return tr, &NotMappedError{Format: f.Name, Addr: addr, Level: f.level(i),
				Cause: cause, Reason: reason, Steps: tr.Steps}
		}
		rule, _ := f.rule(i, e)
		tr.Perm = rule.allowed(tr.Perm, e)
		if leaf {
			tr.PageSize = 1 << l.shift
			tr.Phys = next + mem.Phys(addr&(tr.PageSize-1))
			return tr, nil
		}
		table = next
	}
	// No levels: the address is the physical address.
	tr.Phys, tr.PageSize = mem.Phys(addr), 1<<f.PageShift
	return tr, nil
}

func (f *Format) unreadable(i int, addr uint64, steps []Step, err error) *NotMappedError {
	return &NotMappedError{Format: f.Name, Addr: addr, Level: f.level(i),
		Cause: Unreadable, Reason: "cannot read the table", Steps: steps, Err: err}
}

// isFault reports whether err means "this address", not "the connection".
func isFault(err error) bool { return errors.Is(err, mem.ErrFault) }
