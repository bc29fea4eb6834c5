package nestedtest

import (
	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
	"nestdbg/internal/paging/pagingtest"
	"nestdbg/internal/svm/svmtest"
)

// Guest is a machine inside L1.
type Guest struct {
	// NPT are its nested page tables, in RAM; of an EPTGuest, EPT.
	NPT *pagingtest.Builder
	// Memory is its physical memory; what is touched is mapped.
	Memory *pagingtest.Guest
	// Tables are its kernel's page tables, in Memory.
	Tables *pagingtest.Builder

	world *World
}

// VCPU is a CPU of a guest.
type VCPU struct {
	Guest   *Guest
	Control mem.Phys // of its VMCB
}

// Guest adds a guest without CPUs.
func (w *World) Guest() *Guest { return w.guest(paging.NPTFourLevel) }

func (w *World) guest(second *paging.Format) *Guest {
	g := &Guest{world: w, NPT: pagingtest.New(second.Name, w.RAM, w.frames)}
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
	v := &VCPU{Guest: g, Control: g.world.frames.Take()}
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
	v.Guest.world.RAM.Put(v.Control, page)
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
