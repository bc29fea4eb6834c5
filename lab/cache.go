package lab

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
)

// cache is the directory of what can be made again: packages, unpacked
// kernels, debug symbols, packed initramfses. Whatever appears in it is
// complete: it is made under another name and renamed. Two labs that make the
// same thing at the same time both succeed.
type cache struct{ dir string }

func (c cache) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

// make returns the directory called name, filled by fill if it is not there.
func (c cache) make(name string, fill func(dir string) error) (string, error) {
	target := c.path(name)
	if _, err := os.Stat(target); err == nil {
		return target, nil
	}
	return target, c.into(target, func(dir string) (string, error) {
		full := filepath.Join(dir, "d")
		if err := os.Mkdir(full, 0o755); err != nil {
			return "", err
		}
		return full, fill(full)
	})
}

// into gives f a temporary directory on the target's file system and renames
// what f made in it to target.
func (c cache) into(target string, f func(dir string) (made string, err error)) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(c.dir, ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	made, err := f(tmp)
	if err != nil {
		return err
	}
	err = os.Rename(made, target)
	if _, there := os.Stat(target); err != nil && there == nil {
		return nil // somebody else was faster with the same thing
	}
	return err
}

// writeFile is os.WriteFile that makes the directory.
func writeFile(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o644)
}

// hashFiles is the SHA-256 of the files' contents, in hex.
func hashFiles(paths []string) (string, error) {
	h := sha256.New()
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		_, err = io.Copy(h, f)
		f.Close()
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
