package session

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"nestdbg/internal/debugfile"
	"nestdbg/internal/gdbserver"
	"nestdbg/internal/kernelfile"
	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
)

// Files tells gdb which files describe the kernel and modules of each machine,
// and where they were loaded. It implements gdbserver.Symbols, and is safe for
// concurrent use.
type Files struct {
	session *Session
	finder  *debugfile.Finder
	log     *slog.Logger
	// loaded are the files that a person says are in machines, by machine.
	loaded map[string][]*debugfile.Image

	ending   context.CancelFunc // ends what Prepare began
	prepared sync.WaitGroup

	mu      sync.Mutex
	kernels *kernelfile.Kernels  // while Prepare is at work; nil else; guarded by mu
	dir     string               // private, for files made here; "" until needed; guarded by mu
	files   map[string]*madeFile // by what they describe; guarded by mu
}

// madeFile is a file that is made here when it is asked for first.
type madeFile struct {
	once sync.Once
	path string // "" if it could not be made; set once
}

// NewFiles searches the given directories first, then the system's, then asks
// ask, which may be nil, for a build id.
func NewFiles(s *Session, dirs []string, ask func(buildID string) string, log *slog.Logger) *Files {
	finder := debugfile.New(dirs...)
	finder.Ask = ask
	return &Files{session: s, finder: finder, log: log, files: make(map[string]*madeFile), ending: func() {}}
}

// Load says which files are loaded in machines, besides kernels: for what is no
// Linux. Preconditions: nobody has asked yet.
func (f *Files) Load(byMachine map[string][]*debugfile.Image) { f.loaded = byMachine }

// Close removes the files that were made for gdb. Nobody may ask any more.
func (f *Files) Close() error {
	f.ending()
	f.prepared.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dir == "" {
		return nil
	}
	return os.RemoveAll(f.dir)
}

// Prepare begins to make the files for the machines of the last look, in the order
// in which gdb will ask for them: it reads one while the next is made. Who asks for
// one that is not ready waits for that one. Preconditions: it is called once. When
// all are made it calls done.
func (f *Files) Prepare(done func()) {
	ctx, cancel := context.WithCancel(context.Background())
	f.ending = cancel
	f.setKernels(kernelfile.NewKernels(f.buildIDs()))
	f.prepared.Go(func() {
		defer done()
		defer f.setKernels(nil)
		for _, m := range f.session.Tower().Machines {
			pid := f.session.Number(m)
			for _, ask := range []func(){func() { f.ExecFile(pid) }, func() { f.Libraries(pid) }} {
				if ctx.Err() != nil {
					return
				}
				guarded(ask)
			}
		}
	})
}

// guarded does what somebody will do again and be told of then, if memory is lost meanwhile.
func guarded(f func()) {
	var lost error
	defer mem.Catch(&lost)()
	f()
}

func (f *Files) setKernels(k *kernelfile.Kernels) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kernels = k
}

// buildIDs are those of the kernels of the last look.
func (f *Files) buildIDs() (ids []string) {
	for _, m := range f.session.Tower().Machines {
		if k, err := f.session.Kernel(m); err == nil {
			ids = append(ids, k.BuildID)
		}
	}
	return ids
}

// writeKernel writes a kernel's file, with what is at hand of another's.
func (f *Files) writeKernel(k *linux.Kernel, w io.Writer) ([]string, error) {
	f.mu.Lock()
	kernels := f.kernels
	f.mu.Unlock()
	if kernels == nil {
		return kernelfile.Kernel(k, w)
	}
	return kernels.Write(k, w)
}

// newModules is what writes the files of a kernel's modules, with what is at hand of the
// kernel's own.
func (f *Files) newModules(k *linux.Kernel) *kernelfile.Modules {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kernels == nil {
		return kernelfile.NewModules(k)
	}
	return f.kernels.Modules(k)
}

// place returns a path for a file made here for one machine. The name may come from
// the guest: it leads to no other directory. Preconditions: f.mu is held.
func (f *Files) place(m *machine.Machine, name string) (string, error) {
	if f.dir == "" {
		dir, err := os.MkdirTemp("", "nestdbg-") // mode 0700
		if err != nil {
			return "", err
		}
		f.dir = dir
	}
	dir := filepath.Join(f.dir, m.Name)
	name = strings.ReplaceAll(name, "/", "_") // so neither "." nor ".." is left of a path
	return filepath.Join(dir, name), os.MkdirAll(dir, 0o700)
}

// made returns the path of a file that write makes, once for a key. What could
// not be made is not tried again, and only the first who asked is told why.
func (f *Files) made(m *machine.Machine, name, key string, write func(io.Writer) ([]string, error)) (string, error) {
	key = name + " " + key
	f.mu.Lock()
	file := f.files[key]
	if file == nil {
		file = &madeFile{}
		f.files[key] = file
	}
	path, err := f.place(m, fmt.Sprintf("%s-%d", name, len(f.files)))
	f.mu.Unlock()
	file.once.Do(func() {
		if err == nil {
			file.path, err = f.create(m, name, path, write)
		}
	})
	return file.path, err
}

// create writes a file and logs what is missing in it.
func (f *Files) create(m *machine.Machine, name, path string, write func(io.Writer) ([]string, error)) (string, error) {
	write = caught(write)
	out, err := os.Create(path)
	if err != nil {
		return "", err
	}
	buffered := bufio.NewWriterSize(out, 1<<20)
	problems, err := write(buffered)
	for _, p := range problems {
		f.log.Info("file for gdb", "machine", m.Name, "file", name, "problem", p)
	}
	if err := errors.Join(err, buffered.Flush(), out.Close()); err != nil {
		return "", errors.Join(err, os.Remove(path))
	}
	return path, nil
}

// caught makes a loss of memory an error of write.
func caught(write func(io.Writer) ([]string, error)) func(io.Writer) ([]string, error) {
	return func(w io.Writer) (problems []string, err error) {
		defer mem.Catch(&err)()
		return write(w)
	}
}

// frames appends the call-frame information that the vendor's files lack, for a
// kernel with these modules.
func (f *Files) frames(out []gdbserver.Library, m *machine.Machine, k *linux.Kernel, modules []linux.Module) []gdbserver.Library {
	key := fmt.Sprintf("%s %#x", m.Name, k.TextVA)
	for _, x := range modules {
		key += fmt.Sprintf(" %s@%#x", x.Name, x.Base)
	}
	path, err := f.made(m, "frames", key, func(w io.Writer) ([]string, error) { return kernelfile.Frames(k, w) })
	if err != nil {
		f.log.Warn("no frame information for assembly; backtraces through it may be wrong",
			"machine", m.Name, "error", err)
	}
	return f.linked(out, m, path, 0)
}

// linked appends a file with PT_LOADs that is so far from where it was linked; without a
// path nothing.
func (f *Files) linked(out []gdbserver.Library, m *machine.Machine, path string, slide uint64) []gdbserver.Library {
	if path == "" {
		return out
	}
	segments, err := debugfile.Segments(path)
	if err != nil {
		f.log.Warn("file for gdb", "machine", m.Name, "file", path, "error", err)
		return out
	}
	for i := range segments {
		segments[i] += slide
	}
	return append(out, gdbserver.Library{Path: path, Segments: segments})
}

// own gives a module's file a path of its own for each machine. gdb 13 shares
// what it knows of a file between inferiors, and adds the section addresses of
// the second machine to those of the first.
func (f *Files) own(m *machine.Machine, path string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	link, err := f.place(m, filepath.Base(path))
	if err != nil {
		return "", err
	}
	if old, err := os.Readlink(link); err == nil && old == path {
		return link, nil
	}
	return link, os.Symlink(path, link)
}

// machine is the machine of a process, nil if there is none.
func (f *Files) machine(pid int) *machine.Machine {
	t := f.session.Tower()
	if t == nil {
		return nil
	}
	for _, m := range t.Machines {
		if f.session.Number(m) == pid {
			return m
		}
	}
	return nil
}

// kernel is the Linux of a process's machine, nil if there is none.
func (f *Files) kernel(pid int) (*machine.Machine, *linux.Kernel) {
	m := f.machine(pid)
	if m == nil {
		return nil, nil
	}
	k, err := f.session.Kernel(m)
	if err != nil {
		f.log.Info("no kernel", "machine", m.Name, "reason", err)
		return m, nil
	}
	return m, k
}

// images are the files that a person says are loaded in a machine: the one that
// stands for the machine as a program does for a process, nil beside a kernel, and
// the others.
func (f *Files) images(m *machine.Machine, k *linux.Kernel) (program *debugfile.Image, others []*debugfile.Image) {
	if m == nil || len(f.loaded[m.Name]) == 0 {
		return nil, nil
	}
	all := f.loaded[m.Name]
	if k != nil {
		return nil, all
	}
	return all[0], all[1:]
}

// ExecFile implements gdbserver.Symbols.
func (f *Files) ExecFile(pid int) string {
	m, k := f.kernel(pid)
	if program, _ := f.images(m, k); program != nil {
		return program.Path
	}
	if k == nil {
		return ""
	}
	if path := f.finder.Kernel(k.BuildID, k.Release); path != "" {
		return path
	}
	path, err := f.made(m, "vmlinux", fmt.Sprintf("%s %#x %s", m.Name, k.TextVA, k.BuildID),
		func(w io.Writer) ([]string, error) { return f.writeKernel(k, w) })
	if err != nil {
		f.log.Warn("no vmlinux with this build id, and none can be made from memory; --symbols names a directory to search",
			"machine", m.Name, "release", k.Release, "build-id", k.BuildID, "error", err)
	}
	return path
}

// TextSegment implements gdbserver.Symbols.
func (f *Files) TextSegment(pid int) (uint64, bool) {
	slide, ok := f.Slide(pid)
	if !ok {
		return 0, false
	}
	first, err := debugfile.FirstSegment(f.ExecFile(pid))
	if err != nil {
		f.log.Warn("where the kernel's file belongs", "error", err)
		return 0, false
	}
	return first + slide, true
}

// Slide implements gdbserver.Symbols.
func (f *Files) Slide(pid int) (uint64, bool) {
	m, k := f.kernel(pid)
	if program, _ := f.images(m, k); program != nil {
		return program.Slide, true
	}
	switch path := f.ExecFile(pid); {
	case k == nil || path == "":
		return 0, false
	case f.isMade(path): // it is at run-time addresses already
		return 0, true
	}
	return k.Slide, true
}

func (f *Files) isMade(path string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dir != "" && strings.HasPrefix(path, f.dir+"/")
}

// Libraries implements gdbserver.Symbols: a kernel's modules, and what else a person
// says is loaded.
func (f *Files) Libraries(pid int) []gdbserver.Library {
	m, k := f.kernel(pid)
	var out []gdbserver.Library
	if k != nil {
		out = f.modules(m, k)
	}
	_, others := f.images(m, k)
	for _, i := range others {
		path, err := f.own(m, i.Path)
		if err != nil {
			f.log.Warn("image", "machine", m.Name, "file", i.Path, "error", err)
			continue
		}
		out = f.linked(out, m, path, i.Slide)
	}
	return out
}

// modules are a kernel's, from their files where they are at hand, else from memory.
func (f *Files) modules(m *machine.Machine, k *linux.Kernel) []gdbserver.Library {
	k.Forget() // modules come and go
	modules, problems, err := k.Modules()
	for _, p := range problems {
		f.log.Info("modules", "machine", m.Name, "problem", p)
	}
	if err != nil { // with those that were reached
		f.log.Warn("modules are not all known", "machine", m.Name, "found", len(modules), "error", err)
	}
	found := make([]string, len(modules))
	for i, mod := range modules {
		found[i] = f.finder.Module(mod.BuildID, k.Release, mod.Name)
	}
	var out []gdbserver.Library
	// Files that are made here have their call frames in them.
	if !f.isMade(f.ExecFile(f.session.Number(m))) || slices.ContainsFunc(found, func(path string) bool { return path != "" }) {
		out = f.frames(out, m, k, modules)
	}
	made := f.newModules(k)
	for i, mod := range modules {
		path := found[i]
		if path == "" {
			out = f.fromMemory(out, m, made, &mod)
			continue
		}
		sections, err := sectionAddresses(path, &mod)
		if err == nil {
			path, err = f.own(m, path)
		}
		if err != nil {
			f.log.Warn("module", "name", mod.Name, "error", err)
			continue
		}
		out = append(out, gdbserver.Library{Path: path, Sections: sections})
	}
	return out
}

// fromMemory appends a module as the kernel knows it.
func (f *Files) fromMemory(out []gdbserver.Library, m *machine.Machine, made *kernelfile.Modules, mod *linux.Module) []gdbserver.Library {
	path, err := f.made(m, mod.Name+".ko", fmt.Sprintf("%s %#x", m.Name, mod.Base),
		func(w io.Writer) ([]string, error) { return made.Write(mod, w) })
	if err != nil {
		f.log.Info("module", "name", mod.Name, "error", err)
	}
	return f.linked(out, m, path, 0)
}

// nowhere is where sections go that were freed after the module's start: gdb
// wants an address for each, and nothing is ever mapped in the middle of the
// non-canonical hole.
const nowhere = uint64(0x4000_0000_0000_0000)

// sectionAddresses lists where each ALLOC section of a module's file is, in
// file order, none left out.
func sectionAddresses(path string, mod *linux.Module) ([]uint64, error) {
	names, err := debugfile.AllocSections(path)
	if err != nil {
		return nil, err
	}
	loaded := make(map[string]uint64, len(mod.Sections))
	for _, s := range mod.Sections {
		loaded[s.Name] = uint64(s.Addr)
	}
	found := 0
	var out []uint64
	for i, name := range names {
		at, ok := loaded[name]
		if ok && !strings.HasPrefix(name, ".init") {
			found++
		} else {
			at = nowhere + uint64(i)<<32
		}
		out = append(out, at)
	}
	if found == 0 {
		return nil, fmt.Errorf("no section of %s is among those that %s has in memory", path, mod.Name)
	}
	return out, nil
}
