// Package debugfile finds files with debug information on this host, by the
// build id that a running kernel or module carries. A name alone is never
// enough: a file is used only if its own build id is the same.
package debugfile

import (
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// Finder searches directories in order. It is safe for concurrent use.
type Finder struct {
	dirs []string
	// Ask, if not nil, is asked for a build id that no directory has; it returns
	// a path or "".
	Ask func(buildID string) string

	mu      sync.Mutex
	modules map[string]map[string][]string // files by module name, by release; guarded by mu
}

// system is where distributions put debug information.
const system = "/usr/lib/debug"

// New returns a finder for the given directories, searched first, and the
// system's own.
func New(dirs ...string) *Finder {
	return &Finder{dirs: append(append([]string(nil), dirs...), system), modules: make(map[string]map[string][]string)}
}

// Kernel finds the vmlinux with this build id, "" if there is none. release is
// as in uname -r; buildID is hexadecimal.
func (f *Finder) Kernel(buildID, release string) string {
	if buildID == "" {
		return ""
	}
	var names []string
	for _, d := range f.dirs {
		for _, root := range []string{d, filepath.Join(d, system)} {
			names = append(names,
				byBuildID(root, buildID),
				filepath.Join(root, "boot", "vmlinux-"+release),
				filepath.Join(root, "vmlinux-"+release),
				filepath.Join(root, "vmlinux"),
				filepath.Join(root, "lib", "modules", release, "vmlinux"))
		}
		if st, err := os.Stat(d); err == nil && st.Mode().IsRegular() {
			names = append(names, d) // --symbols may name the file itself
		}
	}
	names = append(names, filepath.Join("/lib/modules", release, "build", "vmlinux"))
	return f.orAsk(buildID, firstWith(buildID, names))
}

// Module finds a kernel module's file with this build id, "" if there is none.
func (f *Finder) Module(buildID, release, name string) string {
	if buildID == "" {
		return ""
	}
	var names []string
	for _, d := range f.dirs {
		names = append(names, byBuildID(d, buildID), byBuildID(filepath.Join(d, system), buildID))
	}
	names = append(names, f.moduleFiles(release)[canonical(name)]...)
	return f.orAsk(buildID, firstWith(buildID, names))
}

// orAsk returns path, or if that is "" what Ask finds.
func (f *Finder) orAsk(buildID, path string) string {
	if path != "" || f.Ask == nil {
		return path
	}
	return firstWith(buildID, []string{f.Ask(buildID)})
}

// Debuginfod asks the servers of DEBUGINFOD_URLS through the program
// debuginfod-find (elfutils), which keeps what it downloads in its own cache.
func Debuginfod(buildID string) string {
	out, err := exec.Command("debuginfod-find", "debuginfo", buildID).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

func byBuildID(root, id string) string {
	if len(id) < 3 {
		return ""
	}
	return filepath.Join(root, ".build-id", id[:2], id[2:]+".debug")
}

func firstWith(buildID string, names []string) string {
	for _, n := range names {
		if n == "" {
			continue
		}
		if id, err := BuildID(n); err == nil && id == buildID {
			if abs, err := filepath.Abs(n); err == nil {
				return abs
			}
		}
	}
	return ""
}

// moduleFiles indexes the module files of a release in all directories, once.
func (f *Finder) moduleFiles(release string) map[string][]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m, ok := f.modules[release]; ok {
		return m
	}
	index := make(map[string][]string)
	for _, d := range f.dirs {
		for _, root := range []string{d, filepath.Join(d, system)} {
			indexModules(filepath.Join(root, "lib", "modules", release), index)
		}
	}
	f.modules[release] = index
	return index
}

// maxModuleFiles bounds a walk over a directory tree that is none of modules.
const maxModuleFiles = 50000

func indexModules(root string, index map[string][]string) {
	seen := 0
	// Whatever cannot be read is not there; the walk has no other errors.
	_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if seen++; seen > maxModuleFiles {
			return fs.SkipAll
		}
		if err != nil || e.IsDir() {
			return nil
		}
		name := strings.TrimSuffix(e.Name(), ".debug")
		if base, ok := strings.CutSuffix(name, ".ko"); ok {
			index[canonical(base)] = append(index[canonical(base)], path)
		}
		return nil
	})
}

// canonical is a module's name as the kernel spells it: file names may have
// dashes where the kernel has underscores.
func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

var errNoBuildID = errors.New("no build id")

// BuildID reads the GNU build id of an ELF file, in hexadecimal.
func BuildID(path string) (string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for _, s := range f.Sections {
		if s.Type != elf.SHT_NOTE || s.Size > maxNotes {
			continue
		}
		b, err := s.Data()
		if err != nil {
			continue
		}
		if id := idInNotes(b, f.ByteOrder); id != "" {
			return id, nil
		}
	}
	return "", errNoBuildID
}

// maxNotes bounds the size of a note section that is looked at.
const maxNotes = 1 << 20

// idInNotes walks ELF notes: u32 namesz, descsz, type, then name and
// descriptor, each padded to 4 bytes (gABI, "Note Section"). NT_GNU_BUILD_ID is 3.
func idInNotes(b []byte, order binary.ByteOrder) string {
	for len(b) >= 12 {
		name, desc, typ := uint64(order.Uint32(b)), uint64(order.Uint32(b[4:])), order.Uint32(b[8:])
		nameEnd := 12 + (name+3)&^3
		descEnd := nameEnd + (desc+3)&^3
		if nameEnd+desc > uint64(len(b)) {
			return ""
		}
		if typ == 3 && name == 4 && string(b[12:15]) == "GNU" {
			return hex.EncodeToString(b[nameEnd : nameEnd+desc])
		}
		b = b[min(descEnd, uint64(len(b))):]
	}
	return ""
}

// AllocSections lists the sections of an ELF file that occupy memory, in file
// order, the order in which gdb wants their addresses.
func AllocSections(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	for _, s := range f.Sections {
		if s.Flags&elf.SHF_ALLOC != 0 {
			out = append(out, s.Name)
		}
	}
	return out, nil
}

// FirstSegment is the link address of an ELF file's first PT_LOAD.
func FirstSegment(path string) (uint64, error) {
	all, err := Segments(path)
	if err != nil {
		return 0, err
	}
	return all[0], nil
}

// Segments are the link addresses of an ELF file's PT_LOADs, in its order. A file
// without any is an error.
func Segments(path string) ([]uint64, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []uint64
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD {
			out = append(out, p.Vaddr)
		}
	}
	if len(out) == 0 {
		return nil, errors.New(path + ": no loadable segment")
	}
	return out, nil
}
