package agent

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Config is what the init of L1, or of a VM with VMs, is to do. It travels on the kernel command line,
// where a person can see and change it; the kernel ignores parameters with a
// dot that belong to no module (Linux document "The kernel's command-line
// parameters").
type Config struct {
	VMs      int    // how many are started at boot, named vm0, vm1, ...
	VMCPUs   int    // of each VM
	VMMemory uint64 // of each VM, bytes
	VMAppend string // added to the kernel command line of each VM
	Depth    int    // how many machines are inside each other below this one; 0 is 1
	Tell     bool   // there are no channels: what tests want to know is said on the console
}

const (
	keyVMs      = "nestdbg.vms"
	keyVMCPUs   = "nestdbg.vm_cpus"
	keyVMMemory = "nestdbg.vm_memory"
	keyVMAppend = "nestdbg.vm_append"
	keyDepth    = "nestdbg.depth"
	keyTell     = "nestdbg.tell"
)

// consoles is how many virtio consoles a Linux has (6.1
// drivers/tty/hvc/hvc_console.h:HVC_ALLOC_TTY_ADAPTERS).
const consoles = 8

// InnerMemory is what a VM in a VM has, in bytes.
const InnerMemory = 128 << 20

// MaxVMs is how many VMs the machine can have: each takes a console, and so does the
// VM in it.
func (c Config) MaxVMs() int { return consoles / max(c.Depth, 1) }

// Deeper reports whether VMs have VMs.
func (c Config) Deeper() bool { return c.Depth > 1 }

// OfVM is the configuration of a VM that has a VM.
func (c Config) OfVM() Config {
	return Config{VMs: 1, VMCPUs: 1, VMMemory: InnerMemory, VMAppend: c.VMAppend, Depth: c.Depth - 1}
}

// Names are the machines below this one that there can be, in the order of their
// consoles: VMs first, then the VMs in them.
func (c Config) Names() []string {
	var out []string
	for i := range c.MaxVMs() {
		out = append(out, vmName(i))
	}
	return append(out, c.inner()...)
}

// inner are those of Names that are in VMs.
func (c Config) inner() []string {
	var out []string
	inside := ""
	for range c.Depth - 1 {
		inside += "." + vmName(0)
		for i := range c.MaxVMs() {
			out = append(out, vmName(i)+inside)
		}
	}
	return out
}

// namesIn are the VM of a number and the machines in it.
func (c Config) namesIn(index int) []string {
	out := []string{vmName(index)}
	for range c.Depth - 1 {
		out = append(out, out[len(out)-1]+"."+vmName(0))
	}
	return out
}

func vmName(index int) string { return "vm" + strconv.Itoa(index) }

// maxDepth bounds Depth.
const maxDepth = 8

// Hosts reports whether a kernel command line has a configuration.
func Hosts(line string) bool {
	return slices.ContainsFunc(splitCommandLine(line), func(p string) bool { return strings.HasPrefix(p, keyVMs+"=") })
}

// CommandLine is the configuration as kernel parameters.
func (c Config) CommandLine() string {
	s := fmt.Sprintf("%s=%d %s=%d %s=%d", keyVMs, c.VMs, keyVMCPUs, c.VMCPUs, keyVMMemory, c.VMMemory)
	if c.Deeper() {
		s += fmt.Sprintf(" %s=%d", keyDepth, c.Depth)
	}
	if c.Tell {
		s += " " + keyTell + "=1"
	}
	if c.VMAppend != "" {
		s += fmt.Sprintf(` %s="%s"`, keyVMAppend, c.VMAppend)
	}
	return s
}

// ParseConfig finds the configuration on a kernel command line.
func ParseConfig(line string) (Config, error) {
	c := Config{VMCPUs: 1}
	for _, p := range splitCommandLine(line) {
		key, value, _ := strings.Cut(p, "=")
		var err error
		switch key {
		case keyVMs:
			c.VMs, err = strconv.Atoi(value)
		case keyVMCPUs:
			c.VMCPUs, err = strconv.Atoi(value)
		case keyVMMemory:
			c.VMMemory, err = strconv.ParseUint(value, 10, 64)
		case keyDepth:
			c.Depth, err = strconv.Atoi(value)
		case keyTell:
			c.Tell = value == "1"
		case keyVMAppend:
			c.VMAppend = value
		}
		if err != nil {
			return Config{}, fmt.Errorf("kernel parameter %q: %w", p, err)
		}
	}
	if c.VMs < 0 || c.VMs > c.MaxVMs() || c.Depth > maxDepth || c.VMCPUs < 1 || c.VMMemory == 0 {
		return Config{}, fmt.Errorf("kernel command line describes no lab: %d VMs, %d CPUs and %d bytes each",
			c.VMs, c.VMCPUs, c.VMMemory)
	}
	return c, nil
}

// splitCommandLine splits at blanks outside double quotes and removes the
// quotes, as the kernel does (Linux 6.1 lib/cmdline.c:next_arg).
func splitCommandLine(line string) []string {
	var out []string
	var word strings.Builder
	quoted := false
	for _, c := range line + " " {
		switch {
		case c == '"':
			quoted = !quoted
		case !quoted && (c == ' ' || c == '\n' || c == '\t'):
			if word.Len() > 0 {
				out = append(out, word.String())
				word.Reset()
			}
		default:
			word.WriteRune(c)
		}
	}
	return out
}
