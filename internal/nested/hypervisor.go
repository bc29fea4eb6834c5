package nested

import (
	"fmt"
	"slices"
	"strings"

	"nestdbg/internal/arch"
	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
)

// byHypervisor asks the hypervisor's own kernel, where it is understood, which
// guests it has. It marks the candidates that are on the list, adds those that
// were not found otherwise, and reports whether there was a list at all and the
// second road to the memory of each guest on it.
func byHypervisor(m *machine.Machine, found map[mem.Phys]*candidate, opt Options,
	problem func(string, ...any)) (listed bool, roads map[uint64]*roadFacts) {
	if opt.Kernel == nil {
		return false, nil
	}
	k := opt.Kernel(m)
	if k == nil {
		return false, nil
	}
	vms, problems, err := k.KVMs()
	for _, p := range problems {
		problem("%s: %v", p.What, p.Err)
	}
	if err != nil {
		return false, nil // no KVM there, or one that is not understood
	}
	roads = make(map[uint64]*roadFacts)
	for _, vm := range vms {
		road, err := newRoadFacts(k, &vm)
		if err != nil {
			problem("page tables of the VMM of struct kvm at %#x: %v", vm.Addr, err)
		} else {
			roads[uint64(vm.Addr)] = road
		}
		for _, v := range vm.VCPUs {
			if err := listedCPU(m, k, found, vm, v); err != nil {
				problem("vCPU %d of struct kvm at %#x: %v", v.ID, vm.Addr, err)
			}
		}
	}
	return true, roads
}

// listedCPU marks or adds the control block that a vCPU of the list runs on.
func listedCPU(m *machine.Machine, k *linux.Kernel, found map[mem.Phys]*candidate, vm linux.VM, v linux.VCPU) error {
	at := v.Control.Phys
	if at == 0 {
		return nil
	}
	c := found[at]
	for _, tech := range technologies[m.Arch.Name] {
		if c == nil && strings.EqualFold(tech.name(), v.Control.Kind) {
			c = taken(m, tech, at)
		}
	}
	if c == nil || c.broken && !c.block.refused {
		return nil // created, never run
	}
	found[at] = c
	c.vm, c.index, c.fromList = uint64(vm.Addr), v.ID, true
	c.evidence = append(c.evidence, fmt.Sprintf("vCPU %d of struct kvm at %#x, VMM %s (PID %d)", v.ID, vm.Addr, vm.Comm, vm.PID))
	if v.Again != nil {
		c.again = v.Again
	}
	run, err := deeper(m, found, c, v.Control)
	if err != nil || c.between {
		return err
	}
	if run != nil {
		c = run // these are the registers that KVM has
	}
	keptBy(m, k, c, v)
	return nil
}

// keptBy says where the registers of a vCPU are that are not in its control block.
func keptBy(m *machine.Machine, k *linux.Kernel, c *candidate, v linux.VCPU) {
	if c.live {
		return
	}
	c.entered = v.Mode != linux.VCPUOutside && !withRegisters(m)
	switch {
	case v.Mode == linux.VCPUOutside:
		c.fill = func(r *arch.Registers) { takeOver(r, v.Regs) }
	case c.on >= 0:
	case c.left != nil:
		c.fill = func(r *arch.Registers) {
			complete(r, c.left, arch.General)
			complete(r, v.Regs, arch.System)
		}
	case !leaving(m, k):
		// It is between its guest and the rest of KVM, on a CPU of the hypervisor.
		c.fill = func(r *arch.Registers) { complete(r, v.Regs, arch.System) }
	}
}

// withRegisters reports whether there are registers of what hardware executes: what
// every control block that no CPU executes can be compared with.
func withRegisters(m *machine.Machine) bool {
	for m.Parent != nil {
		m = m.Parent
	}
	return slices.ContainsFunc(m.CPUs, func(c *machine.CPU) bool { return c.On >= 0 })
}

// leaving reports whether a CPU of m is in the code that leaves a guest, where the
// guest's registers are being moved from the CPU to memory. Which guest's that is is
// not asked: it takes a few instructions only.
func leaving(m *machine.Machine, k *linux.Kernel) bool {
	for _, c := range m.CPUs {
		pc, ok := c.Regs.PC()
		if (c.State == machine.Running || c.State == machine.Parked) && (!ok || pc > c.EntryPC && k.InGuestEntry(mem.Virt(pc))) {
			return true
		}
	}
	return false
}

// complete adds registers up to a kind that the control block has not.
func complete(r, from *arch.Registers, last arch.Kind) {
	if from == nil {
		return
	}
	for i, reg := range r.Arch().Regs {
		if b := from.Bytes(i); b != nil && reg.Kind <= last && !r.Known(i) {
			_ = r.SetBytes(i, b)
		}
	}
}

// takeOver replaces registers by KVM's own copy. While a vCPU is outside its
// guest KVM's copy is the newer one: an instruction that KVM emulated has moved
// RIP there, and the control block learns of it at the next entry (Linux 6.1
// arch/x86/kvm/svm/svm.c:svm_vcpu_run).
func takeOver(r, from *arch.Registers) {
	if from == nil {
		return
	}
	for i := range r.Arch().Regs {
		if b := from.Bytes(i); b != nil {
			_ = r.SetBytes(i, b) // both have the same architecture, so the size fits
		}
	}
}

// byPageState drops control blocks whose page the hypervisor's kernel has
// freed: the remains of a VM that ended.
func byPageState(m *machine.Machine, found map[mem.Phys]*candidate, opt Options) {
	if opt.Kernel == nil {
		return
	}
	k := opt.Kernel(m)
	if k == nil {
		return
	}
	for at, c := range found {
		if c.on >= 0 {
			continue
		}
		free, count, err := k.PageFree(at)
		switch {
		case err != nil:
			c.evidence = append(c.evidence, fmt.Sprintf("whether its page is in use is not known: %v", err))
		case free:
			delete(found, at)
		default:
			c.evidence = append(c.evidence, fmt.Sprintf("its page is in use (%d references)", count))
		}
	}
}
