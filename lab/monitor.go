package lab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// monitorSource is the hypervisor of labs of the kind "monitor". It is built where
// the lab is, from what is in this program: gdb finds the source beside the binary.
//
//go:embed monitor/*.c monitor/*.h monitor/*.S monitor/*.lds monitor/Makefile monitor/README.md
var monitorSource embed.FS

const (
	monitorCache = "monitor" // in the cache: directories by the hash of the source
	monitorELF   = "monitor.elf"
	programELF   = "program.elf"
	// MAX_VMS and MAX_CPUS of monitor/monitor.h.
	monitorMaxVMs  = 4
	monitorMaxCPUs = 16
	// monitorLeast is what it deals out: up to the end of large_page() of monitor/memory.c.
	monitorLeast = 512 << 20
	// monitorOver is the last line of a monitor that cannot go on; why is in the line before.
	monitorOver = "monitor: over"
	// monitorCrash begins the line in which it says why a VM runs no more.
	monitorCrash = "crash "
	// monitorReady is the line with which it says that every VM has begun its work.
	monitorReady = "monitor: ready"
)

func monitorDefaults(o *Options) {
	setDefault(&o.CPUs, 1)
	setDefault(&o.Memory, 4<<30) // beyond a hole, and with room for pages of 1 GiB
}

func (o Options) checkMonitor() error {
	switch {
	case o.VMs < 1 || o.VMs > monitorMaxVMs:
		return fmt.Errorf("%d VMs: the monitor starts 1 to %d", o.VMs, monitorMaxVMs)
	case o.CPUs < 1 || o.CPUs > monitorMaxCPUs:
		return fmt.Errorf("%d CPUs: the monitor uses 1 to %d", o.CPUs, monitorMaxCPUs)
	case o.Memory < monitorLeast:
		return fmt.Errorf("memory of %dM: the monitor needs %dM", o.Memory>>20, monitorLeast>>20)
	case o.Depth > 2:
		return fmt.Errorf("depth %d: there are no VMs in the monitor's VMs", o.Depth)
	case o.VMCPUs != 0 || o.VMMemory != 0 || o.VMAppend != "" || o.L1Kernel+o.L1Modules != "":
		return errors.New("L1 is no kernel, and a VM of it has one CPU and the memory that the monitor gives it")
	case strings.ContainsAny(o.Append, "\r\n"):
		return errors.New("the monitor's command line has no line breaks")
	}
	return o.checkMonitorLinux()
}

func (o Options) monitorArguments(f files) []string {
	line := []string{"-kernel", f.kernel, "-append", o.monitorCommandLine()}
	if f.initramfs != "" {
		line = append(line, "-initrd", f.initramfs)
	}
	return line
}

func (o Options) monitorCommandLine() string {
	line := fmt.Sprintf("vms=%d cpus=%d %s", o.VMs, o.CPUs, o.Append)
	if o.Kernel != "" {
		line += " guest=linux"
	}
	return strings.TrimSpace(line)
}

// prepareMonitor builds the monitor, if that has not been done before.
func prepareMonitor(ctx context.Context, l *Lab, c cache, o Options) (files, error) {
	qemu, err := findMonitorTools(o.QEMU)
	if err != nil {
		return files{}, err
	}
	dir, err := buildMonitor(ctx, c, o.Progress)
	if err != nil {
		return files{}, err
	}
	l.Machines = []Machine{{Name: L1, CPUs: o.CPUs, MemBytes: o.Memory, Image: filepath.Join(dir, monitorELF),
		Log: filepath.Join(l.Dir, machineLog(L1))}}
	for i := range o.VMs {
		l.Machines = append(l.Machines, Machine{Name: vmName(i), CPUs: 1, Image: filepath.Join(dir, programELF)})
	}
	f := files{qemu: qemu, kernel: l.Machines[0].Image}
	if o.Kernel != "" {
		f.initramfs, err = l.prepareMonitorLinux(ctx, c, o)
	}
	return f, err
}

// findMonitorTools finds QEMU, and names all packages that are missing.
func findMonitorTools(qemu string) (path string, err error) {
	var missing []string
	for _, p := range []struct{ program, pkg string }{
		{qemu, "qemu-system-x86"}, {"gcc", "gcc"}, {"ld", "binutils"}, {"make", "make"},
	} {
		found, err := exec.LookPath(p.program)
		if err != nil {
			missing = append(missing, p.pkg)
		}
		if p.program == qemu {
			path = found
		}
	}
	if _, err := os.Stat("/usr/include/elf.h"); err != nil {
		missing = append(missing, "libc6-dev")
	}
	if len(missing) > 0 {
		return "", fmt.Errorf("this lab needs packages that are not installed: apt-get install %s", strings.Join(missing, " "))
	}
	return path, nil
}

// buildMonitor returns the directory with the monitor, its program and their source.
func buildMonitor(ctx context.Context, c cache, progress func(string)) (string, error) {
	source, err := fs.Sub(monitorSource, "monitor")
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	err = fs.WalkDir(source, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(source, path)
		fmt.Fprintf(sum, "%s %d\n%s", path, len(text), text)
		return err
	})
	if err != nil {
		return "", err
	}
	name := filepath.Join(monitorCache, hex.EncodeToString(sum.Sum(nil))[:16])
	return c.make(name, func(dir string) error {
		progress("building the monitor")
		if err := os.CopyFS(dir, source); err != nil {
			return err
		}
		// The binaries name the directory in which their source will be.
		build := exec.CommandContext(ctx, "make", "-s", "HERE="+c.path(name))
		build.Dir = dir
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build the monitor: make: %w\n%s", err, bytes.TrimSpace(out))
		}
		return nil
	})
}

// waitMonitor waits until the monitor says that it is ready.
func waitMonitor(ctx context.Context, _ context.CancelCauseFunc, l *Lab, o Options) error {
	ctx, stop := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("not up after %v", o.Timeout))
	defer stop()
	for {
		said, err := os.ReadFile(l.Machines[0].Log)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		up, err := o.monitorUp(said)
		if err != nil {
			return err
		}
		if up {
			l.heard(said)
			o.Progress(fmt.Sprintf("the monitor was ready after %.1f s", l.Machines[0].BootSeconds))
			return l.save()
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// monitorUp reports whether the monitor has said that all is up, of a Linux that itself, and
// fails if it never will.
func (o Options) monitorUp(said []byte) (bool, error) {
	if before, _, over := bytes.Cut(said, []byte(monitorOver)); over {
		before = bytes.TrimSpace(before)
		return false, fmt.Errorf("the monitor gave up: %s", before[bytes.LastIndexByte(before, '\n')+1:])
	}
	if o.Kernel == "" {
		return bytes.Contains(said, []byte(monitorReady)), nil
	}
	if _, crash, ok := bytes.Cut(said, []byte("\n"+monitorCrash)); ok {
		crash, _, _ = bytes.Cut(crash, []byte("\r"))
		return false, fmt.Errorf("the monitor could not let Linux run on: %s", crash)
	}
	return bytes.Contains(said, []byte(linuxReady)), nil
}

// heard takes from what the monitor said where it loaded its program in each VM.
func (l *Lab) heard(said []byte) {
	for i := range l.Machines {
		l.Machines[i].BootSeconds = time.Since(l.Started).Seconds()
	}
	for name, t := range parseTruth(said) {
		if m := l.Machine(name); m != nil {
			m.Base = t.Program
		}
	}
	if release, err := l.LinuxTold("release"); err == nil {
		l.Machines[len(l.Machines)-1].Release = release[0]
	}
}

// Truth is what the monitor said of one VM when it made it: what nestdbg has to find.
type Truth struct {
	Program       uint64 // where its program was loaded
	Control       uint64 // its VMCB or VMCS
	FirstRoot     uint64 // of the VM's own tables
	SecondRoot    uint64
	First, Second []Leaf // in the order in which they were mapped
}

// Leaf is an entry of a page table that leads to memory.
type Leaf struct {
	From, To, Size uint64
	Rights         string // as in "rw-"
}

// Truth is the monitor's own word for every VM of a lab, by name.
func (l *Lab) Truth() (map[string]*Truth, error) {
	said, err := os.ReadFile(l.Machines[0].Log)
	return parseTruth(said), err
}

// parseTruth reads the lines that monitor/README.md describes.
func parseTruth(said []byte) map[string]*Truth {
	out := make(map[string]*Truth)
	for s := bufio.NewScanner(bytes.NewReader(said)); s.Scan(); {
		word := strings.Fields(s.Text())
		if len(word) < 4 || word[0] != "truth" || word[1] == L1 {
			continue
		}
		t := out[word[1]]
		if t == nil {
			t = &Truth{}
			out[word[1]] = t
		}
		var v [3]uint64
		for i := range min(len(v), len(word)-3) {
			v[i], _ = strconv.ParseUint(word[3+i], 0, 64) // a last word may be none
		}
		switch word[2] {
		case "program":
			t.Program = v[0]
		case "control":
			t.Control = v[0]
		case "stage1-root":
			t.FirstRoot = v[0]
		case "stage2-root":
			t.SecondRoot = v[0]
		case "stage1", "stage2":
			if len(word) != 7 {
				continue
			}
			leaf := Leaf{v[0], v[1], v[2], word[6]}
			if word[2] == "stage1" {
				t.First = append(t.First, leaf)
			} else {
				t.Second = append(t.Second, leaf)
			}
		}
	}
	return out
}

// Symbols is what "--symbols" of nestdbg is to be given for a machine that is no Linux,
// empty for one that is.
func (m *Machine) Symbols() string {
	switch {
	case m.Image == "":
		return ""
	case m.Base != 0:
		return fmt.Sprintf("%s=%s@%#x", m.Name, m.Image, m.Base)
	}
	return m.Name + "=" + m.Image
}
