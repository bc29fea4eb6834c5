// Package nestedtest makes machines with guests in them for tests: QEMU's own
// machine, the page tables of its kernel, guests with nested page tables and
// VMCBs, and the device state of a CPU in either layer. Everything is in memory
// and executes nothing.
package nestedtest

import (
	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
	"nestdbg/internal/paging"
	"nestdbg/internal/paging/pagingtest"
	"nestdbg/internal/svm/svmtest"
)

// Every machine has its kernel's code and data at the same virtual addresses, as
// with nokaslr, and nothing else mapped.
const (
	Text      = 0xffffffff81000000
	TextPages = 4
)

// Where the kernel's pages are in the physical memory of each machine.
const (
	l1Text    = mem.Phys(0x100000)
	guestText = mem.Phys(0x40000)
)

// What the control registers of every CPU have: 4-level paging with NX, SVME.
const (
	cr0  = 0x80050033
	cr4  = 0x740ea0
	efer = 0x1d01

	nestedMode = 7 // of cr4 and efer, in QEMU's numbers: PAE, LMA, NXE
)

// World is QEMU's own machine.
type World struct {
	// RAM is 4 MiB from 0 on and 1 MiB from 4 GiB on.
	RAM *memtest.Memory
	// Tables are the page tables of L1's kernel.
	Tables *pagingtest.Builder

	frames *pagingtest.Frames
	saves  map[int]mem.Phys // host save areas by CPU
}

// New returns a machine without guests.
func New() *World {
	w := &World{
		RAM: memtest.NewMemory(mem.Range{First: 0, Last: 0x3fffff},
			mem.Range{First: 0x100000000, Last: 0x1000fffff}),
		frames: pagingtest.NewFrames(mem.Range{First: 0x200000, Last: 0x3fffff}, 0),
		saves:  make(map[int]mem.Phys),
	}
	w.Tables = pagingtest.New(paging.X86FourLevel.Name, w.RAM, w.frames)
	mapText(w.Tables, l1Text)
	return w
}

func mapText(b *pagingtest.Builder, at mem.Phys) {
	for i := range uint64(TextPages) {
		b.Map(Text+i<<12, at+mem.Phys(i)<<12, 4096, b.Express(paging.Read|paging.Write|paging.Exec))
	}
}

// TextPhys is where the byte at a virtual address of L1's kernel is.
func (w *World) TextPhys(va uint64) mem.Phys { return l1Text + mem.Phys(va-Text) }

// Take returns a page of RAM that nobody has.
func (w *World) Take() mem.Phys { return w.frames.Take() }

// Machine is the root of a tower whose CPUs have this device state.
func (w *World) Machine(cpus ...*arch.Registers) *machine.Machine {
	m := &machine.Machine{Name: "l1", Level: 1, Arch: arch.X86, Phys: w.RAM}
	for i, r := range cpus {
		c := &machine.CPU{Index: i, On: i, Regs: r, Source: "device state"}
		if halted, _ := r.Get("halted"); halted != 0 {
			c.State = machine.Halted
		}
		m.CPUs = append(m.CPUs, c)
	}
	return m
}

// HostSave is the host save area of one of L1's CPUs.
func (w *World) HostSave(cpu int) mem.Phys {
	at, ok := w.saves[cpu]
	if !ok {
		at = w.frames.Take()
		w.saves[cpu] = at
	}
	return at
}

// Save fills a CPU's host save area as VMRUN of v does; pc is behind the VMRUN.
func (w *World) Save(cpu int, v *VCPU, pc, sp uint64) {
	w.RAM.Put(w.HostSave(cpu), svmtest.HostSave(uint64(v.Control), svmtest.Values{
		"RIP": pc, "RSP": sp, "CR0": cr0, "CR3": uint64(w.Tables.Root()), "CR4": cr4, "EFER": efer}))
}

// Host is the device state of a CPU that executes L1's own code.
func (w *World) Host(cpu int, pc, sp uint64) *arch.Registers {
	r := arch.NewRegisters(arch.X86)
	for name, v := range map[string]uint64{
		"rip": pc, "rsp": sp, "rax": 0, "cr0": cr0, "cr3": uint64(w.Tables.Root()), "cr4": cr4, "efer": efer,
		"guest_mode": 0, "halted": 0, "vm_hsave": uint64(w.HostSave(cpu)), "vm_vmcb": 0,
	} {
		r.Set(name, v)
	}
	return r
}
