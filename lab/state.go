package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"nestdbg/lab/agent"
)

// ErrNotFound is the class of labs, machines and processes that are not there.
var ErrNotFound = errors.New("not found")

// Lab is a lab that was started, as far as it is known. It is kept in the lab's
// directory and is the form of --json.
type Lab struct {
	Name string `json:"name"`
	Kind string `json:"kind"` // LinuxKind or another
	// Running says whether QEMU was there when the lab was looked up.
	Running bool `json:"running"`
	// Over marks a lab whose machines have ended as they were to: what is left is
	// MemoryFile, to be looked at with -t.
	Over bool `json:"over,omitempty"`
	// Incomplete marks a lab whose start was cut short.
	Incomplete bool `json:"incomplete,omitempty"`
	PID        int  `json:"pid"` // of QEMU on L0
	// StartTicks is when QEMU started, in clock ticks since L0's boot: with PID it
	// names the process for good.
	StartTicks uint64 `json:"start_ticks"`
	Dir        string `json:"dir"`
	QMPPath    string `json:"qmp"`
	GDBPath    string `json:"gdb,omitempty"` // empty: started without a gdb server
	// MemoryFile is L1's RAM. With 2816 MiB or more, what is above 2 GiB in the file
	// is above 4 GiB in L1's physical memory (QEMU 7.2 hw/i386/pc_q35.c:pc_q35_init).
	MemoryFile string    `json:"memory_file"`
	Started    time.Time `json:"started"`
	Command    []string  `json:"command"` // QEMU's
	Machines   []Machine `json:"machines"`

	exited <-chan error // gets QEMU's end, if this process started it
}

// Machine is one machine of a lab as it was started.
type Machine struct {
	Name     string `json:"name"` // l1, vm0, vm1, ..., and vm0.vm0 for the VM in vm0
	CPUs     int    `json:"cpus"`
	MemBytes uint64 `json:"memory_bytes"`
	Kernel   Kernel `json:"kernel"` // empty for what is no Linux
	// Image is the ELF file of what is no Linux, and Base where its first byte is if
	// that is not where it was linked.
	Image string `json:"image,omitempty"`
	Base  uint64 `json:"base,omitempty"`
	// Release is what the machine itself says its kernel is; empty until it has
	// answered.
	Release string `json:"release,omitempty"`
	// BootSeconds is the time from QEMU's start to the machine's first answer.
	BootSeconds float64 `json:"boot_seconds,omitempty"`
	Log         string  `json:"log"` // file with what its console said
}

// process is the lab's QEMU.
func (l *Lab) process() process { return process{PID: l.PID, Start: l.StartTicks} }

// stateFile holds the Lab in a lab's directory.
const stateFile = "lab.json"

// stateHome is the directory of all labs' directories.
func stateHome(override string) (string, error) {
	return xdgHome(override, "XDG_STATE_HOME", ".local/state", "lab")
}

// cacheHome is the directory of everything that can be made again.
func cacheHome(override string) (string, error) {
	return xdgHome(override, "XDG_CACHE_HOME", ".cache", "lab")
}

// xdgHome follows the XDG Base Directory Specification: a relative path in the
// variable is ignored.
func xdgHome(override, variable, underHome, what string) (string, error) {
	if override != "" {
		return filepath.Abs(override)
	}
	base := os.Getenv(variable)
	if !filepath.IsAbs(base) {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("%w: set %s", err, variable)
		}
		base = filepath.Join(home, underHome)
	}
	return filepath.Join(base, "nestdbg", what), nil
}

// save writes the state in one step, so that a reader sees the old or the new.
func (l *Lab) save() error {
	text, err := json.MarshalIndent(l, "", "\t")
	if err != nil {
		return err
	}
	path := filepath.Join(l.Dir, stateFile)
	if err := os.WriteFile(path+".new", append(text, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// load reads the lab in dir; one without a readable file is Incomplete.
func load(dir string) (*Lab, error) {
	incomplete := &Lab{Name: filepath.Base(dir), Dir: dir, Incomplete: true}
	text, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(dir); err != nil {
			return nil, fmt.Errorf("lab %s: %w", filepath.Base(dir), ErrNotFound)
		}
		return incomplete, nil
	}
	if err != nil {
		return nil, err
	}
	var l Lab
	if err := json.Unmarshal(text, &l); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, stateFile), err)
	}
	l.Dir = dir
	l.Running = l.process().alive()
	return &l, nil
}

// List describes all labs of this user, by name. home replaces the directory
// that the environment gives, if it is not empty.
func List(home string) ([]*Lab, error) {
	home, err := stateHome(home)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(home)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []*Lab
	for _, e := range entries {
		if !e.IsDir() || !validName.MatchString(e.Name()) {
			continue
		}
		l, err := load(filepath.Join(home, e.Name()))
		if errors.Is(err, ErrNotFound) {
			continue // it went down meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

// Open finds a lab by name; home as in List. The error is in the class
// ErrNotFound if there is none.
func Open(home, name string) (*Lab, error) {
	home, err := stateHome(home)
	if err != nil {
		return nil, err
	}
	if !validName.MatchString(name) {
		return nil, fmt.Errorf("lab %q: %w", name, ErrNotFound)
	}
	return load(filepath.Join(home, name))
}

// Machine finds a machine that was started with the lab; nil if there is none.
func (l *Lab) Machine(name string) *Machine {
	at := slices.IndexFunc(l.Machines, func(m Machine) bool { return m.Name == name })
	if at < 0 {
		return nil
	}
	return &l.Machines[at]
}

// IsMachineName reports whether name is that of a machine that a lab can have: l1,
// vm0, ..., vm0.vm0, ....
func IsMachineName(name string) bool {
	if name == L1 {
		return true
	}
	all := agent.Config{}.Names()
	deep := agent.Config{Depth: maxDepth - 1}.Names()
	return slices.Contains(all, name) || slices.Contains(deep, name)
}
