package cli

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// full is a disk that is full after some bytes.
type full struct {
	w    io.Writer
	left int
}

func (f *full) Write(p []byte) (int, error) {
	n, err := f.w.Write(p[:min(len(p), f.left)])
	f.left -= n
	if n < len(p) && err == nil {
		err = syscall.ENOSPC
	}
	return n, err
}

// long is more than writeFile buffers.
var long = strings.Repeat("0123456789", 1<<18)

type writeCase struct {
	name   string
	before func(t *testing.T, path string)
	force  bool
	write  func(path string, cancel func(), w io.Writer) error
	usage  bool   // what the person asked for cannot be done
	want   error  // the class of the error
	left   string // what the file has then; "" if it is not there
}

var writeCases = []writeCase{
	{name: "new", left: long},
	{name: "there", before: holds("old"), usage: true, left: "old"},
	{name: "there, by force", before: holds("old"), force: true, left: long},
	{name: "a directory", before: func(t *testing.T, path string) { must(t, os.Mkdir(path, 0o700)) }, force: true, usage: true},
	{name: "a link", force: true, usage: true, left: "kept", before: func(t *testing.T, path string) {
		target := filepath.Join(t.TempDir(), "target")
		holds("kept")(t, target)
		must(t, os.Symlink(target, path))
	}},
	{name: "full disk", want: syscall.ENOSPC, write: func(_ string, _ func(), w io.Writer) error {
		_, err := io.WriteString(&full{w, 2 << 20}, long)
		return err
	}},
	{name: "full disk, by force", before: holds("old"), force: true, want: syscall.ENOSPC, left: "old",
		write: func(string, func(), io.Writer) error { return syscall.ENOSPC }},
	{name: "interrupted", want: context.Canceled, write: func(_ string, cancel func(), w io.Writer) error {
		cancel()
		_, err := io.WriteString(w, long)
		return err
	}},
	{name: "interrupted at the end", want: context.Canceled, write: func(_ string, cancel func(), w io.Writer) error {
		_, err := io.WriteString(w, "short")
		cancel()
		return err
	}},
	{name: "somebody was faster", usage: true, left: "theirs", write: func(path string, _ func(), w io.Writer) error {
		if err := os.WriteFile(path, []byte("theirs"), 0o600); err != nil {
			return err
		}
		_, err := io.WriteString(w, long)
		return err
	}},
}

// TestWriteFile: a file is there as a whole or not at all, whatever goes wrong, and
// nothing else is ever left in its directory.
func TestWriteFile(t *testing.T) {
	for _, tt := range writeCases {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			if tt.before != nil {
				tt.before(t, path)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			wrote := false
			size, err := writeFile(ctx, path, tt.force, func(w io.Writer) error {
				wrote = true
				if tt.write != nil {
					return tt.write(path, cancel, w)
				}
				_, err := io.WriteString(w, long)
				return err
			})
			failed := tt.usage || tt.want != nil
			if (err != nil) != failed || isUsage(err) != tt.usage || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("error %v", err)
			}
			if !failed && size != int64(len(long)) || failed && size != 0 {
				t.Errorf("%d bytes", size)
			}
			if tt.usage && tt.write == nil && wrote {
				t.Error("worked before it refused")
			}
			if b, err := os.ReadFile(path); string(b) != tt.left || (err == nil) != (tt.left != "") {
				t.Errorf("%d bytes are left, %v", len(b), err)
			}
			entries, err := os.ReadDir(filepath.Dir(path))
			if err != nil || len(entries) > 1 {
				t.Errorf("%v, %v", entries, err)
			}
		})
	}
}

// TestWriteFileMode: a new file is as readable as the person wants new files to be.
func TestWriteFileMode(t *testing.T) {
	dir := t.TempDir()
	plain, ours := filepath.Join(dir, "plain"), filepath.Join(dir, "ours")
	must(t, os.WriteFile(plain, nil, 0o666))
	if _, err := writeFile(t.Context(), ours, false, func(io.Writer) error { return nil }); err != nil {
		t.Fatal(err)
	}
	var modes []fs.FileMode
	for _, path := range []string{plain, ours} {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		modes = append(modes, st.Mode())
	}
	if modes[0] != modes[1] {
		t.Errorf("modes %v", modes)
	}
}

func holds(text string) func(*testing.T, string) {
	return func(t *testing.T, path string) { must(t, os.WriteFile(path, []byte(text), 0o600)) }
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestModuleNames: what a guest calls its modules becomes no path.
func TestModuleNames(t *testing.T) {
	for name, want := range map[string]bool{"kvm_amd": true, "snd-hda": true, "8021q": true, "": false, ".": false, "..": false,
		"a/b": false, "/etc/x": false, "a b": false, "x\n": false, "é": false} {
		if moduleName.MatchString(name) != want {
			t.Errorf("%q: not %v", name, want)
		}
	}
}
