package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// With a kernel, the monitor's VM runs Linux. It has the machine but for its memory, and
// no channel: what it says of itself goes to the serial line.

const (
	monitorLinuxMemory = 190 << 20              // RAM_END of monitor/linux.c without the hole
	monitorLinuxLeast  = monitorLeast + 128<<20 // of L1: with room for what the loader brings
	// linuxReady is the last of what the guest says, and linuxTold begins what it was asked.
	linuxReady = "guest: ready"
	linuxTold  = "guest: told "
	linuxBox   = "/bin/busybox"
)

// linuxInit is the init of that Linux: what tests want to know, then what it is told to do.
const linuxInit = "#!" + linuxBox + ` sh
b=` + linuxBox + `
$b mkdir -p /proc /dev
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
exec < /dev/ttyS0 > /dev/ttyS0 2>&1
tell() { echo "` + linuxTold + `$1"; shift; "$@"; echo "` + linuxTold + `end"; }
tell release $b uname -r
tell symbols $b grep -E ' (init_task|schedule|vfs_read|linux_banner|init_uts_ns|do_idle)$' /proc/kallsyms
tell tasks $b sh -c "$b cat /proc/[0-9]*/stat | $b cut -d' ' -f1,2"
tell log $b dmesg
echo "` + linuxReady + `"
while read line; do $b sh -c "$line"; done # what somebody says on the console
while :; do $b sleep 3600; done
`

// checkMonitorLinux checks what concerns a Linux in the monitor's VM.
func (o Options) checkMonitorLinux() error {
	switch {
	case o.Kernel == "":
		return nil
	case o.VMs != 1 || o.CPUs != 1:
		return fmt.Errorf("%d VMs, %d CPUs: a Linux under the monitor has the machine for itself, 1 CPU", o.VMs, o.CPUs)
	case o.Memory < monitorLinuxLeast:
		return fmt.Errorf("memory of %dM: the monitor needs %dM for a Linux", o.Memory>>20, monitorLinuxLeast>>20)
	}
	return nil
}

// prepareMonitorLinux replaces the program of the monitor's VM.
func (l *Lab) prepareMonitorLinux(ctx context.Context, c cache, o Options) (file string, err error) {
	k, err := findKernel(ctx, c, o.Kernel, o.Modules, o.Progress)
	if err != nil {
		return "", err
	}
	box, err := exec.LookPath("busybox")
	if err != nil || !isStatic(box) {
		return "", errors.New("this lab needs packages that are not installed: apt-get install busybox-static")
	}
	members := []member{{name: "/init", data: []byte(linuxInit)}, {name: linuxBox, path: box}}
	hash, err := hashMembers(append([]member{{name: "/kernel", path: k.Image}}, members...))
	if err != nil {
		return "", err
	}
	l.Machines[1] = Machine{Name: vmName(0), CPUs: 1, MemBytes: monitorLinuxMemory, Kernel: *k, Log: l.Machines[0].Log}
	dir, err := c.make(filepath.Join(monitorCache, "linux-"+hash[:16]), func(dir string) error {
		var initramfs bytes.Buffer
		if err := pack(&initramfs, members); err != nil {
			return err
		}
		kernel, err := os.ReadFile(k.Image)
		if err != nil {
			return err
		}
		var b bytes.Buffer
		for _, n := range []int{len(kernel), initramfs.Len()} {
			b.Write(binary.LittleEndian.AppendUint64(nil, uint64(n)))
		}
		b.Write(kernel)
		if _, err := io.Copy(&b, &initramfs); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "linux"), b.Bytes(), 0o644)
	})
	return filepath.Join(dir, "linux"), err
}

// LinuxTold is what the Linux under the monitor said of itself: "release", "symbols",
// "tasks" or "log".
func (l *Lab) LinuxTold(what string) ([]string, error) {
	said, err := os.ReadFile(l.Machines[0].Log)
	if err != nil {
		return nil, err
	}
	text := strings.ReplaceAll(string(said), "\r", "")
	_, rest, ok := strings.Cut(text, "\n"+linuxTold+what+"\n")
	body, _, end := strings.Cut(rest, "\n"+linuxTold+"end\n")
	if !ok || !end {
		return nil, fmt.Errorf("vm0 told nothing of %q: %w", what, ErrNotFound)
	}
	return strings.Split(body, "\n"), nil
}
