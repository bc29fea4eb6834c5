package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
)

// Bounds of what KVM keeps. KVM_MAX_VCPUS is 4096 at most.
const (
	vmsMax   = 4096
	vcpusMax = 4096
)

// VM is a guest of this kernel's KVM: a struct kvm.
type VM struct {
	Addr     mem.Virt // of the struct kvm: the guest's identity
	MM       mem.Virt // mm_struct of the process that runs it; see UserSpace
	PID      int      // of that process, or if it is gone, of the thread that made the VM
	Comm     string   // of that process, empty if it is gone
	Memslots []Memslot
	VCPUs    []VCPU
}

// VCPU is a virtual CPU: a struct kvm_vcpu.
type VCPU struct {
	Addr mem.Virt // of the struct kvm_vcpu
	ID   int
	CPU  int // of this kernel, that it runs or last ran on; -1 before the first time
	PID  int // of the thread that runs it; 0 before the first time
	Mode VCPUMode

	// Regs are the general, debug and floating-point registers as KVM keeps them while the
	// guest does not run; while a CPU executes the guest they are old. What the control block also
	// has is true there unless Mode is VCPUOutside. Registers that KVM has not fetched
	// are not known.
	Regs *arch.Registers

	Control ControlBlock
	// Again reads Control again, later; nil if that is not possible.
	Again *ControlReader
}

// VCPUMode is where a vCPU is, as KVM sees it.
type VCPUMode int

// Linux 6.1 include/linux/kvm_host.h, enum of kvm_vcpu.mode.
const (
	VCPUOutside        VCPUMode = iota // in KVM or its VMM
	VCPUInGuest                        // in the guest, or about to enter or leave
	VCPUExiting                        // about to leave
	VCPUReadingShadows                 // KVM walks the guest's shadow tables
)

func (m VCPUMode) String() string {
	names := [...]string{"outside", "in guest", "exiting", "reading shadows"}
	if m < 0 || int(m) >= len(names) {
		return fmt.Sprintf("mode %d", int(m))
	}
	return names[m]
}

// ControlBlock is where a vCPU's hardware state is, in this machine's memory.
type ControlBlock struct {
	Kind    string   // "vmcb" or "vmcs"
	Phys    mem.Phys // the guest's own
	Current mem.Phys // the one in use: another while the guest runs a guest itself
	Merged  mem.Phys // that other one, also while it is not in use; 0 if there is none
	// Inner is the control block that the guest's CPU has entered, in the guest's
	// physical memory; 0 if it is in no guest of its own.
	Inner mem.Phys
	// LastInner is the last one that it entered, 0 if that is not known.
	LastInner mem.Phys
	// HostSave is the host save area that the guest gave its CPU for guests of its own,
	// in its own physical memory; 0 if it gave none, or that is not known.
	HostSave mem.Phys
	// Pending says that nothing was executed since that entry: what Inner holds is
	// newer than what Merged does.
	Pending bool
	// Kept is where KVM has what LastInner holds, as a processor has a VMCS that is active:
	// the guest's own page is out of date. 0 if it is not.
	Kept mem.Phys
	// Untold says that of guests of the guest, the types of KVM's module say nothing.
	Untold bool
}

// kvmFlavour is one of KVM's vendor modules: which structure it wraps a vCPU in
// and where that keeps the control block. Lists are names of one member, newest first.
type kvmFlavour struct {
	module string
	vcpu   string   // structure; its member vcpu is the struct kvm_vcpu
	kind   string   // of ControlBlock
	own    []string // pointer to the guest's own block
	ownPA  []string // physical address of it, where that is kept
	inUse  string   // pointer to the block in use, or to a structure that has it ...
	via    string   // ... of this name ...
	member string   // ... in this member

	merged  string // pointer to the block for guests of the guest
	inner   string // address of the guest's own block for its guest, while that runs
	pending string // whether it is yet to run
	last    string // the last that inner was
	save    string // where the guest's CPU is to save its own state meanwhile
	kept    string // pointer to KVM's copy of the last that inner was
}

// Linux 6.1 arch/x86/kvm/svm/svm.h and vmx/vmx.h. Before 5.13 a vcpu_svm had one VMCB.
var (
	kvmSVM = kvmFlavour{module: "kvm_amd", vcpu: "vcpu_svm", kind: "vmcb",
		own: []string{"vmcb01.ptr", "vmcb"}, ownPA: []string{"vmcb01.pa", "vmcb_pa"}, inUse: "vmcb",
		merged: "nested.vmcb02.ptr", inner: "nested.vmcb12_gpa", pending: "nested.nested_run_pending",
		last: "nested.last_vmcb12_gpa", save: "nested.hsave_msr"}
	kvmVMX = kvmFlavour{module: "kvm_intel", vcpu: "vcpu_vmx", kind: "vmcs",
		own: []string{"vmcs01.vmcs"}, inUse: "loaded_vmcs", via: "loaded_vmcs", member: "vmcs",
		merged: "nested.vmcs02.vmcs", inner: "nested.current_vmptr", pending: "nested.nested_run_pending",
		last: "nested.current_vmptr", kept: "nested.cached_vmcs12"}
)

// kvmReader has what reading VMs needs, looked up once.
type kvmReader struct {
	k        *Kernel
	types    *Types
	vm       *vmShape
	vcpu     *vcpuShape
	fpu      *fpuShape // nil if it is not known where those registers are
	flavours []*flavourShape
	tasks    []Task
	problems []Problem
}

func (r *kvmReader) problem(what string, err error) {
	r.problems = append(r.problems, Problem{what, err})
}

type vmShape struct {
	shape                           *shape
	link, mm, creator, slots        Field
	vcpuArray, vcpuHead, vcpusCount Field
	isXarray                        bool
}

func newVMShape(t *Types) (*vmShape, error) {
	s := newShape(t, "kvm")
	v := &vmShape{shape: s, link: s.need("vm_list"), mm: s.need("mm"),
		creator: s.need("userspace_pid"), slots: s.words("memslots")}
	v.vcpuHead, v.isXarray = s.want("vcpu_array.xa_head") // Linux 5.16
	if !v.isXarray {
		v.vcpuArray, v.vcpusCount = s.words("vcpus"), s.need("online_vcpus")
	}
	return v, s.err
}

type vcpuShape struct {
	shape                               *shape
	id, cpu, mode, pid, regs, available Field
	debug, loaded                       Field // addresses of breakpoints, whether the CPU has them; empty if not kept
	hasAvailable                        bool
	pidNumber                           uint32 // offset in struct pid
}

func newVCPUShape(t *Types) (*vcpuShape, error) {
	s := newShape(t, "kvm_vcpu")
	v := &vcpuShape{shape: s, id: s.need("vcpu_id"), cpu: s.need("cpu"), mode: s.need("mode"),
		pid: s.need("pid"), regs: s.words("arch.regs")}
	v.available, v.hasAvailable = s.want("arch.regs_avail")
	if f, ok := s.want("arch.db"); ok && f.Stride == 8 && uint64(f.Count)*8 == uint64(f.Size) {
		v.debug = f
		v.loaded, _ = s.want("arch.switch_db_regs")
	}
	number, _, err := t.Offset("pid", "numbers[0].nr")
	v.pidNumber = number
	return v, errors.Join(s.err, err)
}

type flavourShape struct {
	of                *kvmFlavour
	shape             *shape
	vcpu              uint32 // offset of the struct kvm_vcpu
	own, ownPA, inUse Field
	hasOwnPA          bool
	member            uint32 // offset in the structure that inUse points to
	nested            nestedShape
}

func newFlavourShape(t *Types, f *kvmFlavour) (*flavourShape, error) {
	s := newShape(t, f.vcpu)
	out := &flavourShape{of: f, shape: s, own: s.need(f.own...), inUse: s.need(f.inUse)}
	out.ownPA, out.hasOwnPA = s.want(f.ownPA...)
	out.nested = newNestedShape(s, f)
	at, err := t.Field(f.vcpu, "vcpu")
	out.vcpu = at.Offset
	if f.via != "" && err == nil {
		out.member, _, err = t.Offset(f.via, f.member)
	}
	return out, errors.Join(s.err, err)
}

// KVMs lists the guests of this kernel's KVM. ErrNotFound if it has no KVM; an
// empty list if KVM is there and has no guests. Problems are about single guests
// and vCPUs.
func (k *Kernel) KVMs() ([]VM, []Problem, error) {
	r, head, err := k.newKVMReader()
	if err != nil {
		return nil, nil, fmt.Errorf("KVM: %w", err)
	}
	nodes, listErr := ring(k.space, head, vmsMax)
	var out []VM
	for _, node := range nodes {
		addr := node - mem.Virt(r.vm.link.Offset)
		vm, err := r.readVM(addr)
		if err != nil {
			r.problem(fmt.Sprintf("VM %#x", addr), err)
			continue
		}
		out = append(out, vm)
	}
	if listErr != nil {
		return out, r.problems, fmt.Errorf("KVM: %w", listErr)
	}
	return out, r.problems, nil
}

// newKVMReader finds KVM, as a module or built in, and its list of VMs.
func (k *Kernel) newKVMReader() (*kvmReader, mem.Virt, error) {
	head, err := k.symbolOf("kvm", "vm_list")
	if err != nil {
		return nil, 0, err
	}
	r := &kvmReader{k: k}
	if r.types, err = k.typesWith("kvm", "kvm"); err != nil {
		return nil, 0, err
	}
	if r.vm, err = newVMShape(r.types); err != nil {
		return nil, 0, err
	}
	if r.vcpu, err = newVCPUShape(r.types); err != nil {
		return nil, 0, err
	}
	r.fpu = newFPUShape(r.types)
	for i := range k.layout.kvm {
		f := &k.layout.kvm[i]
		t, err := k.typesWith(f.module, f.vcpu)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		var s *flavourShape
		if err == nil {
			s, err = newFlavourShape(t, f)
		}
		if err != nil {
			r.problem("types of "+f.module, err)
			continue
		}
		r.flavours = append(r.flavours, s)
	}
	if r.tasks, _, err = k.Tasks(); err != nil {
		r.problem("processes of VMs", err)
	}
	return r, head, nil
}

// symbolOf finds a symbol of a module, or of the kernel where that is built in.
func (k *Kernel) symbolOf(module, name string) (mem.Virt, error) {
	set, err := k.moduleSet()
	if err == nil {
		for i := range set.list {
			if m := &set.list[i]; m.Name == module {
				if a, ok := k.lookupModule(m, name); ok {
					return a, nil
				}
			}
		}
	}
	if a, ok := k.lookupCore(name); ok {
		return a, nil
	}
	if err != nil {
		return 0, err
	}
	return 0, fmt.Errorf("symbol %s of module %s: %w", name, module, ErrNotFound)
}

// typesWith returns the types of a module, or the kernel's own where that is
// built in, if they define the structure. ErrNotFound if neither does.
func (k *Kernel) typesWith(module, structName string) (*Types, error) {
	t, err := k.ModuleTypes(module)
	if errors.Is(err, ErrNotFound) {
		t, err = k.Types()
	}
	if err != nil {
		return nil, err
	}
	if _, err := t.SizeOf(structName); err != nil {
		return nil, err
	}
	return t, nil
}

func (r *kvmReader) readVM(addr mem.Virt) (VM, error) {
	rec, err := r.vm.shape.read(r.k.space, addr)
	if err != nil {
		return VM{}, err
	}
	vm := VM{Addr: addr, MM: rec.virt(r.vm.mm), PID: int(rec.int(r.vm.creator))}
	for i := range r.tasks {
		if t := &r.tasks[i]; t.MM == vm.MM && t.PID == t.TGID {
			vm.PID, vm.Comm = t.PID, t.Comm
			break
		}
	}
	if vm.Memslots, err = r.memslots(&rec); err != nil {
		r.problem(fmt.Sprintf("memory slots of VM %#x", addr), err)
	}
	vcpus, err := r.vcpuAddrs(&rec)
	if err != nil {
		r.problem(fmt.Sprintf("vCPUs of VM %#x", addr), err)
	}
	for _, at := range vcpus {
		v, err := r.readVCPU(at)
		if err != nil {
			r.problem(fmt.Sprintf("vCPU %#x", at), err)
			continue
		}
		vm.VCPUs = append(vm.VCPUs, v)
	}
	return vm, nil
}

// vcpuAddrs are the addresses of a VM's struct kvm_vcpu, by index.
func (r *kvmReader) vcpuAddrs(vm *record) ([]mem.Virt, error) {
	if r.vm.isXarray {
		return xarrayEntries(r.k.space, r.types, vm.uint(r.vm.vcpuHead), vcpusMax)
	}
	online := vm.uint(r.vm.vcpusCount)
	if online > uint64(r.vm.vcpuArray.Count) {
		return nil, fmt.Errorf("%d of at most %d vCPUs: %w", online, r.vm.vcpuArray.Count, ErrCorrupt)
	}
	var out []mem.Virt
	for i := range uint32(online) {
		out = append(out, mem.Virt(vm.word(r.vm.vcpuArray, i)))
	}
	return out, nil
}

func (r *kvmReader) readVCPU(addr mem.Virt) (VCPU, error) {
	s := r.vcpu
	rec, err := s.shape.read(r.k.space, addr)
	if err != nil {
		return VCPU{}, err
	}
	v := VCPU{Addr: addr, ID: int(rec.int(s.id)), CPU: int(rec.int(s.cpu)), Mode: VCPUMode(rec.int(s.mode))}
	if pid := rec.virt(s.pid); pid != 0 {
		n, err := mem.VirtUint32(r.k.space, pid+mem.Virt(s.pidNumber))
		if err != nil {
			r.problem(fmt.Sprintf("thread of vCPU %#x", addr), err)
		}
		v.PID = int(n)
	}
	v.Regs = r.registers(&rec, v.Mode)
	if r.fpu != nil && r.offCPU(v.PID) {
		if err := r.fpu.read(r.k.space, addr, v.Regs); err != nil {
			r.problem(fmt.Sprintf("floating-point registers of vCPU %#x", addr), err)
		}
	}
	if v.Control, v.Again, err = r.control(addr); err != nil {
		r.problem(fmt.Sprintf("control block of vCPU %#x", addr), err)
	}
	r.keep(&v)
	return v, nil
}

// registers reads arch.regs[]; those whose bit in arch.regs_avail is clear are
// still in the control block only.
func (r *kvmReader) registers(rec *record, mode VCPUMode) *arch.Registers {
	regs := arch.NewRegisters(r.k.src.Arch)
	available := ^uint64(0)
	if r.vcpu.hasAvailable {
		available = rec.uint(Field{Offset: r.vcpu.available.Offset, Size: min(r.vcpu.available.Size, 8)})
	}
	for i, name := range r.k.layout.kvmRegs {
		if uint32(i) < r.vcpu.regs.Count && available>>i&1 != 0 {
			regs.Set(name, rec.word(r.vcpu.regs, uint32(i)))
		}
	}
	// The guest may write to the CPU's debug registers without KVM until it has left.
	const wontExit = 2 // KVM_DEBUGREG_WONT_EXIT, Linux 6.1 arch/x86/include/asm/kvm_host.h
	inCPU := mode != VCPUOutside && r.vcpu.loaded.Size > 0 && rec.uint(r.vcpu.loaded)&wontExit != 0
	for i, name := range r.k.layout.kvmDebugRegs {
		if uint32(i) < r.vcpu.debug.Count && !inCPU {
			regs.Set(name, rec.word(r.vcpu.debug, uint32(i)))
		}
	}
	return regs
}

// InGuestEntry reports whether a program counter of this kernel is in the code that
// enters guests and leaves them. There, a guest's registers are moved between the CPU
// and VCPU.Regs; elsewhere they are in one of these.
func (k *Kernel) InGuestEntry(pc mem.Virt) bool {
	place, ok := k.Symbolize(pc)
	return ok && slices.Contains(k.layout.kvmEntry, place.Name)
}

// control finds the control block of a vCPU, as the first flavour for which it
// holds together; without types of any, by its looks.
func (r *kvmReader) control(vcpu mem.Virt) (ControlBlock, *ControlReader, error) {
	if len(r.flavours) == 0 {
		c, err := r.guessVMCB(vcpu)
		return c, nil, err
	}
	var err error
	for _, f := range r.flavours {
		again := &ControlReader{space: r.k.space, flavour: f, vendor: vcpu - mem.Virt(f.vcpu)}
		var c ControlBlock
		if c, err = again.Read(); err == nil {
			return c, again, nil
		}
	}
	return ControlBlock{}, nil, err
}

// guessWords is how far behind a struct kvm_vcpu its VMCB is looked for.
const guessWords = 8

// guessVMCB finds the VMCB of a vCPU where the types of kvm_amd are not known, as
// before Linux 5.11: a vcpu_svm begins with its kvm_vcpu and has, not far behind it,
// a pointer to the VMCB followed by the VMCB's physical address. Since 5.13 the
// pointer to the VMCB in use is right before them. The method is ours.
func (r *kvmReader) guessVMCB(vcpu mem.Virt) (ControlBlock, error) {
	size, err := r.types.SizeOf("kvm_vcpu")
	if err != nil {
		return ControlBlock{}, err
	}
	b := make([]byte, 8*guessWords)
	if _, err := r.k.space.ReadVirt(b, vcpu+mem.Virt((size+7)&^7)); err != nil {
		return ControlBlock{}, err
	}
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
	for i := range guessWords - 1 {
		own, err := blockAt(r.k.space, word(i))
		if err != nil || bits.OnesCount64(word(i+1)^uint64(own)) > 1 {
			continue
		}
		c := ControlBlock{Kind: "vmcb", Phys: own, Current: own, Untold: true}
		if i > 0 {
			if current, err := blockAt(r.k.space, word(i-1)); err == nil && current != own {
				c.Current, c.Merged = current, current
			}
		}
		return c, nil
	}
	return ControlBlock{}, fmt.Errorf("no types of kvm_amd or kvm_intel, and nothing like a VMCB: %w", ErrNotFound)
}

// read follows the pointers of the vendor's structure at addr. Where KVM also
// keeps the physical address, it must be what the pointer leads to; the bit that
// marks encrypted memory may be set in it.
func (f *flavourShape) read(space AddressSpace, addr mem.Virt) (ControlBlock, error) {
	rec, err := f.shape.read(space, addr)
	if err != nil {
		return ControlBlock{}, err
	}
	own, err := blockAt(space, rec.uint(f.own))
	if err != nil {
		return ControlBlock{}, fmt.Errorf("%s of %s: %w", f.of.kind, f.of.vcpu, err)
	}
	if f.hasOwnPA {
		if pa := rec.uint(f.ownPA); bits.OnesCount64(pa^uint64(own)) > 1 {
			return ControlBlock{}, fmt.Errorf("%s at %#x, KVM says %#x: %w", f.of.kind, own, pa, ErrCorrupt)
		}
	}
	p := rec.uint(f.inUse)
	if f.of.via != "" {
		if p, err = mem.VirtUint64(space, mem.Virt(p)+mem.Virt(f.member)); err != nil {
			return ControlBlock{}, fmt.Errorf("%s in use: %w", f.of.kind, err)
		}
	}
	current, err := blockAt(space, p)
	if err != nil {
		return ControlBlock{}, fmt.Errorf("%s in use: %w", f.of.kind, err)
	}
	c := ControlBlock{Kind: f.of.kind, Phys: own, Current: current}
	return c, f.nested.read(space, &rec, &c)
}

// blockAt is the physical page behind a pointer to a control block.
func blockAt(space AddressSpace, p uint64) (mem.Phys, error) {
	if p == 0 || p%pageSize != 0 {
		return 0, fmt.Errorf("pointer %#x is not to a page: %w", p, ErrCorrupt)
	}
	pa, _, err := space.Translate(p)
	return pa, err
}
