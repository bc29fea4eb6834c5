package snapshot

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// incomplete is in the names of snapshots under way, ".NAME.incomplete-NUMBER".
const incomplete = ".incomplete-"

// errLocked is the error of lock if somebody else has the lock.
const errLocked = unix.EWOULDBLOCK

// lock locks a directory, as whoever writes into it has it. The lock ends with its
// process. Some file systems have no locks.
func lock(d *os.File) error { return unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB) }

// Sweep removes from a directory what is left of snapshots whose writers were killed, if
// ours accepts the name that the snapshot was to have. What is being written stays, and
// what cannot be locked.
func Sweep(parent string, ours func(name string) bool) error {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		name, number, found := strings.Cut(strings.TrimPrefix(e.Name(), "."), incomplete)
		if !found || !e.IsDir() || e.Name()[0] != '.' || !ours(name) || strings.Trim(number, "0123456789") != "" {
			continue
		}
		dir := filepath.Join(parent, e.Name())
		d, err := os.Open(dir)
		if err == nil && lock(d) == nil {
			err = os.RemoveAll(dir)
		}
		errs = append(errs, err)
		d.Close()
	}
	return errors.Join(errs...)
}
