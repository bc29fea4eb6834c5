package lab

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"nestdbg/lab/agent"
)

// Options describes a lab. The zero value of a field means its default.
type Options struct {
	Name   string // what the lab is called; default "default"
	Kind   string // what its machines run; default LinuxKind
	VMs    int    // nested VMs started at boot; default 1, NoVMs for none
	CPUs   int    // of L1; default 2, 1 for MonitorKind
	VMCPUs int    // of each VM; default 1
	// Depth is how many machines are inside each other, L1 included: 2, the default,
	// or 3, where each VM has a VM of its own, vm0.vm0 in vm0.
	Depth    int
	Memory   uint64 // of L1, bytes; default 2 GiB, 4 GiB for MonitorKind
	VMMemory uint64 // of each VM of L1, bytes; default 256 MiB, 768 MiB with a VM in it

	// L1Kernel and Kernel, L2's, each name a Debian package, or one of another suite
	// as PACKAGE/SUITE, one or more .deb files with commas between them, or a
	// vmlinuz. Default: DefaultKernel.
	L1Kernel, Kernel string
	// L1Modules and Modules are the directories lib/modules/RELEASE that belong to
	// a vmlinuz; default: looked for around it.
	L1Modules, Modules string
	// Append and VMAppend are added to the kernel command lines of L1 and L2.
	Append, VMAppend string

	CPUModel string // QEMU's -cpu for L1; default DefaultCPUModel
	NoGDB    bool   // start QEMU without its gdb server
	NoWait   bool   // return when QEMU runs, not when the machines are up

	// Timeout bounds the boot, from QEMU's start until every machine answers;
	// default 5 minutes.
	Timeout time.Duration

	QEMU  string // QEMU of L0 and L1; default: qemu-system-x86_64 in PATH
	Agent string // static nestdbg binary; default: the running one
	// StateHome and CacheHome replace the directories that XDG_STATE_HOME and
	// XDG_CACHE_HOME give.
	StateHome, CacheHome string

	// Progress, if not nil, is told what is going on, a line without line break
	// at a time.
	Progress func(text string)
}

// NoVMs is the value of Options.VMs for an L1 without VMs.
const NoVMs = -1

const (
	// DefaultName is the lab that is meant when none is named.
	DefaultName = "default"
	// DefaultKernel is the Debian package of L1's and L2's kernel.
	DefaultKernel = "linux-image-cloud-amd64"
	// DefaultCPUModel is an AMD CPU with everything TCG can emulate, SVM and nested
	// paging included.
	DefaultCPUModel = "max,+svm,+npt"

	defaultTimeout = 5 * time.Minute

	// maxDepth is that of real life. Each level costs several times the time to boot.
	maxDepth = 3

	minVMMemory = 64 << 20
	// l1Reserve is what L1 needs for itself: kernel, initramfs, QEMU's own memory.
	l1Reserve = 448 << 20
	// hostVMMemory is the default for a VM that runs a VM, and hostReserve what each
	// such level makes the initramfs of those above larger, twice while it is unpacked.
	hostVMMemory = 768 << 20
	hostReserve  = 256 << 20
	// commandLineLimit is COMMAND_LINE_SIZE of x86 without the final NUL (Linux
	// 6.1 arch/x86/include/asm/setup.h).
	commandLineLimit = 2047
)

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$`)

// withDefaults fills in what is left open and checks the rest.
func (o Options) withDefaults() (Options, error) {
	if o.Name == "" {
		o.Name = DefaultName
	}
	setDefault(&o.VMs, 1)
	if o.VMs == NoVMs {
		o.VMs = 0
	}
	setDefault(&o.Kind, LinuxKind)
	setDefault(&o.Depth, 2)
	if k, ok := kinds[o.Kind]; ok {
		k.defaults(&o)
	}
	setDefault(&o.CPUModel, DefaultCPUModel)
	setDefault(&o.Timeout, defaultTimeout)
	setDefault(&o.QEMU, "qemu-system-x86_64")
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if err := o.check(); err != nil {
		return o, &OptionError{err}
	}
	return o, nil
}

// OptionError says that Options ask for what cannot be.
type OptionError struct{ Err error }

func (e *OptionError) Error() string { return e.Err.Error() }
func (e *OptionError) Unwrap() error { return e.Err }

func optionf(format string, args ...any) error { return &OptionError{fmt.Errorf(format, args...)} }

func setDefault[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}

// linuxDefaults fills in what concerns labs of Linux only.
func linuxDefaults(o *Options) {
	setDefault(&o.CPUs, 2)
	setDefault(&o.VMCPUs, 1)
	setDefault(&o.Memory, 2<<30)
	setDefault(&o.VMMemory, defaultVMMemory(o.Depth))
	setDefault(&o.L1Kernel, DefaultKernel)
	setDefault(&o.Kernel, DefaultKernel)
}

func (o Options) check() error {
	switch {
	case !validName.MatchString(o.Name):
		return fmt.Errorf("name %q: use up to 32 letters, digits and _.-", o.Name)
	case o.Memory%(1<<20) != 0:
		return fmt.Errorf("memory of %d bytes: use whole megabytes", o.Memory)
	}
	if err := o.checkKind(); err != nil {
		return err
	}
	return kinds[o.Kind].check(o)
}

// checkLinux checks what concerns labs of Linux only.
func (o Options) checkLinux() error {
	switch {
	case o.Depth < 2 || o.Depth > maxDepth:
		return fmt.Errorf("depth %d: use 2, or 3 for a VM in each VM", o.Depth)
	case o.VMs < 0 || o.VMs > o.config().MaxVMs():
		return fmt.Errorf("%d VMs: a lab has at most %d", o.VMs, o.config().MaxVMs())
	case o.CPUs < 1 || o.CPUs > 64:
		return fmt.Errorf("%d CPUs for L1: use 1 to 64", o.CPUs)
	case o.VMCPUs < 1 || o.VMCPUs > 64:
		return fmt.Errorf("%d CPUs for each VM: use 1 to 64", o.VMCPUs)
	case o.VMMemory < minVMMemory || o.VMMemory%(1<<20) != 0:
		return fmt.Errorf("VM memory of %d bytes: use whole megabytes, at least %dM", o.VMMemory, minVMMemory>>20)
	case o.Memory%(1<<20) != 0:
		return fmt.Errorf("memory of %d bytes: use whole megabytes", o.Memory)
	}
	if o.Depth > 2 && o.VMMemory < agent.InnerMemory+l1Reserve {
		return fmt.Errorf("VM memory of %dM: a VM with a VM needs %dM", o.VMMemory>>20, (agent.InnerMemory+l1Reserve)>>20)
	}
	need := uint64(l1Reserve) + uint64(o.Depth-2)*hostReserve + uint64(o.VMs)*o.VMMemory
	if o.Memory < need {
		return fmt.Errorf("%d VMs with %dM each need an L1 of %dM: give --memory %dM",
			o.VMs, o.VMMemory>>20, need>>20, need>>20)
	}
	if strings.ContainsAny(o.Append+o.VMAppend, "\r\n") || strings.Contains(o.VMAppend, `"`) {
		return fmt.Errorf("kernel command lines have no line breaks, and a VM's no double quotes")
	}
	if n := len(o.l1CommandLine()); n > commandLineLimit {
		return fmt.Errorf("L1's kernel command line has %d bytes, at most %d fit", n, commandLineLimit)
	}
	return nil
}

// l1CommandLine is what L1's kernel is started with. A panic ends QEMU, which
// leaves the memory file to study; "panic=0" in Append keeps the machine.
func (o Options) l1CommandLine() string {
	return strings.TrimSpace("console=ttyS0 panic=-1 quiet nowatchdog rcupdate.rcu_cpu_stall_suppress=1 " + o.config().CommandLine() + " " + o.Append)
}

// config is what L1's init is told.
func (o Options) config() agent.Config {
	return agent.Config{VMs: o.VMs, VMCPUs: o.VMCPUs, VMMemory: o.VMMemory, VMAppend: o.VMAppend, Depth: o.Depth - 1,
		Tell: o.Kind == BochsKind}
}

// defaultVMMemory is what a VM of L1 gets in a lab of a depth.
func defaultVMMemory(depth int) uint64 {
	if depth > 2 {
		return hostVMMemory
	}
	return 256 << 20
}

// CommandLine is the command that starts the same lab by hand.
func (o Options) CommandLine() []string {
	o, _ = o.withDefaults() // what is wrong with o, Up says
	line := []string{"nestdbg", "lab", "up"}
	add := func(flag, value, def string) {
		if value != "" && value != def {
			line = append(line, flag, value)
		}
	}
	add("--name", o.Name, DefaultName)
	add("--kind", o.Kind, LinuxKind)
	add("--vms", strconv.Itoa(o.VMs), "1")
	def, _ := Options{Kind: o.Kind, Depth: o.Depth}.withDefaults()
	add("--cpus", strconv.Itoa(o.CPUs), strconv.Itoa(def.CPUs))
	add("--vm-cpus", strconv.Itoa(o.VMCPUs), strconv.Itoa(def.VMCPUs))
	add("--depth", strconv.Itoa(o.Depth), "2")
	add("--memory", FormatSize(o.Memory), FormatSize(def.Memory))
	add("--vm-memory", FormatSize(o.VMMemory), FormatSize(def.VMMemory))
	add("--l1-kernel", o.L1Kernel, DefaultKernel)
	add("--kernel", o.Kernel, def.Kernel)
	add("--l1-modules", o.L1Modules, "")
	add("--modules", o.Modules, "")
	add("--append", o.Append, "")
	add("--vm-append", o.VMAppend, "")
	add("--cpu-model", o.CPUModel, DefaultCPUModel)
	if o.NoGDB {
		line = append(line, "--gdb=false")
	}
	return line
}

// ParseSize reads a number of bytes with an optional suffix K, M or G.
func ParseSize(s string) (uint64, error) {
	digits, shift := s, 0
	if i := strings.IndexAny(s, "KMGkmg"); i >= 0 && i == len(s)-1 {
		digits = s[:i]
		shift = map[byte]int{'K': 10, 'M': 20, 'G': 30}[s[i]&^0x20]
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n == 0 || n<<shift>>shift != n {
		return 0, fmt.Errorf("%q is no size: write 512M or 2G", s)
	}
	return n << shift, nil
}

// FormatSize is the inverse of ParseSize, with the largest suffix that is exact.
func FormatSize(n uint64) string {
	for _, s := range []struct {
		shift  int
		suffix string
	}{{30, "G"}, {20, "M"}, {10, "K"}} {
		if n != 0 && n&(1<<s.shift-1) == 0 {
			return strconv.FormatUint(n>>s.shift, 10) + s.suffix
		}
	}
	return strconv.FormatUint(n, 10)
}
