package nestedtest

import (
	"maps"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
	"nestdbg/internal/paging/pagingtest"
	"nestdbg/internal/svm/svmtest"
)

// Guest is a machine inside L1, or inside a guest.
type Guest struct {
	// NPT are its nested page tables, in the memory of its hypervisor; of an EPTGuest, EPT.
	NPT *pagingtest.Builder
	// Memory is its physical memory; what is touched is mapped.
	Memory *pagingtest.Guest
	// Tables are its kernel's page tables, in Memory.
	Tables *pagingtest.Builder

	world  *World
	host   pagingtest.Memory  // that of its hypervisor
	frames *pagingtest.Frames // of host
}

// VCPU is a CPU of a guest.
type VCPU struct {
	Guest   *Guest
	Control mem.Phys // of its VMCB, in the memory of the guest's hypervisor
}

// Guest adds a guest without CPUs.
func (w *World) Guest() *Guest { return w.guest(paging.NPTFourLevel, w.RAM, w.frames) }

// Guest adds a guest of the guest, without CPUs.
func (g *Guest) Guest() *Guest { return g.guest(paging.NPTFourLevel) }

func (g *Guest) guest(second *paging.Format) *Guest {
	return g.world.guest(second, g.Memory, pagingtest.NewFrames(mem.Range{First: 0x100000, Last: 0x13ffff}, 0))
}

func (w *World) guest(second *paging.Format, host pagingtest.Memory, frames *pagingtest.Frames) *Guest {
	g := &Guest{world: w, host: host, frames: frames, NPT: pagingtest.New(second.Name, host, frames)}
	g.Memory = g.NPT.Guest()
	own := pagingtest.NewFrames(mem.Range{First: 0x10000, Last: 0x2ffff}, 0)
	g.Tables = pagingtest.New(paging.X86FourLevel.Name, g.Memory, own)
	mapText(g.Tables, guestText)
	for i := range mem.Phys(TextPages) {
		g.Write(guestText+i<<12, make([]byte, 4096))
	}
	return g
}

// Write writes the guest's physical memory.
func (g *Guest) Write(a mem.Phys, p []byte) {
	if _, err := g.Memory.WritePhys(p, a); err != nil {
		panic(err)
	}
}

// TextPhys is where the byte at a virtual address of the guest's kernel is, in
// the guest's physical memory.
func (g *Guest) TextPhys(va uint64) mem.Phys { return guestText + mem.Phys(va-Text) }

// CPU adds a CPU that is parked at pc.
func (g *Guest) CPU(pc, sp uint64) *VCPU {
	v := &VCPU{Guest: g, Control: g.frames.Take()}
	v.Park(pc, sp, nil)
	return v
}

// Park writes the VMCB as an exit at pc leaves it, changed by values.
func (v *VCPU) Park(pc, sp uint64, values svmtest.Values) {
	page := svmtest.VMCB(svmtest.Values{
		"nCR3": uint64(v.Guest.NPT.Root()), "CR3": uint64(v.Guest.Tables.Root()),
		"CR0": cr0, "CR4": cr4, "EFER": efer, "RIP": pc, "RSP": sp,
	})
	svmtest.Set(page, values)
	if _, err := v.Guest.host.WritePhys(page, v.Control); err != nil {
		panic(err)
	}
}

// Merged is the VMCB with which v's hypervisor, the machine of by, is run while it runs
// v: in the memory of by's hypervisor, with the state of v and a second stage that is no
// other machine's.
func (v *VCPU) Merged(by *VCPU, pc, sp uint64, values svmtest.Values) *VCPU {
	m := &VCPU{Guest: by.Guest, Control: by.Guest.frames.Take()}
	merged := svmtest.Values{"CR3": uint64(v.Guest.Tables.Root()), "nCR3": uint64(by.Guest.frames.Take())}
	maps.Copy(merged, values)
	m.Park(pc, sp, merged)
	return m
}

// Running is the device state of L1's CPU while it executes v at pc.
func (v *VCPU) Running(cpu int, pc, sp uint64) *arch.Registers {
	w := v.Guest.world
	r := w.Host(cpu, pc, sp)
	for name, x := range map[string]uint64{
		"cr3": uint64(v.Guest.Tables.Root()), "guest_mode": 1, "vm_vmcb": uint64(v.Control),
		"nested_cr3": uint64(v.Guest.NPT.Root()), "nested_pg_mode": nestedMode,
	} {
		r.Set(name, x)
	}
	return r
}
