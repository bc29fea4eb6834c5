package vmx

import (
	"fmt"
	"strings"
)

// flagNames are the names of the bits of fields that are flags, from bit 0 on; "-" is
// a reserved one (SDM Vol. 3C, the tables of "Virtual Machine Control Structures").
var flagNames = map[Field]string{
	PinControls: "external-interrupt exiting,-,-,NMI exiting,-,virtual NMIs,VMX-preemption timer,posted interrupts",
	PrimaryControls: "-,-,interrupt-window exiting,TSC offsetting,-,-,-,HLT exiting,-,INVLPG exiting,MWAIT exiting," +
		"RDPMC exiting,RDTSC exiting,-,-,CR3-load exiting,CR3-store exiting,tertiary controls,-,CR8-load exiting," +
		"CR8-store exiting,TPR shadow,NMI-window exiting,MOV-DR exiting,unconditional I/O exiting,I/O bitmaps,-," +
		"monitor trap flag,MSR bitmaps,MONITOR exiting,PAUSE exiting,secondary controls",
	SecondControls: "virtualize APIC accesses,EPT,descriptor-table exiting,RDTSCP,virtualize x2APIC mode,VPID," +
		"WBINVD exiting,unrestricted guest,APIC-register virtualization,virtual-interrupt delivery,PAUSE-loop exiting," +
		"RDRAND exiting,INVPCID,VM functions,VMCS shadowing,ENCLS exiting,RDSEED exiting,PML,EPT-violation #VE," +
		"conceal VMX from PT,XSAVES,PASID translation,mode-based execute control,sub-page write permissions," +
		"PT uses guest physical addresses,TSC scaling,user wait and pause,PCONFIG,ENCLV exiting,-," +
		"bus-lock detection,instruction timeout",
	ExitControls: "-,-,save debug controls,-,-,-,-,-,-,host address-space size,-,-,load IA32_PERF_GLOBAL_CTRL,-,-," +
		"acknowledge interrupt,-,-,save IA32_PAT,load IA32_PAT,save IA32_EFER,load IA32_EFER,save VMX-preemption timer," +
		"clear IA32_BNDCFGS,conceal VMX from PT,clear IA32_RTIT_CTL,clear IA32_LBR_CTL,clear UINV,load CET state," +
		"load PKRS,save IA32_PERF_GLOBAL_CTL,secondary VM-exit controls",
	EntryControls: "-,-,load debug controls,-,-,-,-,-,-,IA-32e mode guest,entry to SMM,deactivate dual-monitor treatment,-," +
		"load IA32_PERF_GLOBAL_CTRL,load IA32_PAT,load IA32_EFER,load IA32_BNDCFGS,conceal VMX from PT,load IA32_RTIT_CTL," +
		"load UINV,load CET state,load IA32_LBR_CTL,load PKRS",
	Interruptible: "blocking by STI,blocking by MOV SS,blocking by SMI,blocking by NMI,enclave interruption",
	GuestCR0:      crNames[0], HostCR0: crNames[0], GuestCR4: crNames[1], HostCR4: crNames[1],
	GuestEFER: "SCE,-,-,-,-,-,-,-,LME,-,LMA,NXE", HostEFER: "SCE,-,-,-,-,-,-,-,LME,-,LMA,NXE",
	GuestRFLAGS: "CF,-,PF,-,AF,-,ZF,SF,TF,IF,DF,OF,-,-,NT,-,RF,VM,AC,VIF,VIP,ID",
}

var crNames = [...]string{
	"PE,MP,EM,TS,ET,NE,-,-,-,-,-,-,-,-,-,-,WP,-,AM,-,-,-,-,-,-,-,-,-,-,NW,CD,PG",
	"VME,PVI,TSD,DE,PSE,PAE,MCE,PGE,PCE,OSFXSR,OSXMMEXCPT,UMIP,LA57,VMXE,SMXE,-,FSGSBASE,PCIDE,OSXSAVE,KL,SMEP,SMAP,PKE,CET,PKS,UINTR",
}

// Meaning says in words what a field's value selects: flags by name, a number's
// meaning. "" if the number says it all.
func (f Field) Meaning(value uint64) string {
	if names, ok := flagNames[f]; ok {
		return bitNames(names, value)
	}
	switch f {
	case ExitReason:
		name, _ := ExitName(value)
		return name
	case InsnError:
		name, _ := InsnErrorName(value)
		return name
	case ActivityState:
		if value <= activitySIPI {
			return [...]string{"active", "HLT", "shutdown", "wait for SIPI"}[value]
		}
	case LinkPointer:
		if value == ^uint64(0) {
			return "none"
		}
	case EPTPointer:
		return eptMeaning(value)
	case EntryInfo, 0x4404, 0x4408:
		return eventMeaning(value)
	}
	if f >= GuestESRights && f <= GuestTRRights {
		return rightsMeaning(value)
	}
	return ""
}

// bitNames lists the names of the bits that are set.
func bitNames(names string, value uint64) string {
	var out []string
	for i, name := range strings.Split(names, ",") {
		if name != "-" && value>>i&1 != 0 {
			out = append(out, name)
		}
	}
	return strings.Join(out, ", ")
}

func eptMeaning(p uint64) string {
	kind := fmt.Sprintf("memory type %d", p&7)
	switch p & 7 {
	case 0:
		kind = "uncached"
	case 6:
		kind = "write-back"
	}
	text := fmt.Sprintf("root %#x, %d levels, %s", p&physMask&^pageMask, p>>3&7+1, kind)
	if p>>6&1 != 0 {
		text += ", accessed and dirty flags"
	}
	return text
}

func eventMeaning(info uint64) string {
	if info&eventValid == 0 {
		return "none"
	}
	kind := [...]string{"external interrupt", "type 1", "NMI", "exception", "software interrupt", "ICEBP",
		"software exception", "other event"}[info>>8&7]
	text := fmt.Sprintf("%s, vector %d", kind, info&0xff)
	if info&eventError != 0 {
		text += ", with an error code"
	}
	return text
}

func rightsMeaning(r uint64) string {
	if r&rightsUnusable != 0 {
		return "unusable"
	}
	text := fmt.Sprintf("type %d, DPL %d", r&rightsType, r>>5&3)
	if flags := bitNames("-,-,-,-,S,-,-,P,-,-,-,-,AVL,L,D/B,G", r); flags != "" {
		text += ", " + flags
	}
	return text
}

// EPTFault is an exit because EPT refused an access.
type EPTFault struct {
	Addr          uint64 // guest-physical
	Qualification uint64
	Write, Fetch  bool
	// User says that the fetch was one by an address of user mode, where mode-based execute
	// control tells them apart.
	User bool
	// Permitted is what the entries of all levels permit together, bits 0 to 2 read,
	// write, fetch, with mode-based execute control bit 3 fetch by user mode; 0 if one is
	// not present.
	Permitted     uint8
	Misconfigured bool // an entry breaks the rules; how it was accessed is not known
	Tables        bool // the processor was reading the guest's page tables
}

// Bits of the exit qualification of an EPT violation (SDM Vol. 3C, "Exit
// Qualification for EPT Violations"). Bit 6, what user mode may fetch, is undefined
// without mode-based execute control; then bit 5 is for both modes.
const (
	qualifyWrite       = 1 << 1
	qualifyFetch       = 1 << 2
	qualifyPermitted   = 3 // shift
	qualifyLinear      = 1 << 7
	qualifyTranslation = 1 << 8 // of the final address, not of a page-table entry
)

// EPTFault is the EPT violation or misconfiguration that the guest left with; ok is
// false if it left for another reason, or where the layout does not tell.
func (v *VMCS) EPTFault() (f EPTFault, ok bool) {
	reason, _ := v.Get(ExitReason)
	if !v.has(ExitReason, GuestPhysical, Qualification) {
		return f, false
	}
	f.Addr = v.get(GuestPhysical)
	switch reason & reasonBasic {
	case ExitEPTMisconfigured:
		f.Misconfigured = true
		return f, true
	case ExitEPTViolation:
		q := v.get(Qualification)
		f.Qualification = q
		f.Write, f.Fetch = q&qualifyWrite != 0, q&qualifyFetch != 0
		f.Permitted = uint8(q >> qualifyPermitted & v.permissions())
		f.User = f.Fetch && v.ModeBasedExecute() && v.userFetch(f.Permitted)
		f.Tables = q&qualifyLinear != 0 && q&qualifyTranslation == 0
		return f, true
	}
	return f, false
}

// permissions are the bits that the qualification has for what is permitted.
func (v *VMCS) permissions() uint64 {
	if v.ModeBasedExecute() {
		return 0xf
	}
	return 7
}

// userFetch tells whose fetch was refused: his who may not. Where neither may, user mode
// fetches by addresses of user mode only, and the kernel hardly ever.
func (v *VMCS) userFetch(permitted uint8) bool {
	const supervisor, user = 1 << 2, 1 << 3
	switch permitted & (supervisor | user) {
	case supervisor:
		return true
	case user:
		return false
	}
	return v.get(GuestSSRights)>>5&3 == 3 // the CPL
}

// Detail is one fact about the last exit.
type Detail struct{ Name, Text string }

// ExitDetails decodes what the processor says of the last exit besides its reason
// (SDM Vol. 3C, "Exit Qualification"). Nil where that means nothing.
func (v *VMCS) ExitDetails() []Detail {
	reason, ok := v.ExitReason()
	if !ok {
		return nil
	}
	q := v.get(Qualification)
	hex := func(f Field) Detail { return Detail{f.String(), fmt.Sprintf("%#x", v.get(f))} }
	switch reason & reasonBasic {
	case ExitEPTViolation:
		return []Detail{hex(GuestPhysical), {"access", v.violation(q)}, hex(GuestLinear)}
	case ExitEPTMisconfigured:
		return []Detail{hex(GuestPhysical)}
	case 0:
		return []Detail{{"event", eventMeaning(v.get(0x4404))}, hex(0x4406)}
	case 1:
		return []Detail{{"event", eventMeaning(v.get(0x4404))}}
	case 28: // control register access
		kind := [...]string{"write to CR%d", "read of CR%d", "CLTS", "LMSW"}[q>>4&3]
		if q>>4&3 < 2 {
			kind = fmt.Sprintf(kind, q&0xf)
		}
		return []Detail{{"access", kind}}
	case 30: // I/O
		return []Detail{{"access", fmt.Sprintf("%s of %d bytes, port %#x", [...]string{"OUT", "IN"}[q>>3&1], q&7+1, q>>16&0xffff)}}
	case 33:
		return []Detail{{"cause", [...]string{"a check of the guest state", "reserved", "loading the PDPTEs", "NMI injection",
			"the VMCS link pointer"}[min(q, 4)]}}
	}
	return []Detail{hex(Qualification)}
}

// violation says an EPT violation's qualification in words.
func (v *VMCS) violation(q uint64) string {
	text := bitNames("read,write,instruction fetch", q)
	names := "read,write,instruction fetch"
	if v.ModeBasedExecute() {
		names = "read,write,supervisor fetch,user fetch"
	}
	if permitted := q >> qualifyPermitted & v.permissions(); permitted == 0 {
		text += ", not present"
	} else {
		text += ", permitted: " + bitNames(names, permitted)
	}
	if q&qualifyLinear != 0 && q&qualifyTranslation == 0 {
		text += ", while the guest's page tables were read"
	}
	return text
}
