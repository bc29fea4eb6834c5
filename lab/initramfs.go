package lab

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"nestdbg/lab/agent"
)

// member is one file of an initramfs.
type member struct {
	name string // absolute path in the machine
	data []byte // the content, or
	path string // the file on L0 that holds it
}

// initScript starts the agent as process 1.
func initScript(role string) []byte {
	command := strings.Join(agent.Command(), " ")
	return []byte("#!" + agent.Busybox + " sh\nexec " + agentPath + " " + command + " " + role + "\n")
}

// agentPath is the nestdbg binary in the machines.
const agentPath = "/nestdbg"

// Modules by purpose. A machine without its channel cannot be asked, so these
// must be there, as modules or built in; extras are for show.
var (
	kvmNeeds     = []string{"irqbypass", "kvm", "kvm-amd"}
	kvmNeedsVMX  = []string{"irqbypass", "kvm", "kvm-intel"}
	l1Channel    = []string{"virtio_pci", "virtio_console"}
	vmChannel    = []string{"virtio_mmio", "virtio_console"}
	extraModules = []string{"loop", "dummy", "brd", "crc7", "crc-itu-t", "zram"}
)

// extraCount is how many extra modules a VM loads.
const extraCount = 2

// vmMembers is the content of the initramfs of a VM without VMs of its own.
func vmMembers(k *Kernel, host *hostFiles, agentBinary []byte) ([]member, error) {
	tree, err := readModuleTree(k.Modules)
	if err != nil {
		return nil, err
	}
	channel, err := tree.closure(vmChannel...)
	if err != nil {
		return nil, fmt.Errorf("kernel %s for a VM: %w", k.Release, err)
	}
	m := []member{
		{name: "/init", data: initScript(agent.VMRole)},
		{name: agentPath, data: agentBinary},
		{name: agent.Busybox, path: host.files[agent.Busybox]},
	}
	m = append(m, moduleMembers(agent.ChannelGroup, channel)...)
	return append(m, moduleMembers(agent.ExtraGroup, tree.optional(extraCount, extraModules...))...), nil
}

// hostMembers makes a machine one that runs VMs: QEMU, KVM, the VMs' kernel and
// their initramfs.
func hostMembers(k, vmKernel *Kernel, host *hostFiles, vm []byte, kvmModules []string) ([]member, error) {
	tree, err := readModuleTree(k.Modules)
	if err != nil {
		return nil, err
	}
	kvm, err := tree.closure(kvmModules...)
	if err != nil {
		return nil, fmt.Errorf("kernel %s, which is to run VMs: %w", k.Release, err)
	}
	m := []member{
		{name: agent.VMKernel, path: vmKernel.Image},
		{name: agent.VMInitramfs, data: vm},
	}
	for name, path := range host.files {
		m = append(m, member{name: name, path: path})
	}
	return append(m, moduleMembers(agent.KVMGroup, kvm)...), nil
}

// l1Members is the content of L1's initramfs, but for what it needs to run VMs.
func l1Members(k *Kernel, agentBinary []byte) ([]member, error) {
	tree, err := readModuleTree(k.Modules)
	if err != nil {
		return nil, err
	}
	channel, err := tree.closure(l1Channel...)
	if err != nil {
		return nil, fmt.Errorf("kernel %s for L1: %w", k.Release, err)
	}
	m := []member{{name: "/init", data: initScript(agent.L1Role)}, {name: agentPath, data: agentBinary}}
	return append(m, moduleMembers(agent.ChannelGroup, channel)...), nil
}

// allMembers is the content of L1's initramfs in a lab of a depth: those of the
// VMs inside VMs are in it, one in the other.
func allMembers(l1, vm *Kernel, host *hostFiles, agentBinary []byte, o Options) ([]member, error) {
	kvm := kvmNeeds
	if o.Kind == BochsKind {
		kvm = kvmNeedsVMX
	}
	members, err := vmMembers(vm, host, agentBinary)
	for level := o.Depth - 1; level > 0 && err == nil; level-- {
		var packed bytes.Buffer
		if err := pack(&packed, members); err != nil {
			return nil, err
		}
		k := vm
		if level == 1 {
			k = l1
			members, err = l1Members(l1, agentBinary)
		} else {
			members, err = vmMembers(vm, host, agentBinary)
		}
		if err != nil {
			return nil, err
		}
		var more []member
		more, err = hostMembers(k, vm, host, packed.Bytes(), kvm)
		members = append(members, more...)
		slices.SortFunc(members, func(a, b member) int { return strings.Compare(a.name, b.name) })
		members = slices.CompactFunc(members, func(a, b member) bool { return a.name == b.name })
	}
	return members, err
}

// moduleMembers puts modules where the agent looks, in the order of loading.
func moduleMembers(group string, modules []module) []member {
	var m []member
	for i, mod := range modules {
		name := fmt.Sprintf("%s/%s/%02d-%s.ko", agent.ModulesDir, group, i, mod.name)
		m = append(m, member{name: name, data: mod.data})
	}
	return m
}

// pack writes members as an initramfs. It is not compressed: an emulated CPU
// unpacks slower than QEMU loads (82 MB for L1: gzip -1 costs 2.5 s of CPU more,
// zstd 2 s).
func pack(w io.Writer, members []member) error {
	c := newCPIO(w)
	for _, m := range members {
		if err := m.open(func(size int64, r io.Reader) error {
			c.File(m.name, size, r)
			return c.err
		}); err != nil {
			return fmt.Errorf("pack %s: %w", m.name, err)
		}
	}
	return c.Close()
}

// open calls f with the content.
func (m member) open(f func(size int64, r io.Reader) error) error {
	if m.path == "" {
		return f(int64(len(m.data)), bytes.NewReader(m.data))
	}
	file, err := os.Open(m.path)
	if err != nil {
		return err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return err
	}
	return f(st.Size(), file)
}

// keptInitramfses is how many packed ones stay in the cache; each has about
// 100 MB.
const keptInitramfses = 4

// buildInitramfs returns L1's initramfs for these kernels, from the cache if
// its parts have not changed.
func buildInitramfs(c cache, l1, vm *Kernel, host *hostFiles, agentBinary []byte, o Options,
	progress func(string)) (string, error) {
	outer, err := allMembers(l1, vm, host, agentBinary, o)
	if err != nil {
		return "", err
	}
	key, err := hashMembers(outer)
	if err != nil {
		return "", err
	}
	path := c.path("initramfs", key+".cpio")
	if os.Chtimes(path, time.Time{}, time.Now()) == nil {
		return path, nil
	}
	progress("packing the initramfs")
	err = c.into(path, func(dir string) (string, error) {
		made := filepath.Join(dir, "initramfs")
		f, err := os.Create(made)
		if err != nil {
			return "", err
		}
		defer f.Close()
		return made, pack(f, outer)
	})
	if err != nil {
		return "", err
	}
	return path, dropOld(c.path("initramfs"), keptInitramfses)
}

// hashMembers is a name for what the members become when packed: SHA-256 over
// names and contents. A file of L0 stands for its content with path, size and
// time of change, as in make: reading them all would take longer than the rest
// of a start.
func hashMembers(members []member) (string, error) {
	h := sha256.New()
	for _, m := range members {
		fmt.Fprintf(h, "%q %d ", m.name, len(m.data))
		h.Write(m.data)
		if m.path == "" {
			continue
		}
		st, err := os.Stat(m.path)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%q %d %d\n", m.path, st.Size(), st.ModTime().UnixNano())
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

// dropOld removes all but the keep files of dir that were used last.
func dropOld(dir string, keep int) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	type file struct {
		path string
		used time.Time
	}
	var files []file
	for _, e := range entries {
		if st, err := e.Info(); err == nil {
			files = append(files, file{filepath.Join(dir, e.Name()), st.ModTime()})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return b.used.Compare(a.used) })
	for _, f := range files[min(keep, len(files)):] {
		if err := os.Remove(f.path); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}
