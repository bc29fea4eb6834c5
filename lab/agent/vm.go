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

// Where L1's initramfs holds what a VM is made of.
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
	runDir   string           // holds the socket of the VM's agent
	command  func() *exec.Cmd // makes the VM's QEMU, which ends when its guest reboots
	agent    io.ReadWriter    // the channel to L0; whole Writes are not torn by others

	mu      sync.Mutex
	run     *vmRun    // guarded by mu: the VM that runs or was the last to run; nil before
	console io.Writer // guarded by mu: nil until L1 has it
	early   []byte    // guarded by mu: what the VM said before there was a console
}

// vmRun is one life of a VM.
type vmRun struct {
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	agent   net.Conn      // valid after ready; nil if QEMU died first
	ready   chan struct{} // closed when agent is decided
	exited  chan struct{} // closed when QEMU has ended
	mu      sync.Mutex
	pending string // guarded by mu: ID of the last request passed on
}

// socket is where the VM's QEMU listens for its agent's channel.
func (s *vmSlot) socket() string { return filepath.Join(s.runDir, fmt.Sprintf("vm%d.agent", s.index)) }

// newSlot is the slot of the VM called vmINDEX.
func newSlot(index int, config Config, children *children) *vmSlot {
	s := &vmSlot{index: index, children: children, runDir: "/run", agent: newLatePort(VMPort(index))}
	s.command = func() *exec.Cmd { return vmCommand(s.index, s.socket(), config) }
	return s
}

// vmCommand is a VM. QEMU 7.2 emulates nested XSAVE and some of AVX wrong,
// hence the features that are left out.
func vmCommand(index int, socket string, config Config) *exec.Cmd {
	return exec.Command(VMQEMU,
		"-name", "vm"+strconv.Itoa(index),
		"-enable-kvm", "-cpu", "host,-xsave,-avx,-avx2,-pclmulqdq,-aes,-vaes,kvm-pv-eoi=off",
		"-M", "microvm,rtc=on,isa-serial=on",
		"-smp", strconv.Itoa(config.VMCPUs), "-m", fmt.Sprintf("%dM", config.VMMemory>>20),
		"-nodefaults", "-no-user-config", noReboot, "-display", "none",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-chardev", "socket,id=agent,server=on,wait=off,path="+socket,
		"-device", "virtio-serial-device", "-device", "virtserialport,chardev=agent,name="+AgentPort,
		"-kernel", VMKernel, "-initrd", VMInitramfs,
		"-append", strings.TrimSpace("console=ttyS0 quiet nowatchdog rcupdate.rcu_cpu_stall_suppress=1 "+config.VMAppend))
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
	os.Remove(s.socket())
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
	r := &vmRun{cmd: cmd, stdin: in, ready: make(chan struct{}), exited: make(chan struct{})}
	s.run = r
	go s.watch(r)
	go s.connect(r)
	return nil
}

// watch waits for the end of a VM and tells whoever waits for an answer.
func (s *vmSlot) watch(r *vmRun) {
	s.children.wait(r.cmd) // how it ended is in ProcessState
	close(r.exited)
	fmt.Fprintf(os.Stderr, "nestdbg lab: vm%d ended: %v\n", s.index, r.cmd.ProcessState)
	<-r.ready
	if r.agent != nil {
		r.agent.Close()
	}
	r.mu.Lock()
	id := r.pending
	r.mu.Unlock()
	if id != "" {
		// If it has been answered, nobody reads this.
		s.refuse(id)
	}
}

// connect joins the VM's agent to the slot's port.
func (s *vmSlot) connect(r *vmRun) {
	defer close(r.ready)
	for end := time.Now().Add(qemuDeadline); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if !r.alive() {
			return
		}
		conn, err := net.Dial("unix", s.socket())
		if err != nil {
			continue
		}
		r.agent = conn
		go io.Copy(s.agent, conn)
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

// forward passes one request on to the VM's agent.
func (s *vmSlot) forward(req wire.Request) {
	s.mu.Lock()
	r := s.run
	s.mu.Unlock()
	if r.alive() {
		r.mu.Lock()
		r.pending = req.ID
		r.mu.Unlock()
		<-r.ready
		line, err := req.Append(nil)
		if err == nil && r.agent != nil {
			if _, err = r.agent.Write(line); err == nil {
				return // the VM answers, or watch does
			}
		}
	}
	s.refuse(req.ID)
}

func (s *vmSlot) refuse(id string) {
	wire.WriteAnswer(s.agent, id, nil, fmt.Errorf("vm%d is not running", s.index))
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
