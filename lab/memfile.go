package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// memDir is where memory files go if there is room: RAM that is a file.
const memDir = "/dev/shm"

// memPrefix begins the name of every memory file, so that nothing else is
// ever removed.
const memPrefix = "nestdbg-lab-"

// createMemoryFile makes the file that will be L1's RAM, size bytes long, in
// memDir or, when that is too small, in the lab's own directory.
func createMemoryFile(memDir, labDir, name string, size uint64) (string, error) {
	dir := memDir
	if free, err := freeBytes(memDir); err != nil || free < size {
		dir = labDir
		if free, err = freeBytes(labDir); err != nil || free < size {
			return "", fmt.Errorf("no room for %s of memory: %s and %s are too small: give less --memory",
				FormatSize(size), memDir, labDir)
		}
	}
	// 0600 and a name that cannot be known before: everybody may write memDir.
	f, err := os.CreateTemp(dir, memPrefix+name+"-")
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := f.Truncate(int64(size)); err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// freeBytes is what this user can still write to dir's file system.
func freeBytes(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// removeMemoryFile removes a memory file; one that is gone is no error.
func removeMemoryFile(path string) error {
	if path == "" {
		return nil
	}
	if !strings.HasPrefix(filepath.Base(path), memPrefix) {
		return fmt.Errorf("%s is no memory file of a lab; not removed", path)
	}
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
