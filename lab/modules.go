package lab

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// moduleTree is the modules of one kernel. Debian's packages carry no
// modules.dep; what a module needs stands in the module itself.
type moduleTree struct {
	files   map[string]string // path by name, '-' written as '_'
	builtin map[string]bool   // names of what is in the kernel itself
}

// module is one module, ready to be loaded.
type module struct {
	name string
	data []byte // ELF, not compressed
}

// moduleLimit bounds one module, unpacked, in bytes.
const moduleLimit = 64 << 20

func readModuleTree(dir string) (*moduleTree, error) {
	t := &moduleTree{files: make(map[string]string), builtin: make(map[string]bool)}
	err := filepath.WalkDir(filepath.Join(dir, "kernel"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			if name, ok := moduleName(path); ok {
				t.files[name] = path
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	// Without the list nothing counts as built in; modules alone may be enough.
	list, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for line := range strings.Lines(string(list)) {
		if name, ok := moduleName(strings.TrimSpace(line)); ok {
			t.builtin[name] = true
		}
	}
	return t, nil
}

// moduleName is the name the kernel gives to the module in a file.
func moduleName(path string) (string, bool) {
	base, rest, ok := strings.Cut(filepath.Base(path), ".ko")
	if !ok || rest != "" && rest != ".xz" && rest != ".zst" && rest != ".gz" {
		return "", false
	}
	return strings.ReplaceAll(base, "-", "_"), true
}

// closure returns the named modules and all that they need, in an order in
// which they can be loaded. What is built in is left out.
func (t *moduleTree) closure(names ...string) ([]module, error) {
	var out []module
	seen := make(map[string]bool)
	var add func(name, neededBy string) error
	add = func(name, neededBy string) error {
		name = strings.ReplaceAll(name, "-", "_")
		if seen[name] || t.builtin[name] {
			return nil
		}
		seen[name] = true
		path, ok := t.files[name]
		if !ok {
			return fmt.Errorf("the kernel has no module %s%s: %w", name, neededBy, ErrNotFound)
		}
		data, err := readModule(path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		deps, err := moduleDepends(data)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, dep := range deps {
			if err := add(dep, ", which "+name+" needs"); err != nil {
				return err
			}
		}
		out = append(out, module{name: name, data: data})
		return nil
	}
	for _, name := range names {
		if err := add(name, ""); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// optional returns the first n of the named modules that exist and need no other.
func (t *moduleTree) optional(n int, names ...string) []module {
	var out []module
	for _, name := range names {
		mods, err := t.closure(name)
		if err == nil && len(mods) == 1 && len(out) < n {
			out = append(out, mods...)
		}
	}
	return out
}

// readModule reads a module and unpacks it.
func readModule(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = f
	switch filepath.Ext(path) {
	case ".xz":
		r, err = xz.NewReader(f)
	case ".gz":
		r, err = gzip.NewReader(f)
	case ".zst":
		var z *zstd.Decoder
		if z, err = zstd.NewReader(f, zstd.WithDecoderConcurrency(1)); err == nil {
			defer z.Close()
		}
		r = z
	}
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(r, moduleLimit+1))
	if err != nil {
		return nil, err
	}
	if len(data) > moduleLimit {
		return nil, fmt.Errorf("larger than %d bytes", moduleLimit)
	}
	return data, nil
}

// moduleDepends reads "depends=" from a module's section .modinfo, which holds
// strings that end in NUL (Linux 6.1 include/linux/moduleparam.h:MODULE_INFO).
func moduleDepends(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("no section .modinfo: not a kernel module")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	for _, field := range strings.Split(string(info), "\x00") {
		if deps, ok := strings.CutPrefix(field, "depends="); ok && deps != "" {
			return strings.Split(deps, ","), nil
		}
	}
	return nil, nil
}
