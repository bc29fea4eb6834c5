package agent

import (
	"fmt"
	"strconv"
	"strings"
)

// Config is what L1's init is to do. It travels on L1's kernel command line,
// where a person can see and change it; the kernel ignores parameters with a
// dot that belong to no module (Linux document "The kernel's command-line
// parameters").
type Config struct {
	VMs      int    // how many are started at boot, named vm0, vm1, ...
	VMCPUs   int    // of each VM
	VMMemory uint64 // of each VM, bytes
	VMAppend string // added to the kernel command line of each VM
}

const (
	keyVMs      = "nestdbg.vms"
	keyVMCPUs   = "nestdbg.vm_cpus"
	keyVMMemory = "nestdbg.vm_memory"
	keyVMAppend = "nestdbg.vm_append"
)

// MaxVMs is how many VMs one L1 can have: each takes two of the 31 ports of
// L1's virtio-serial device.
const MaxVMs = 8

// CommandLine is the configuration as kernel parameters.
func (c Config) CommandLine() string {
	s := fmt.Sprintf("%s=%d %s=%d %s=%d", keyVMs, c.VMs, keyVMCPUs, c.VMCPUs, keyVMMemory, c.VMMemory)
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
		case keyVMAppend:
			c.VMAppend = value
		}
		if err != nil {
			return Config{}, fmt.Errorf("kernel parameter %q: %w", p, err)
		}
	}
	if c.VMs < 0 || c.VMs > MaxVMs || c.VMCPUs < 1 || c.VMMemory == 0 {
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
