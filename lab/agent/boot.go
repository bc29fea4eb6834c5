package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Where the lab puts modules in an initramfs, each directory loaded as a whole
// in the order of the file names.
const (
	// ModulesDir holds one directory per group of modules.
	ModulesDir = "/modules"
	// KVMGroup is what L1 needs to run VMs.
	KVMGroup = "kvm"
	// ChannelGroup is what a machine needs to be asked.
	ChannelGroup = "channel"
	// ExtraGroup is loaded for show.
	ExtraGroup = "extra"

	kvmModules     = ModulesDir + "/" + KVMGroup
	channelModules = ModulesDir + "/" + ChannelGroup
	extraModules   = ModulesDir + "/" + ExtraGroup
)

// Busybox is the shell and small tools of the lab's machines.
const Busybox = "/bin/busybox"

// toolPath is where `busybox --install` puts its links.
const toolPath = "PATH=/bin:/usr/bin"

// mountAll mounts what every init mounts first.
func mountAll() error {
	for _, m := range []struct{ fs, dir string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fs, m.dir, m.fs, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	return nil
}

// loadModules loads every module in dir; one that is there already is no error.
func loadModules(dir string) error {
	files, err := filepath.Glob(dir + "/*.ko")
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := loadModule(file); err != nil {
			return fmt.Errorf("load %s: %w", file, err)
		}
	}
	return nil
}

func loadModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// shell keeps a shell on the terminal tty, for people.
func shell(children *children, tty string) {
	install := exec.Command(Busybox, "--install", "-s", "/bin")
	if err := children.run(install); err != nil {
		fmt.Fprintln(os.Stderr, "nestdbg lab agent: busybox:", err)
		return
	}
	for {
		if err := children.run(shellOn(tty)); errors.Is(err, os.ErrNotExist) {
			return
		}
		time.Sleep(time.Second) // a shell that cannot live must not eat the CPU
	}
}

// shellOn is a shell in a session of its own, so that Ctrl-C works.
func shellOn(tty string) *exec.Cmd {
	// The redirection is the shell's: opening it there makes it the controlling
	// terminal of the new session.
	cmd := exec.Command(Busybox, "sh", "-c", "exec sh -i <"+tty+" >"+tty+" 2>&1")
	cmd.Env = []string{toolPath, "HOME=/", "TERM=linux"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

// openRaw opens a terminal for bytes as they are: no echo, no line editing.
func openRaw(path string) (io.ReadWriteCloser, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		f.Close()
		return nil, err
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
