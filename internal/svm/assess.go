package svm

import (
	"encoding/binary"
	"fmt"

	"nestdbg/internal/mem"
)

// Bits of the fields that recognition looks at (APM Vol. 2).
const (
	interceptVMRUN = 1 << 0  // of offset 0x010
	interceptIO    = 1 << 27 // of offset 0x00c
	interceptMSR   = 1 << 28

	npEnable    = 1 << 0 // of NP_ENABLE
	sevEnable   = 1 << 1
	sevESEnable = 1 << 2
	npDefined   = 0x3f // bits above are not offered by any L0 we run under

	eferLME  = 1 << 8
	eferLMA  = 1 << 10
	eferSVME = 1 << 12
	// SCE LME LMA NXE SVME LMSLE FFXSR TCE, MCOMMIT INTWB UAIE AIBRSE
	eferDefined = 1<<0 | 1<<8 | 1<<10 | 1<<11 | 1<<12 | 1<<13 | 1<<14 | 1<<15 | 1<<17 | 1<<18 | 1<<20 | 1<<21

	cr0PE = 1 << 0
	cr0WP = 1 << 16
	cr0NW = 1 << 29
	cr0CD = 1 << 30
	cr0PG = 1 << 31

	cr4PAE = 1 << 5
	cr4CET = 1 << 23
	// VME..PGE PCE OSFXSR OSXMMEXCPT UMIP LA57, FSGSBASE PCIDE OSXSAVE, SMEP SMAP PKE CET
	cr4Defined = 0x1fff | 1<<16 | 1<<17 | 1<<18 | 1<<20 | 1<<21 | 1<<22 | 1<<23

	rflagsOne  = 1 << 1
	rflagsZero = 1<<3 | 1<<5 | 1<<15 | ^uint64(1<<22-1)

	physMask = 1<<52 - 1
)

// QuickReject reports whether page cannot be a VMCB. It looks at one cache line
// of most pages and at two of few, so that gigabytes are scanned at the speed of
// memory. page must have PageSize bytes. What it lets through goes to Assess.
func QuickReject(page []byte) bool {
	_ = page[PageSize-1]
	if page[offIntercept4]&interceptVMRUN == 0 {
		return true
	}
	le := binary.LittleEndian
	if le.Uint64(page[0x18:])|le.Uint64(page[0x20:])|le.Uint64(page[0x28:])|le.Uint64(page[0x30:]) != 0 {
		return true
	}
	asid := le.Uint32(page[offASID:])
	return asid == 0 || asid > maxASID
}

// maxASID is an upper bound of ours: processors have up to 32768 (CPUID
// 8000_000A_EBX).
const maxASID = 0xffff

// Assessment says how much a page looks like a VMCB.
type Assessment struct {
	// Plausible means that every rule holds without which VMRUN would fail, and
	// the few that keep tables of small numbers out. In real memory of 2 GB
	// exactly the VMCBs in use were plausible. One that was freed stays so until
	// its page is used again.
	Plausible bool
	// Score counts the rules that hold, the ones that need not included. It ranks
	// plausible pages; by itself it says nothing.
	Score    int
	Evidence []string // the rules that hold, in words
	Against  []string // those that do not
}

// rule records one rule. A necessary rule that fails ends plausibility.
func (a *Assessment) rule(necessary, holds bool, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if holds {
		a.Score++
		a.Evidence = append(a.Evidence, text)
		return
	}
	a.Plausible = a.Plausible && !necessary
	a.Against = append(a.Against, "not so: "+text)
}

// Assess judges a page. inRAM reports whether a physical address of the machine
// the page is from is RAM; nil if that is not known. A page of another size than
// PageSize is not plausible.
func Assess(page []byte, inRAM func(mem.Phys) bool) Assessment {
	v, err := Parse(page)
	if err != nil {
		return Assessment{Against: []string{err.Error()}}
	}
	a := Assessment{Plausible: true}
	a.necessary(v)
	a.helpful(v, inRAM)
	return a
}

// necessary applies what VMRUN demands, plus what every processor writes.
func (a *Assessment) necessary(v *VMCB) {
	efer, cr0, cr4 := v.u64(offEFER), v.u64(offCR0), v.u64(offCR4)
	a.rule(true, v.u32(offIntercept4)&interceptVMRUN != 0, "VMRUN is intercepted")
	a.rule(true, v.ASID() != 0 && v.ASID() <= maxASID, "ASID %#x is not 0 and below 0x10000", v.ASID())
	a.rule(true, v.zero(offReserved, 0x3c), "the intercepts end where they should")
	a.rule(true, efer&eferSVME != 0 && efer&^eferDefined == 0, "EFER %#x has SVME and no undefined bit", efer)
	a.rule(true, cr0>>32 == 0 && cr4>>32 == 0, "CR0 %#x and CR4 %#x have 32 bits", cr0, cr4)
	a.rule(true, cr0&cr0PG == 0 || cr0&cr0PE != 0, "no paging without protected mode")
	a.rule(true, !longModeBroken(efer, cr0, cr4), "EFER, CR0 and CR4 agree on long mode")
	flags := v.u64(offRFLAGS)
	a.rule(true, flags&rflagsOne != 0 && flags&rflagsZero == 0, "RFLAGS %#x has its fixed bits", flags)
	np := v.u64(offNPEnable)
	a.rule(true, np&^npDefined == 0, "NP_ENABLE %#x has no undefined bit", np)
	name, ok := ExitName(v.ExitCode())
	a.rule(true, ok, "exit code %#x is known: %s", v.ExitCode(), name)
}

// longModeBroken reports a combination that no processor can be in: LMA needs
// LME, paging and PAE.
func longModeBroken(efer, cr0, cr4 uint64) bool {
	return efer&eferLMA != 0 && (efer&eferLME == 0 || cr0&cr0PG == 0 || cr4&cr4PAE == 0)
}

// helpful applies what is true of the hypervisors we know.
func (a *Assessment) helpful(v *VMCB, inRAM func(mem.Phys) bool) {
	inside := func(first mem.Phys, size mem.Phys) bool {
		return first != 0 && first%PageSize == 0 && (inRAM == nil || inRAM(first) && inRAM(first+size-1))
	}
	a.rule(false, inside(v.IOPM(), 12<<10), "I/O permission map at %#x is a range of RAM", v.IOPM())
	a.rule(false, inside(v.MSRPM(), 8<<10), "MSR permission map at %#x is a range of RAM", v.MSRPM())
	if v.NestedPaging() {
		root := mem.Phys(v.NCR3() & physMask &^ (PageSize - 1))
		a.rule(false, inside(root, PageSize), "nested paging root %#x is a page of RAM", root)
	}
	tlb := v.u8(offTLBControl)
	a.rule(false, tlb == 0 || tlb == 1 || tlb == 3 || tlb == 7, "TLB_CONTROL is %d", tlb)
	a.rule(false, v.u64(offDR6)>>32 == 0 && v.u64(offDR7)>>32 == 0, "DR6 and DR7 have 32 bits")
	cpl := v.u8(offCPL)
	a.rule(false, cpl <= 3 && cpl == uint8(v.u16(offSS+segAttrib)>>5&3), "CPL %d is SS's privilege level", cpl)
	a.rule(false, v.zero(offCPL+1, offEFER) && v.zero(0x4d8, 0x4e0) && v.zero(0x580, 0x5c0),
		"reserved bytes of the save area are 0")
}

// zero reports whether the bytes from first up to, not including, end are 0.
func (v *VMCB) zero(first, end int) bool {
	for _, b := range v.page[first:end] {
		if b != 0 {
			return false
		}
	}
	return true
}

// IsHostSave reports whether page looks like the host save area of a hypervisor
// whose VMRUN QEMU's TCG executed: no control area, and a save area that holds
// a processor in a mode from which VMRUN is possible.
func IsHostSave(page []byte) bool {
	v, err := Parse(page)
	if err != nil {
		return false
	}
	efer := v.u64(offEFER) // first, because it alone rules nearly every page out
	if efer&eferSVME == 0 || efer&^eferDefined != 0 {
		return false
	}
	cr0, cr4, flags := v.u64(offCR0), v.u64(offCR4), v.u64(offRFLAGS)
	return cr0>>32 == 0 && cr0&cr0PE != 0 && cr4>>32 == 0 && !longModeBroken(efer, cr0, cr4) &&
		flags&rflagsOne != 0 && flags&rflagsZero == 0 &&
		v.u64(offRAX) != 0 && v.u64(offRAX)%PageSize == 0 && v.zero(0, saveArea)
}
