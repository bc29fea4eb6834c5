package lab

import (
	"fmt"
	"io"
	"path"
	"strings"
)

// cpioWriter writes an initramfs in the "newc" format (Linux document
// "initramfs buffer format"). The kernel accepts several archives behind one
// another, each starting at a multiple of 4 bytes, which Close provides.
type cpioWriter struct {
	w     io.Writer
	inode uint32
	dirs  map[string]bool
	err   error // the first; everything after it does nothing
}

const (
	cpioDir        = 0o040755
	cpioExecutable = 0o100755
	cpioSizeLimit  = 1<<32 - 1 // the header has eight hex digits
)

func newCPIO(w io.Writer) *cpioWriter {
	return &cpioWriter{w: w, dirs: map[string]bool{".": true}}
}

// File adds a file of exactly size bytes at name, an absolute path, and the
// directories above it. Every file is executable: an initramfs has one user.
func (c *cpioWriter) File(name string, size int64, content io.Reader) {
	if size > cpioSizeLimit {
		c.fail(fmt.Errorf("%s: %d bytes do not fit into an initramfs", name, size))
	}
	name = strings.TrimPrefix(path.Clean(name), "/")
	c.parents(path.Dir(name))
	c.header(name, cpioExecutable, size)
	if c.err != nil {
		return
	}
	n, err := io.Copy(c.w, io.LimitReader(content, size))
	if err == nil && n != size {
		err = fmt.Errorf("%s: %d bytes, expected %d", name, n, size)
	}
	c.fail(err)
	c.pad(size)
}

// Dir adds an empty directory.
func (c *cpioWriter) Dir(name string) {
	c.parents(strings.TrimPrefix(path.Clean(name), "/"))
}

func (c *cpioWriter) parents(dir string) {
	if c.dirs[dir] {
		return
	}
	c.dirs[dir] = true
	c.parents(path.Dir(dir))
	c.header(dir, cpioDir, 0)
}

// header writes one member's header and name, padded to a multiple of 4.
func (c *cpioWriter) header(name string, mode uint32, size int64) {
	c.inode++
	links := 1
	h := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, len(name)+1, 0, name)
	c.write([]byte(h))
	c.pad(int64(len(h)))
}

// Close writes the trailer. It does not close the underlying writer.
func (c *cpioWriter) Close() error {
	c.header("TRAILER!!!", 0, 0)
	return c.err
}

// pad completes written bytes to a multiple of 4.
func (c *cpioWriter) pad(written int64) { c.write(make([]byte, -written&3)) }

func (c *cpioWriter) write(b []byte) {
	if c.err == nil {
		_, err := c.w.Write(b)
		c.fail(err)
	}
}

func (c *cpioWriter) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}
