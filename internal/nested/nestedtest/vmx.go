package nestedtest

import (
	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
	"nestdbg/internal/vmx/vmxtest"
)

// cr4VMX is CR4 of both layers under VMX: VMXE, without which there is none.
const cr4VMX = cr4 | 1<<13

// eptBits are those of an EPT pointer that are no address: write-back, 4 levels,
// accessed and dirty flags.
const eptBits = 0x5e

// EPTGuest adds a guest without CPUs, for VMX.
func (w *World) EPTGuest() *Guest { return w.guest(paging.EPTFourLevel, w.RAM, w.frames) }

// EPTGuest adds a guest of the guest without CPUs, for VMX.
func (g *Guest) EPTGuest() *Guest { return g.guest(paging.EPTFourLevel) }

// VMCS is the page of a VMCS of the guest in one of vmxtest's kinds, as an exit at pc
// leaves it, changed by values. The hypervisor's exit handler is at hostPC.
func (g *Guest) VMCS(kind string, pc, hostPC uint64, values vmxtest.Values) []byte {
	page := vmxtest.VMCS(kind, vmxtest.Values{
		"EPT pointer": uint64(g.NPT.Root()) | eptBits, "guest CR3": uint64(g.Tables.Root()), "guest CR0": cr0,
		"guest CR4": cr4VMX, "guest RIP": pc, "guest RSP": Text + 0x800,
		"host CR0": cr0, "host CR3": uint64(g.world.Tables.Root()), "host CR4": cr4VMX, "host RIP": hostPC,
	})
	vmxtest.Set(page, kind, values)
	return page
}

// UnderVMX is the device state of L1's CPU on a host with KVM: its current VMCS is at
// control, and page is what KVM has of it. With guest it executes the guest at pc.
func (g *Guest) UnderVMX(guest bool, control mem.Phys, page []byte, pc uint64) *arch.Registers {
	r := g.world.Host(0, pc, 0x1000)
	r.Forget("vm_hsave", "vm_vmcb")
	r.Set("cr4", cr4VMX)
	r.Set("vmcs", uint64(control))
	r.SetControlBlock(page)
	if guest {
		r.Set("cr3", uint64(g.Tables.Root()))
		r.Set("guest_mode", 1)
	}
	return r
}
