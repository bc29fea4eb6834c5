package agent

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"nestdbg/lab/wire"
)

// Where the initramfs of a machine with VMs holds what a VM is made of.
const (
	VMKernel    = "/vm/vmlinuz"
	VMInitramfs = "/vm/initramfs"
	VMQEMU      = "/usr/bin/qemu-system-x86_64"
)

// qemuDeadline bounds the wait for a VM's QEMU to open its agent's socket.
const qemuDeadline = 60 * time.Second

// vmSlot is one VM by its number. The slot is there for good, and so are its
// channels to L0; the VM in it is started and killed.
type vmSlot struct {
	index    int
	children *children
	command  func() *exec.Cmd // makes the VM's QEMU, which ends when its guest reboots
	channels []*channel       // to its agent, and to those of the VMs in it
	inside   []string         // the machines in it, by name

	mu      sync.Mutex
	run     *vmRun    // guarded by mu: the VM that runs or was the last to run; nil before
	console io.Writer // guarded by mu: nil until the machine has it
	early   []byte    // guarded by mu: what the VM said before there was a console
}

// channel leads from L0's side to one agent: a VM's own, or that of a VM in it,
// where the VM does as we do.
type channel struct {
	socket string        // where the VM's QEMU listens for it
	up     io.ReadWriter // towards L0; whole Writes are not torn by others
}

// vmRun is one life of a VM.
type vmRun struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	links  []*link       // of the slot's channels
	exited chan struct{} // closed when QEMU has ended
}

// link is a channel during one life of a VM.
type link struct {
	conn    net.Conn      // valid after ready; nil if QEMU died first
	ready   chan struct{} // closed when conn is decided
	mu      sync.Mutex
	pending string // guarded by mu: ID of the last request passed on
}

// runDir holds the sockets of the VMs' channels.
const runDir = "/run"

// newSlot is the slot of the VM called vmINDEX.
func newSlot(index int, config Config, children *children) *vmSlot {
	s := &vmSlot{index: index, children: children, inside: config.namesIn(index)[1:]}
	for _, name := range config.namesIn(index) {
		ch := &channel{socket: agentSocket(name), up: newLatePort(VMPort(name))}
		if config.Tell {
			ch.up = newTold()
		}
		s.channels = append(s.channels, ch)
	}
	s.command = func() *exec.Cmd { return vmCommand(s.index, config) }
	return s
}

func agentSocket(name string) string   { return filepath.Join(runDir, name+".agent") }
func consoleSocket(name string) string { return filepath.Join(runDir, name+".console") }

// vmCommand is a VM. QEMU 7.2 emulates nested XSAVE and some of AVX wrong,
// hence the features that are left out.
func vmCommand(index int, config Config) *exec.Cmd {
	self, kernelArgs := vmName(index), config.VMAppend
	if config.Deeper() {
		kernelArgs = strings.TrimSpace(config.OfVM().CommandLine() + " " + kernelArgs)
	}
	cmd := exec.Command(VMQEMU,
		"-name", self,
		"-enable-kvm", "-cpu", "host,-xsave,-avx,-avx2,-pclmulqdq,-aes,-vaes,kvm-pv-eoi=off",
		"-M", "microvm,rtc=on,isa-serial=on",
		"-smp", strconv.Itoa(config.VMCPUs), "-m", fmt.Sprintf("%dM", config.VMMemory>>20),
		"-nodefaults", "-no-user-config", noReboot, "-display", "none",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-chardev", socketChardev("agent", agentSocket(self)),
		"-device", "virtio-serial-device", "-device", "virtserialport,chardev=agent,name="+AgentPort,
		"-kernel", VMKernel, "-initrd", VMInitramfs,
		"-append", strings.TrimSpace("console=ttyS0 quiet nowatchdog rcupdate.rcu_cpu_stall_suppress=1 "+kernelArgs))
	for _, name := range config.namesIn(index)[1:] {
		inside := strings.TrimPrefix(name, self+".")
		cmd.Args = append(cmd.Args,
			"-chardev", socketChardev(inside+".console", consoleSocket(name)),
			"-device", "virtconsole,chardev="+inside+".console",
			"-chardev", socketChardev(inside+".agent", agentSocket(name)),
			"-device", "virtserialport,chardev="+inside+".agent,name="+VMPort(inside))
	}
	return cmd
}

// socketChardev is a Unix socket that QEMU offers.
func socketChardev(id, path string) string {
	return "socket,id=" + id + ",server=on,wait=off,path=" + path
}

// noReboot makes a QEMU end when its guest reboots.
const noReboot = "-no-reboot"

// start starts the VM; it is an error if it runs. A VM that may reboot does so in
// the same QEMU.
func (s *vmSlot) start(mayReboot bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run.alive() {
		return fmt.Errorf("vm%d is running", s.index)
	}
	for _, ch := range s.channels {
		os.Remove(ch.socket)
	}
	cmd := s.command()
	if mayReboot {
		cmd.Args = slices.DeleteFunc(cmd.Args, func(arg string) bool { return arg == noReboot })
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = consoleWriter{s}, os.Stderr
	if err := s.children.start(cmd); err != nil {
		return fmt.Errorf("start vm%d: %w", s.index, err)
	}
	r := &vmRun{cmd: cmd, stdin: in, exited: make(chan struct{})}
	for _, ch := range s.channels {
		l := &link{ready: make(chan struct{})}
		r.links = append(r.links, l)
		go ch.connect(r, l)
	}
	s.run = r
	go s.watch(r)
	return nil
}

// watch waits for the end of a VM and tells whoever waits for an answer.
func (s *vmSlot) watch(r *vmRun) {
	s.children.wait(r.cmd) // how it ended is in ProcessState
	close(r.exited)
	fmt.Fprintf(os.Stderr, "nestdbg lab: vm%d ended: %v\n", s.index, r.cmd.ProcessState)
	for i, l := range r.links {
		<-l.ready
		if l.conn != nil {
			l.conn.Close()
		}
		l.mu.Lock()
		id := l.pending
		l.mu.Unlock()
		if id != "" {
			// If it has been answered, nobody reads this.
			s.refuse(s.channels[i], id)
		}
	}
}

// connect joins a channel of the VM to the machine's port.
func (ch *channel) connect(r *vmRun, l *link) {
	defer close(l.ready)
	for end := time.Now().Add(qemuDeadline); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if !r.alive() {
			return
		}
		conn, err := net.Dial("unix", ch.socket)
		if err != nil {
			continue
		}
		l.conn = conn
		go io.Copy(ch.up, conn)
		return
	}
}

// alive reports whether the VM runs; a nil run does not.
func (r *vmRun) alive() bool {
	if r == nil {
		return false
	}
	select {
	case <-r.exited:
		return false
	default:
		return true
	}
}

// kill ends the VM at once and waits for it.
func (s *vmSlot) kill() error {
	s.mu.Lock()
	r := s.run
	s.mu.Unlock()
	if !r.alive() {
		return fmt.Errorf("vm%d is not running", s.index)
	}
	if err := r.cmd.Process.Kill(); err != nil {
		return err
	}
	<-r.exited
	return nil
}

// String is the slot's line in "vm list".
func (s *vmSlot) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.run == nil:
		return fmt.Sprintf("vm%d never started", s.index)
	case s.run.alive():
		return fmt.Sprintf("vm%d running pid %d", s.index, s.run.cmd.Process.Pid)
	default:
		return fmt.Sprintf("vm%d ended %v", s.index, s.run.cmd.ProcessState)
	}
}

// forward passes one request of a channel on.
func (s *vmSlot) forward(index int, req wire.Request) {
	s.mu.Lock()
	r := s.run
	s.mu.Unlock()
	if r.alive() {
		l := r.links[index]
		l.mu.Lock()
		l.pending = req.ID
		l.mu.Unlock()
		<-l.ready
		line, err := req.Append(nil)
		if err == nil && l.conn != nil {
			if _, err = l.conn.Write(line); err == nil {
				return // the VM answers, or watch does
			}
		}
	}
	s.refuse(s.channels[index], req.ID)
}

func (s *vmSlot) refuse(ch *channel, id string) {
	wire.WriteAnswer(ch.up, id, nil, fmt.Errorf("vm%d is not running", s.index))
}

// consoleWriter is where a VM's serial line goes: the slot's console, once
// there is one.
type consoleWriter struct{ s *vmSlot }

func (c consoleWriter) Write(p []byte) (int, error) {
	c.s.mu.Lock()
	console := c.s.console
	if console == nil {
		c.s.early = append(c.s.early, p...)
	}
	c.s.mu.Unlock()
	if console == nil {
		return len(p), nil
	}
	return console.Write(p)
}
