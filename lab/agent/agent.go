// Package agent is what runs inside the lab's machines: the init process of
// L1, which starts the nested VMs, and that of a VM, which makes the load and
// tells the truth that tests compare with, and may start a VM too. It is the nestdbg binary itself,
// so the lab needs no compiler.
package agent

import (
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
)

// The roles of init processes.
const (
	L1Role = "l1"
	VMRole = "l2"
)

// Command is the hidden command of nestdbg that calls Main with what follows.
func Command() []string { return []string{"lab", "agent"} }

// self is a command that runs this program in another role.
func self(role string) *exec.Cmd {
	return exec.Command("/proc/self/exe", append(Command(), role)...)
}

// Main plays the role named by args[0] and returns when it is over, which for
// an init process is never unless it fails.
func Main(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("lab agent: no role given; it is started by the lab's machines")
	}
	switch role := args[0]; role {
	case L1Role, VMRole:
		// It mounts, loads modules and crashes kernels: not on somebody's desk.
		if os.Getpid() != 1 {
			return fmt.Errorf("lab agent %s: runs as init of a lab machine only", role)
		}
		// The heap is small and the CPU emulated: collect rarely, stay small.
		debug.SetGCPercent(400)
		err := runInit(role)
		fmt.Fprintf(os.Stderr, "nestdbg lab agent: %v\n", err)
		select {} // an init that ends is a kernel panic, and hides the reason
	case workRole:
		return work()
	case patternRole:
		return pattern(os.Stdin, os.Stdout)
	default:
		return fmt.Errorf("lab agent: unknown role %q", role)
	}
}

// runInit brings the machine up and serves requests until that fails.
func runInit(role string) error {
	if err := mountAll(); err != nil {
		return err
	}
	children := newChildren()
	verbs := commonVerbs(children)
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	if role == VMRole {
		return runVM(children, verbs, string(line))
	}
	return runL1(children, verbs, string(line))
}

// runVM is the init of a nested guest.
func runVM(children *children, verbs verbs, line string) error {
	var slots []*vmSlot
	if Hosts(line) {
		var err error
		if slots, err = startVMs(children, line, func(c Config) int { return c.VMs }); err != nil {
			return err
		}
	}
	if err := loadModules(channelModules); err != nil {
		return err
	}
	// Harmless modules, so that a list of modules has something in it; a kernel
	// that refuses one is still worth debugging.
	if err := loadModules(extraModules); err != nil {
		fmt.Fprintln(os.Stderr, "nestdbg lab agent:", err)
	}
	port, err := openPort(AgentPort)
	if err != nil {
		return err
	}
	joinVMs(slots, verbs)
	go startWork(children)
	go shell(children, "/dev/ttyS0")
	fmt.Println("nestdbg lab: the VM is up")
	return serve(port, verbs)
}
