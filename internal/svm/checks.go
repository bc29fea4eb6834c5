package svm

import "fmt"

// Check is one condition under which VMRUN refuses a VMCB.
type Check struct {
	Name  string // the condition that must hold, in words
	Wrong string // what is wrong if it does not, as the manual lists it
	OK    bool
	Seen  string // the values it was judged by
}

// Checks applies the checks of VMRUN (APM Vol. 2, "Canonicalization and
// Consistency Checks") as far as they can be made without the processor: of its
// optional features all are taken to be there, and a physical address has physBits
// bits, or the architecture's maximum of 52 if that is 0.
func (v *VMCB) Checks(physBits uint) []Check {
	phys := uint64(physMask)
	if physBits > 0 && physBits < 52 {
		phys = 1<<physBits - 1
	}
	efer, cr0, cr3, cr4 := v.u64(offEFER), v.u64(offCR0), v.u64(offCR3), v.u64(offCR4)
	long := efer&eferLME != 0 && cr0&cr0PG != 0
	cs := v.u16(offCS + segAttrib)
	inj, iopm, msrpm := v.u64(offEventInj), uint64(v.IOPM()), uint64(v.MSRPM())
	modes := fmt.Sprintf("EFER %#x, CR0 %#x, CR4 %#x", efer, cr0, cr4)
	return []Check{
		{"VMRUN is intercepted", "VMRUN intercept clear", v.u32(offIntercept4)&interceptVMRUN != 0,
			seen("intercepts", uint64(v.u32(offIntercept4)))},
		{"ASID is not 0", "ASID 0", v.ASID() != 0, seen("ASID", uint64(v.ASID()))},
		{"EFER.SVME is 1", "EFER.SVME clear", efer&eferSVME != 0, seen("EFER", efer)},
		{"EFER has no undefined bit", "EFER has a reserved bit set", efer&^eferDefined == 0, seen("EFER", efer)},
		{"CR0.NW is 0 unless CR0.CD is 1", "CR0.CD clear with NW set", cr0&cr0NW == 0 || cr0&cr0CD != 0, seen("CR0", cr0)},
		{"CR0 has 32 bits", "CR0 has a bit above 31 set", cr0>>32 == 0, seen("CR0", cr0)},
		{"CR3 has no reserved bit", "CR3 has a reserved bit set", efer&eferLMA == 0 || cr3&^phys == 0, seen("CR3", cr3)},
		{"CR4 has no undefined bit", "CR4 has a reserved bit set", cr4&^cr4Defined == 0, seen("CR4", cr4)},
		{"DR6 has 32 bits", "DR6 has a bit above 31 set", v.u64(offDR6)>>32 == 0, seen("DR6", v.u64(offDR6))},
		{"DR7 has 32 bits", "DR7 has a bit above 31 set", v.u64(offDR7)>>32 == 0, seen("DR7", v.u64(offDR7))},
		{"long mode with paging has CR4.PAE", "EFER.LME and CR0.PG set with CR4.PAE clear", !long || cr4&cr4PAE != 0, modes},
		{"long mode with paging has CR0.PE", "EFER.LME and CR0.PG set with CR0.PE clear", !long || cr0&cr0PE != 0, modes},
		{"CS.L and CS.D are not both 1 in long mode", "CS.L and CS.D both set in long mode", !long || cr4&cr4PAE == 0 || cs&csLD != csLD,
			seen("CS.attrib", uint64(cs))},
		{"the I/O permission map has a physical address", "I/O permission map beyond physical memory", extends(iopm, 12<<10, phys), seen("IOPM_BASE_PA", iopm)},
		{"the MSR permission map has a physical address", "MSR permission map beyond physical memory", extends(msrpm, 8<<10, phys), seen("MSRPM_BASE_PA", msrpm)},
		{"N_CR3 is a physical address", "N_CR3 has a reserved bit set", !v.NestedPaging() || v.NCR3()&^phys == 0, seen("N_CR3", v.NCR3())},
		{"G_PAT has memory types only", "G_PAT has a reserved memory type", !v.NestedPaging() || patLegal(v.u64(offGPAT)),
			seen("G_PAT", v.u64(offGPAT))},
		{"CR4.CET needs CR0.WP", "CR4.CET set with CR0.WP clear", cr4&cr4CET == 0 || cr0&cr0WP != 0, modes},
		{"S_CET has no reserved bit", "S_CET has a reserved bit set", v.u64(offSCET)&^cetDefined == 0, seen("S_CET", v.u64(offSCET))},
		{"the injected event is one that can be", "illegal event injection", legalEvent(inj), seen("EVENTINJ", inj)},
	}
}

// extends reports whether a permission map of size bytes ends within what addresses can
// be; the processor ignores the lower 12 bits.
func extends(at, size, phys uint64) bool { return at&^phys == 0 && at&^0xfff <= phys+1-size }

// cetDefined are SH_STK_EN and WR_SHSTK_EN (APM Vol. 2, "S_CET MSR").
const cetDefined = 3

const csLD = 1<<9 | 1<<10 // L and D/B in a segment's attrib

func seen(name string, v uint64) string { return fmt.Sprintf("%s %#x", name, v) }

// legalEvent applies APM Vol. 2, "Event Injection": types 1 and 5 to 7 are
// reserved, an exception is neither vector 2 (NMI) nor above 31.
func legalEvent(inj uint64) bool {
	if inj>>31&1 == 0 {
		return true
	}
	vector := inj & 0xff
	switch inj >> 8 & 7 {
	case 0, 2, 4: // interrupt, NMI, software interrupt
		return true
	case 3:
		return vector != 2 && vector < 32
	}
	return false
}
