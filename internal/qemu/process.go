package qemu

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Process is a running QEMU.
type Process struct {
	PID  int
	UID  int
	Args []string // the command line, program first
	Name string   // the machine's name (-name), or ""
	// QMP is the first QMP socket of the command line that QEMU listens on, zero if
	// there is none. Stub is its gdbstub, likewise.
	QMP, Stub Address
}

func (p Process) String() string {
	s := fmt.Sprintf("PID %d", p.PID)
	if p.Name != "" {
		s += fmt.Sprintf("  name %q", p.Name)
	}
	if p.QMP.IsZero() {
		return s + "  no QMP socket"
	}
	return s + "  QMP " + p.QMP.String()
}

// Processes returns the QEMU processes of this user, for root those of all users,
// in the order of their PIDs. Those that run inside a guest are not among them.
func Processes() ([]Process, error) { return proc.processes(os.Getuid()) }

func (p procFS) processes(uid int) ([]Process, error) {
	pids, err := p.pids()
	if err != nil {
		return nil, err
	}
	var out []Process
	for _, pid := range pids {
		q, ok := p.process(pid)
		if ok && (uid == 0 || uid == q.UID) {
			out = append(out, q)
		}
	}
	slices.SortFunc(out, func(a, b Process) int { return cmp.Compare(a.PID, b.PID) })
	return out, nil
}

// process describes one process; ok is false if it is not a QEMU or has ended.
func (p procFS) process(pid int) (q Process, ok bool) {
	args, ok := p.qemuArgs(pid)
	if !ok {
		return Process{}, false
	}
	uid, err := p.uid(pid)
	if err != nil {
		return Process{}, false
	}
	opts := parseOptions(args[1:])
	q = Process{PID: pid, UID: uid, Args: args, Name: opts.machineName()}
	q.QMP = p.firstListening(pid, opts.qmpDevices())
	q.Stub = p.firstListening(pid, []map[string]string{opts.stubDevice()})
	return q, true
}

// qemuArgs is the command line of a process; ok is false if that is not a QEMU.
func (p procFS) qemuArgs(pid int) (args []string, ok bool) {
	args, err := p.args(pid)
	if err != nil || len(args) == 0 {
		return nil, false
	}
	exe, err := os.Readlink(p.path(pid, "exe"))
	return args, isQEMU(args[0]) || err == nil && isQEMU(exe)
}

// Opened returns the PID of a QEMU that has a file open, as it has the memory of its
// machine; 0 if none has that this user may look into.
func Opened(file os.FileInfo) int { return proc.opened(file) }

func (p procFS) opened(file os.FileInfo) int {
	pids, err := p.pids()
	if err != nil {
		return 0
	}
	for _, pid := range pids {
		if _, ok := p.qemuArgs(pid); !ok {
			continue
		}
		fds, err := p.fds(pid)
		if err != nil {
			continue // somebody else's
		}
		for fd := range fds {
			if st, err := os.Stat(p.path(pid, "fd/"+strconv.Itoa(fd))); err == nil && os.SameFile(st, file) {
				return pid
			}
		}
	}
	return 0
}

// isQEMU tells by the program's name: "qemu-system-x86_64", and as some
// distributions call it "qemu-kvm" and "kvm".
func isQEMU(path string) bool {
	name := filepath.Base(strings.TrimSuffix(path, " (deleted)"))
	return strings.HasPrefix(name, "qemu-system-") || name == "qemu-kvm" || name == "kvm"
}

// firstListening returns the first of the socket devices that the process really
// listens on, as an address that works here.
func (p procFS) firstListening(pid int, devices []map[string]string) Address {
	for _, d := range devices {
		a := chardevAddress(d)
		if fd := d["fd"]; a.IsZero() && fd != "" {
			a = p.addressOfFD(pid, fd)
		}
		if a.IsZero() || !p.listens(pid, a) {
			continue
		}
		if a.Network == "unix" {
			a.Addr = p.resolve(pid, a.Addr)
		}
		return a
	}
	return Address{}
}

// addressOfFD returns where a listening unix socket is bound that QEMU got from
// its parent as a descriptor, as libvirt does it.
func (p procFS) addressOfFD(pid int, fd string) Address {
	link, err := os.Readlink(p.path(pid, "fd/"+filepath.Base(fd)))
	if err != nil {
		return Address{}
	}
	inode, _ := socketInode(link)
	sockets, err := p.unixSockets(pid)
	if err != nil {
		return Address{}
	}
	for _, s := range sockets {
		if s.inode == inode && s.listening && s.path != "" {
			return Address{"unix", s.path}
		}
	}
	return Address{}
}
