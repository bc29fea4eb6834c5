package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// escapeKey, Ctrl-], leaves a console.
const escapeKey = 0x1d

// Console connects in and out with the console of a machine until in ends, the
// escape key is read, the machine's QEMU ends or ctx does. If in is a terminal
// it is in raw mode meanwhile.
func (l *Lab) Console(ctx context.Context, machine string, in *os.File, out io.Writer) error {
	path, err := l.socket(machine, consoleSocket(machine))
	if err != nil {
		return err
	}
	conn, err := l.dial(ctx, path)
	if err != nil {
		return fmt.Errorf("console of %s: %w", machine, err)
	}
	defer conn.Close()
	restore, err := makeRaw(in)
	if err != nil {
		return err
	}
	defer restore()
	ended := make(chan error, 2)
	go func() {
		_, err := io.Copy(out, conn)
		ended <- err
	}()
	go func() { ended <- copyKeys(conn, in) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// copyKeys copies what is typed up to the escape key.
func copyKeys(w io.Writer, r io.Reader) error {
	buf := make([]byte, 256)
	for {
		n, err := r.Read(buf)
		typed := buf[:n]
		leave := bytes.IndexByte(typed, escapeKey)
		if leave >= 0 {
			typed = typed[:leave]
		}
		if _, err := w.Write(typed); err != nil {
			return err
		}
		if leave >= 0 || err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// makeRaw puts a terminal into raw mode, as cfmakeraw does, and returns how to
// undo that. A file that is no terminal stays as it is.
func makeRaw(f *os.File) (restore func(), err error) {
	fd := int(f.Fd())
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return func() {}, nil
	}
	raw := *old
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP |
		unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		return nil, err
	}
	return func() { unix.IoctlSetTermios(fd, unix.TCSETS, old) }, nil
}
