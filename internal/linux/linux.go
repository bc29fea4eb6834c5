// Package linux understands one running Linux kernel seen through memory: where
// it is, its symbols and types, its modules and tasks, and, where that kernel is
// a hypervisor, KVM's own view of its guests. It needs no vmlinux.
//
// The package does not know what a VM is: it sees physical memory, address
// spaces and registers, so that it serves a machine, a guest inside it and a
// memory file alike. What depends on the architecture is one table (x86.go).
// What depends on the kernel's version is asked of the kernel: is there such a
// symbol, does the structure have such a member. Never the version itself.
//
// Memory may be wrong in every way: each loop has a bound, each length is
// checked before it sizes anything, and what could not be read is an error.
package linux

import (
	"errors"
	"sync"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
)

// Classes of errors. A read that failed is a mem.ErrFault.
var (
	ErrNotFound    = errors.New("not found")                // no kernel, no such symbol, type or member
	ErrUnsupported = errors.New("not supported")            // the kernel does not have or say what is needed
	ErrCorrupt     = errors.New("inconsistent kernel data") // a list without an end, a count out of reason
)

// pageSize is the granule of the things searched for page by page. All
// architectures here have 4 KiB pages.
const pageSize = 4096

// AddressSpace is virtual memory under one page-table root.
type AddressSpace interface {
	mem.VirtReader

	// Translate returns the physical address behind addr and how many bytes from
	// there on are contiguous in both spaces. It fails like a read would.
	Translate(addr uint64) (phys mem.Phys, contiguous uint64, err error)
}

// Source is the machine whose kernel is looked for.
type Source struct {
	Arch *arch.Arch
	Phys mem.PhysReader // searching is faster when it is a mem.PhysSlicer

	// Ranges lists the physical addresses worth searching: RAM that is populated. It
	// is asked only when nothing else leads to a kernel. Nil means there are none.
	Ranges func() []mem.Range

	// Space gives the address space under the value of a page-table root register.
	Space func(root mem.Phys) (AddressSpace, error)

	// CPUs are the registers of the machine's CPUs as far as they are known; it
	// may be empty when there is only memory.
	CPUs []*arch.Registers
}

// Kernel is a running Linux kernel. Its fields are facts found once and not
// changed afterwards. Methods read memory at the time of the call; symbols,
// types and module symbols are kept (see Forget). Methods may be called
// concurrently.
type Kernel struct {
	Release string // as in uname -r
	Banner  string // as in /proc/version, without the newline
	BuildID string // hexadecimal; empty if the kernel has none

	TextVA   mem.Virt // where _text runs
	TextPA   mem.Phys // and where it lies
	PhysBase int64    // TextPA - (TextVA - base of the kernel mapping), x86's phys_base
	Slide    uint64   // runtime minus link addresses: KASLR
	Size     uint64   // bytes from TextVA to the end of the mapped image

	// Root is the kernel's own page-table root (swapper_pg_dir). If that could not
	// be determined it is the root of a CPU, and Problems says so.
	Root mem.Phys

	VMCoreInfo VMCoreInfo // nil if the kernel keeps none
	Evidence   []string   // what speaks for this answer
	Problems   []string   // what does not fit

	src    Source
	layout *layout
	space  AddressSpace
	image  image

	symbols symbolCache
	types   typeCache
	orc     orcCache

	mu      sync.Mutex
	modules *moduleSet // guarded by mu; nil until needed and after Forget
}

// Space is the kernel's own address space.
func (k *Kernel) Space() AddressSpace { return k.space }

// Arch is the kernel's architecture.
func (k *Kernel) Arch() *arch.Arch { return k.src.Arch }

// ReadVirt implements mem.VirtReader in the kernel's own address space.
func (k *Kernel) ReadVirt(p []byte, a mem.Virt) (int, error) { return k.space.ReadVirt(p, a) }

// Forget drops what may change while the machine runs: which modules there are,
// and where page tables stand if the address space remembers that.
func (k *Kernel) Forget() {
	if s, ok := k.space.(interface{ Flush() }); ok {
		s.Flush()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.modules = nil
}
