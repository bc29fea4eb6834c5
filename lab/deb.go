package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// extractDeb unpacks the files of a package that keep accepts, by their names
// without "./" in front, into dir; see extractTar. Nothing is unpacked on the way:
// the package is read as a stream.
func extractDeb(ctx context.Context, deb, dir string, keep func(name string) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	errTar := extractTar(out, dir, keep)
	if errTar != nil {
		cancel() // it would wait for somebody to read the rest
	}
	if err := cmd.Wait(); err != nil && complaint.Len() > 0 {
		return fmt.Errorf("unpack %s: %s", deb, strings.TrimSpace(complaint.String()))
	} else if err := errors.Join(errTar, err); err != nil {
		return fmt.Errorf("unpack %s: %w", deb, err)
	}
	return nil
}

// extractTar unpacks the regular files that keep accepts into dir, and links from
// one place in it to another.
func extractTar(r io.Reader, dir string, keep func(name string) bool) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			// dpkg-deb pads behind the end and would die of a closed pipe.
			_, err := io.Copy(io.Discard, r)
			return err
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(h.Name, "./")
		isLink := h.Typeflag == tar.TypeSymlink && filepath.IsLocal(filepath.Join(filepath.Dir(name), h.Linkname)) &&
			!filepath.IsAbs(h.Linkname)
		if h.Typeflag != tar.TypeReg && !isLink || !keep(name) {
			continue
		}
		if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if isLink {
			err = root.Symlink(h.Linkname, name)
		} else {
			err = extractFile(root, name, h.FileInfo().Mode(), tr)
		}
		if err != nil {
			return err
		}
	}
}

func extractFile(root *os.Root, name string, mode os.FileMode, r io.Reader) error {
	// The owner can always read and remove it; what is executable stays so.
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode&0o755|0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}
