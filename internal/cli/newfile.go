package cli

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"
)

// writeFile makes a file that is there as a whole or not at all: it is written
// under another name beside it, and gets its own when it is on the disk. Whatever
// goes wrong before, an end of ctx too, leaves no trace. A file that is there is
// replaced only with force, and never something that is no file.
func writeFile(ctx context.Context, path string, force bool, write func(io.Writer) error) (size int64, err error) {
	err = makeFile(path, force, func(f *os.File) error {
		counted := &countingWriter{ctx: ctx, w: f}
		buffered := bufio.NewWriterSize(counted, 1<<20)
		err := errors.Join(write(buffered), buffered.Flush())
		size = counted.size
		return err
	})
	if err != nil {
		return 0, err
	}
	return size, nil
}

// writeFileAt is writeFile for files that are written here and there: what is never
// written is a hole. write returns the file's size.
func writeFileAt(ctx context.Context, path string, force bool, write func(io.WriterAt) (int64, error)) error {
	return makeFile(path, force, func(f *os.File) error {
		size, err := write(writerAt{ctx, f})
		if err != nil {
			return err
		}
		return f.Truncate(size)
	})
}

// writerAt fails when ctx is done.
type writerAt struct {
	ctx context.Context
	w   io.WriterAt
}

func (w writerAt) WriteAt(p []byte, off int64) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.w.WriteAt(p, off)
}

// makeFile makes a file that fill fills, as a whole or not at all.
func makeFile(path string, force bool, fill func(*os.File) error) (err error) {
	if err := checkFree(path, force); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+rand.Text()),
		os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if err := errors.Join(fill(f), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := moveTo(f.Name(), path, force); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir brings the names in a directory to the disk, if its file system has a way.
func syncDir(path string) error {
	d, err := os.Open(path)
	if errors.Is(err, fs.ErrPermission) {
		return nil // it may be written and not read
	}
	if err != nil {
		return err
	}
	if err = d.Sync(); errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

// unfinished is the name that makeFile gives a file at first, with its own in it; a
// nestdbg that is killed leaves it.
var unfinished = regexp.MustCompile(`^\.(.+)\.[A-Z2-7]{26}$`)

// checkFree refuses early what moveTo would refuse after the work.
func checkFree(path string, force bool) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !st.Mode().IsRegular():
		return usagef("%s is not a regular file", path)
	case !force:
		return usagef("%s exists; --force replaces it", path)
	}
	return nil
}

// moveTo gives a file its name. Without force it takes no name that somebody took
// meanwhile.
func moveTo(from, to string, force bool) error {
	if force {
		return os.Rename(from, to)
	}
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS): // not on this file system
		if err := checkFree(to, false); err != nil {
			return err
		}
		return os.Rename(from, to)
	case errors.Is(err, unix.EEXIST):
		return usagef("%s exists; --force replaces it", to)
	case err != nil:
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// countingWriter counts, and fails when ctx is done.
type countingWriter struct {
	ctx  context.Context
	w    io.Writer
	size int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.w.Write(p)
	c.size += int64(n)
	return n, err
}
