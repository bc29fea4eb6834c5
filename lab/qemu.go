package lab

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"nestdbg/lab/agent"
)

// Names in a lab's directory. QEMU runs there and is given them as they are.
const (
	qmpSocket = "qmp"
	gdbSocket = "gdb"
	qemuLog   = "qemu.log"
)

// L1 is the name of the machine that QEMU runs on L0.
const L1 = "l1"

func vmName(index int) string             { return "vm" + strconv.Itoa(index) }
func consoleSocket(machine string) string { return machine + ".console" }
func agentSocket(machine string) string   { return machine + ".agent" }
func machineLog(machine string) string    { return machine + ".log" }

// socketLimit is the longest path of a Unix socket (Linux 6.1
// include/uapi/linux/un.h:UNIX_PATH_MAX, less the final NUL).
const socketLimit = 107

// checkSockets fails when a socket in dir would have too long a path.
func checkSockets(dir string) error {
	longest := filepath.Join(dir, consoleSocket(vmName(0)+"."+vmName(0)))
	if len(longest) > socketLimit {
		return fmt.Errorf("socket path %s has %d bytes, at most %d fit: "+
			"set XDG_STATE_HOME to a shorter directory or give a shorter --name",
			longest, len(longest), socketLimit)
	}
	return nil
}

// files are the paths that a lab's QEMU is given.
type files struct{ qemu, kernel, initramfs, memory string }

// qemuCommand is QEMU on L0.
func (o Options) qemuCommand(f files) []string {
	line := []string{f.qemu,
		"-name", "nestdbg-lab-" + o.Name,
		"-M", "q35,memory-backend=pc.ram", "-accel", "tcg", "-cpu", o.CPUModel,
		"-smp", strconv.Itoa(o.CPUs), "-m", fmt.Sprintf("%dM", o.Memory>>20),
		"-object", fmt.Sprintf("memory-backend-file,id=pc.ram,share=on,mem-path=%s,size=%dM",
			escape(f.memory), o.Memory>>20),
		"-display", "none", "-nodefaults", "-no-user-config", "-no-reboot",
		"-qmp", "unix:" + qmpSocket + ",server=on,wait=off",
		"-chardev", socketChardev("l1.console", consoleSocket(L1), machineLog(L1)),
		"-serial", "chardev:l1.console",
	}
	if !o.NoGDB {
		line = append(line, "-gdb", "unix:"+gdbSocket+",server=on,wait=off")
	}
	return append(line, kinds[o.Kind].arguments(o, f)...)
}

// linuxArguments are kernel and initramfs, and a channel to the agent of every machine.
func (o Options) linuxArguments(f files) []string {
	line := []string{
		"-kernel", f.kernel, "-initrd", f.initramfs, "-append", o.l1CommandLine(),
		"-device", "virtio-serial-pci,max_ports=31",
		"-chardev", socketChardev("l1.agent", agentSocket(L1), ""),
		"-device", "virtserialport,chardev=l1.agent,name=" + agent.AgentPort,
	}
	// In this order: L1 knows the consoles as /dev/hvc0, hvc1, ...
	for _, vm := range o.config().Names() {
		line = append(line,
			"-chardev", socketChardev(vm+".console", consoleSocket(vm), machineLog(vm)),
			"-device", "virtconsole,chardev="+vm+".console",
			"-chardev", socketChardev(vm+".agent", agentSocket(vm), ""),
			"-device", "virtserialport,chardev="+vm+".agent,name="+agent.VMPort(vm))
	}
	return line
}

// socketChardev is a Unix socket that QEMU offers; what the machine says is
// also written to log, whether somebody is connected or not.
func socketChardev(id, path, log string) string {
	s := "socket,id=" + id + ",path=" + path + ",server=on,wait=off"
	if log != "" {
		s += ",logfile=" + log + ",logappend=on"
	}
	return s
}

// escape makes a path a value in QEMU's comma-separated options.
func escape(path string) string { return strings.ReplaceAll(path, ",", ",,") }
