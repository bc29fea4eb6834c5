package vmx

import (
	"fmt"

	"nestdbg/internal/arch"
)

// Bits of the controls (SDM Vol. 3C, "VM-Execution Control Fields", "VM-Exit
// Control Fields", "VM-Entry Control Fields").
const (
	pinExternal   = 1 << 0
	pinNMI        = 1 << 3
	pinVirtualNMI = 1 << 5
	pinPreemption = 1 << 6
	pinPosted     = 1 << 7

	primaryTPRShadow  = 1 << 21
	primaryNMIWindow  = 1 << 22
	primaryIOBitmaps  = 1 << 25
	primaryMSRBitmaps = 1 << 28
	primarySecond     = 1 << 31

	secondAPICAccess   = 1 << 0
	secondEPT          = 1 << 1
	secondX2APIC       = 1 << 4
	secondVPID         = 1 << 5
	secondUnrestricted = 1 << 7
	secondAPICRegs     = 1 << 8
	secondDelivery     = 1 << 9
	secondFunctions    = 1 << 13
	secondShadowing    = 1 << 14
	secondPML          = 1 << 17
	secondModeBased    = 1 << 22
	secondSubPage      = 1 << 23

	functionEPTP = 1 << 0 // of the VM-function controls: EPTP switching

	exitSaveDebug = 1 << 2
	exitHost64    = 1 << 9
	exitLoadPerf  = 1 << 12
	exitAck       = 1 << 15
	exitSavePAT   = 1 << 18
	exitLoadPAT   = 1 << 19
	exitSaveEFER  = 1 << 20
	exitLoadEFER  = 1 << 21
	exitSaveTimer = 1 << 22
	exitLoadCET   = 1 << 28
	exitLoadPKRS  = 1 << 29

	entryLoadDebug  = 1 << 2
	entryGuest64    = 1 << 9
	entrySMM        = 1 << 10
	entryDual       = 1 << 11
	entryLoadPerf   = 1 << 13
	entryLoadPAT    = 1 << 14
	entryLoadEFER   = 1 << 15
	entryLoadBounds = 1 << 16
	entryLoadCET    = 1 << 20
	entryLoadPKRS   = 1 << 22
)

// second are the secondary controls, 0 where the primary ones do not turn them on.
func (v *VMCS) second() uint64 {
	if v.get(PrimaryControls)&primarySecond == 0 {
		return 0
	}
	return v.get(SecondControls)
}

// EPT is the EPT pointer. ok is false if the guest runs without EPT, or where the
// layout does not tell.
func (v *VMCS) EPT() (pointer uint64, ok bool) {
	pointer, ok = v.Get(EPTPointer)
	return pointer, ok && v.second()&secondEPT != 0
}

// ModeBasedExecute reports whether EPT entries have an execute permission of their
// own for user mode.
func (v *VMCS) ModeBasedExecute() bool { return v.second()&secondModeBased != 0 }

// slot says which register a field is.
type slot struct {
	reg   string
	field Field
}

// What a VM exit stores into the guest-state area whatever the controls say (SDM
// Vol. 3C, "Saving Guest State").
var guestSlots = []slot{
	{"rip", GuestRIP}, {"rsp", GuestRSP}, {"eflags", GuestRFLAGS},
	{"cr0", GuestCR0}, {"cr3", GuestCR3}, {"cr4", GuestCR4},
	{"es", GuestES}, {"cs", GuestCS}, {"ss", GuestSS}, {"ds", GuestDS}, {"fs", GuestFS}, {"gs", GuestGS},
	{"ldtr", GuestLDTR}, {"tr", GuestTR},
	{"es_base", GuestESBase}, {"cs_base", GuestESBase + 2}, {"ss_base", GuestESBase + 4},
	{"ds_base", GuestESBase + 6}, {"fs_base", GuestFSBase}, {"gs_base", GuestGSBase},
	{"ldtr_base", GuestLDTRBase}, {"tr_base", GuestTRBase},
	{"gdtr_base", GuestGDTRBase}, {"gdtr_limit", GuestGDTRLimit},
	{"idtr_base", GuestIDTRBase}, {"idtr_limit", GuestIDTRLimit},
	{"sysenter_cs", GuestSysCS}, {"sysenter_esp", GuestSysESP}, {"sysenter_eip", GuestSysEIP},
}

// GuestRegisters returns the guest's state as far as a VMCS has it; see VMCS for
// how old it can be. CR0 and CR4 are those that the processor runs with: of bits
// in the guest/host mask the guest itself reads the read shadow.
//
// A VMCS has no other general register, no CR2, no DR0 to DR6, no KERNEL_GS_BASE,
// no STAR, LSTAR and SFMASK. Of EFER, PAT and DR7 it has what its controls make the
// processor keep there; without EFER, the implied efer_mode has what the mode of
// the last exit tells, or where the layout does not have that, the program counter.
func (v *VMCS) GuestRegisters() *arch.Registers {
	r := arch.NewRegisters(arch.X86)
	v.set(r, guestSlots)
	if rights, ok := v.Get(GuestSSRights); ok {
		r.Set("cpl", rights>>5&3) // SS.DPL is the CPL (SDM Vol. 3C, "Guest Register State")
	}
	exit, exitKnown := v.Get(ExitControls)
	entry, entryKnown := v.Get(EntryControls)
	kept := func(save, load uint64) bool {
		return exitKnown && exit&save != 0 || entryKnown && entry&load != 0
	}
	if kept(exitSaveEFER, entryLoadEFER) && v.has(GuestEFER) {
		r.Set("efer", v.get(GuestEFER))
	} else if entryKnown {
		setMode(r, entry&entryGuest64 != 0)
	} else if v.get(GuestRIP)>>32 != 0 {
		setMode(r, true) // only 64-bit code has such addresses
	}
	if kept(exitSavePAT, entryLoadPAT) && v.has(GuestPAT) {
		r.Set("pat", v.get(GuestPAT))
	}
	if kept(exitSaveDebug, entryLoadDebug) && v.has(GuestDR7) {
		r.Set("dr7", v.get(GuestDR7))
	}
	return r
}

// What a VM exit loads from the host-state area whatever the controls say (SDM
// Vol. 3C, "Loading Host State").
var hostSlots = []slot{
	{"rip", HostRIP}, {"rsp", HostRSP}, {"cr0", HostCR0}, {"cr3", HostCR3}, {"cr4", HostCR4},
	{"es", HostES}, {"cs", HostCS}, {"ss", HostSS}, {"ds", HostDS}, {"fs", HostFS}, {"gs", HostGS}, {"tr", HostTR},
	{"fs_base", HostFSBase}, {"gs_base", HostGSBase}, {"tr_base", HostTRBase},
	{"gdtr_base", HostGDTRBase}, {"idtr_base", HostIDTRBase},
	{"sysenter_cs", HostSysCS}, {"sysenter_esp", HostSysESP}, {"sysenter_eip", HostSysEIP},
}

// HostRegisters returns the state that the hypervisor will have behind the next
// exit: RIP is that of its exit handler, not of its entry instruction. General
// registers but RSP are not in a VMCS. A host-state area without RIP and CR3 is
// ErrCorrupt.
func (v *VMCS) HostRegisters() (*arch.Registers, error) {
	if v.get(HostRIP) == 0 || v.get(HostCR3) == 0 {
		return nil, fmt.Errorf("%w: host-state area without RIP and CR3", ErrCorrupt)
	}
	r := arch.NewRegisters(arch.X86)
	v.set(r, hostSlots)
	// Set by every exit: SDM Vol. 3C, "Loading Host Control Registers, Debug Registers,
	// MSRs", "Loading Host Segment and Descriptor-Table Registers", "Loading Host RIP,
	// RSP, SSP, and RFLAGS".
	for reg, x := range map[string]uint64{"eflags": 2, "cpl": 0, "dr7": 0x400, "cs_base": 0,
		"ss_base": 0, "ds_base": 0, "es_base": 0, "ldtr": 0, "gdtr_limit": 0xffff, "idtr_limit": 0xffff} {
		r.Set(reg, x)
	}
	exit, ok := v.Get(ExitControls)
	if ok && exit&exitLoadEFER != 0 && v.has(HostEFER) {
		r.Set("efer", v.get(HostEFER))
	} else if ok {
		setMode(r, exit&exitHost64 != 0)
	}
	if ok && exit&exitLoadPAT != 0 && v.has(HostPAT) {
		r.Set("pat", v.get(HostPAT))
	}
	return r, nil
}

// set copies the fields that the layout has.
func (v *VMCS) set(r *arch.Registers, slots []slot) {
	for _, s := range slots {
		if x, ok := v.Get(s.field); ok {
			r.Set(s.reg, x)
		}
	}
}

// setMode says what is known of an EFER that is not in the VMCS: a kernel in 64-bit
// mode has NXE, too, which decides how bit 63 of its page-table entries reads.
func setMode(r *arch.Registers, long bool) {
	const lme, lma, nxe = 1 << 8, 1 << 10, 1 << 11
	if long {
		r.Set("efer_mode", lme|lma|nxe)
	} else {
		r.Set("efer_mode", 0)
	}
}
