package vmx

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Field is the encoding of a VMCS field, as VMREAD takes it (SDM Vol. 3C, "Reading
// and Writing VMCS Fields"): bits 9:1 index, 11:10 area, 14:13 width. Bit 0, which
// selects the upper half of a 64-bit field, is 0.
type Field uint16

// Area is the part of the VMCS that a field is in.
type Area int

// The areas, with their numbers in encodings.
const (
	Control  Area = iota
	ReadOnly      // of the last exit
	Guest
	Host
)

func (a Area) String() string {
	return [...]string{"control", "read-only", "guest", "host"}[a&3]
}

// Area is the part of the VMCS that the field is in.
func (f Field) Area() Area { return Area(f >> 10 & 3) }

// Size is the field's size in bytes: 2, 4 or 8. Fields of natural width have 8,
// those of processors without 64-bit mode included.
func (f Field) Size() int { return [...]int{2, 8, 4, 8}[f.width()] }

// index, width and group are the parts of an encoding; width is 0 for 16 bits, 1
// for 64, 2 for 32, 3 for natural. Fields of one group have one width and area.
func (f Field) index() int { return int(f >> 1 & 0x1ff) }
func (f Field) width() int { return int(f >> 13 & 3) }
func (f Field) group() int { return f.width()<<2 | int(f.Area()) }

// String is the field's name in Appendix B, shortened.
func (f Field) String() string {
	if name, ok := fieldNames[f]; ok {
		return name
	}
	return fmt.Sprintf("field %#04x", uint16(f))
}

// Fields that the code asks for.
const (
	VPID            Field = 0x0000
	PostedVector    Field = 0x0002
	GuestES         Field = 0x0800 // then CS, SS, DS, FS, GS, LDTR, TR
	GuestCS         Field = 0x0802
	GuestSS         Field = 0x0804
	GuestDS         Field = 0x0806
	GuestFS         Field = 0x0808
	GuestGS         Field = 0x080a
	GuestLDTR       Field = 0x080c
	GuestTR         Field = 0x080e
	HostES          Field = 0x0c00
	HostCS          Field = 0x0c02
	HostSS          Field = 0x0c04
	HostDS          Field = 0x0c06
	HostFS          Field = 0x0c08
	HostGS          Field = 0x0c0a
	HostTR          Field = 0x0c0c
	IOBitmapA       Field = 0x2000
	IOBitmapB       Field = 0x2002
	MSRBitmaps      Field = 0x2004
	ExitStoreAddr   Field = 0x2006
	ExitLoadAddr    Field = 0x2008
	EntryLoadAddr   Field = 0x200a
	PMLAddress      Field = 0x200e
	VirtualAPIC     Field = 0x2012
	APICAccess      Field = 0x2014
	PostedDesc      Field = 0x2016
	VMFunctions     Field = 0x2018
	EPTPointer      Field = 0x201a
	EPTPList        Field = 0x2024
	VMREADBitmap    Field = 0x2026
	VMWRITEBitmap   Field = 0x2028
	SubPageTable    Field = 0x2030
	GuestPhysical   Field = 0x2400
	LinkPointer     Field = 0x2800
	GuestDebugCtl   Field = 0x2802
	GuestPAT        Field = 0x2804
	GuestEFER       Field = 0x2806
	GuestPerf       Field = 0x2808
	GuestPDPTE0     Field = 0x280a // then 1, 2, 3
	GuestBndCfgs    Field = 0x2812
	GuestPKRS       Field = 0x2818
	HostPAT         Field = 0x2c00
	HostEFER        Field = 0x2c02
	HostPerf        Field = 0x2c04
	HostPKRS        Field = 0x2c06
	PinControls     Field = 0x4000
	PrimaryControls Field = 0x4002
	CR3TargetCount  Field = 0x400a
	ExitControls    Field = 0x400c
	ExitStoreCount  Field = 0x400e
	ExitLoadCount   Field = 0x4010
	EntryControls   Field = 0x4012
	EntryLoadCount  Field = 0x4014
	EntryInfo       Field = 0x4016
	EntryErrorCode  Field = 0x4018
	EntryInsnLength Field = 0x401a
	TPRThreshold    Field = 0x401c
	SecondControls  Field = 0x401e
	InsnError       Field = 0x4400
	ExitReason      Field = 0x4402
	GuestESLimit    Field = 0x4800 // then as the selectors
	GuestGDTRLimit  Field = 0x4810
	GuestIDTRLimit  Field = 0x4812
	GuestESRights   Field = 0x4814 // then as the selectors
	GuestCSRights   Field = 0x4816
	GuestSSRights   Field = 0x4818
	GuestTRRights   Field = 0x4822
	Interruptible   Field = 0x4824
	ActivityState   Field = 0x4826
	GuestSysCS      Field = 0x482a
	HostSysCS       Field = 0x4c00
	Qualification   Field = 0x6400
	GuestLinear     Field = 0x640a
	GuestCR0        Field = 0x6800
	GuestCR3        Field = 0x6802
	GuestCR4        Field = 0x6804
	GuestESBase     Field = 0x6806 // then as the selectors
	GuestFSBase     Field = 0x680e
	GuestGSBase     Field = 0x6810
	GuestLDTRBase   Field = 0x6812
	GuestTRBase     Field = 0x6814
	GuestGDTRBase   Field = 0x6816
	GuestIDTRBase   Field = 0x6818
	GuestDR7        Field = 0x681a
	GuestRSP        Field = 0x681c
	GuestRIP        Field = 0x681e
	GuestRFLAGS     Field = 0x6820
	PendingDebug    Field = 0x6822
	GuestSysESP     Field = 0x6824
	GuestSysEIP     Field = 0x6826
	GuestSCET       Field = 0x6828
	GuestSSP        Field = 0x682a
	GuestSSPTable   Field = 0x682c
	HostCR0         Field = 0x6c00
	HostCR3         Field = 0x6c02
	HostCR4         Field = 0x6c04
	HostFSBase      Field = 0x6c06
	HostGSBase      Field = 0x6c08
	HostTRBase      Field = 0x6c0a
	HostGDTRBase    Field = 0x6c0c
	HostIDTRBase    Field = 0x6c0e
	HostSysESP      Field = 0x6c10
	HostSysEIP      Field = 0x6c12
	HostRSP         Field = 0x6c14
	HostRIP         Field = 0x6c16
	HostSCET        Field = 0x6c18
	HostSSP         Field = 0x6c1a
	HostSSPTable    Field = 0x6c1c
)

// fieldGroups are the names of all fields by group, in the order of their index;
// "-" is an index that is not in use. The manual's tables of Appendix B.
var fieldGroups = map[Field]string{
	0x0000: "VPID|posted-interrupt notification vector|EPTP index|HLAT prefix size|last PID-pointer index",
	0x0800: "guest ES|guest CS|guest SS|guest DS|guest FS|guest GS|guest LDTR|guest TR|guest interrupt status|" +
		"PML index|guest UINV",
	0x0c00: "host ES|host CS|host SS|host DS|host FS|host GS|host TR",
	0x2000: "I/O bitmap A|I/O bitmap B|MSR bitmaps|VM-exit MSR-store address|VM-exit MSR-load address|" +
		"VM-entry MSR-load address|executive-VMCS pointer|PML address|TSC offset|virtual-APIC address|" +
		"APIC-access address|posted-interrupt descriptor address|VM-function controls|EPT pointer|" +
		"EOI-exit bitmap 0|EOI-exit bitmap 1|EOI-exit bitmap 2|EOI-exit bitmap 3|EPTP-list address|" +
		"VMREAD-bitmap address|VMWRITE-bitmap address|#VE information address|XSS-exiting bitmap|" +
		"ENCLS-exiting bitmap|sub-page-permission-table pointer|TSC multiplier|tertiary controls|" +
		"ENCLV-exiting bitmap|low PASID directory|high PASID directory|shared EPT pointer|PCONFIG-exiting bitmap|" +
		"HLAT pointer|PID-pointer table|secondary VM-exit controls|-|-|IA32_SPEC_CTRL mask|IA32_SPEC_CTRL shadow",
	0x2400: "guest-physical address",
	0x2800: "VMCS link pointer|guest IA32_DEBUGCTL|guest IA32_PAT|guest IA32_EFER|guest IA32_PERF_GLOBAL_CTRL|" +
		"guest PDPTE0|guest PDPTE1|guest PDPTE2|guest PDPTE3|guest IA32_BNDCFGS|guest IA32_RTIT_CTL|" +
		"guest IA32_LBR_CTL|guest IA32_PKRS",
	0x2c00: "host IA32_PAT|host IA32_EFER|host IA32_PERF_GLOBAL_CTRL|host IA32_PKRS",
	0x4000: "pin-based controls|primary controls|exception bitmap|page-fault error-code mask|" +
		"page-fault error-code match|CR3-target count|VM-exit controls|VM-exit MSR-store count|" +
		"VM-exit MSR-load count|VM-entry controls|VM-entry MSR-load count|VM-entry interruption information|" +
		"VM-entry exception error code|VM-entry instruction length|TPR threshold|secondary controls|" +
		"PLE_Gap|PLE_Window|instruction timeout",
	0x4400: "VM-instruction error|exit reason|VM-exit interruption information|VM-exit interruption error code|" +
		"IDT-vectoring information|IDT-vectoring error code|VM-exit instruction length|VM-exit instruction information",
	0x4800: "guest ES limit|guest CS limit|guest SS limit|guest DS limit|guest FS limit|guest GS limit|" +
		"guest LDTR limit|guest TR limit|guest GDTR limit|guest IDTR limit|guest ES access rights|" +
		"guest CS access rights|guest SS access rights|guest DS access rights|guest FS access rights|" +
		"guest GS access rights|guest LDTR access rights|guest TR access rights|guest interruptibility state|" +
		"guest activity state|guest SMBASE|guest IA32_SYSENTER_CS|-|VMX-preemption timer",
	0x4c00: "host IA32_SYSENTER_CS",
	0x6000: "CR0 guest/host mask|CR4 guest/host mask|CR0 read shadow|CR4 read shadow|CR3-target value 0|" +
		"CR3-target value 1|CR3-target value 2|CR3-target value 3",
	0x6400: "exit qualification|I/O RCX|I/O RSI|I/O RDI|I/O RIP|guest-linear address",
	0x6800: "guest CR0|guest CR3|guest CR4|guest ES base|guest CS base|guest SS base|guest DS base|" +
		"guest FS base|guest GS base|guest LDTR base|guest TR base|guest GDTR base|guest IDTR base|guest DR7|" +
		"guest RSP|guest RIP|guest RFLAGS|guest pending debug exceptions|guest IA32_SYSENTER_ESP|" +
		"guest IA32_SYSENTER_EIP|guest IA32_S_CET|guest SSP|guest IA32_INTERRUPT_SSP_TABLE_ADDR",
	0x6c00: "host CR0|host CR3|host CR4|host FS base|host GS base|host TR base|host GDTR base|host IDTR base|" +
		"host IA32_SYSENTER_ESP|host IA32_SYSENTER_EIP|host RSP|host RIP|host IA32_S_CET|host SSP|" +
		"host IA32_INTERRUPT_SSP_TABLE_ADDR",
}

// fieldNames are the names by encoding, allFields the encodings by area, then number.
var fieldNames = func() map[Field]string {
	out := make(map[Field]string)
	for first, names := range fieldGroups {
		for i, name := range strings.Split(names, "|") {
			if name != "-" {
				out[first+Field(2*i)] = name
			}
		}
	}
	return out
}()

// sortedFields sorts encodings by area, then number.
func sortedFields[V any](m map[Field]V) []Field {
	return slices.SortedFunc(maps.Keys(m), func(a, b Field) int {
		return cmp.Or(cmp.Compare(a.Area(), b.Area()), cmp.Compare(a, b))
	})
}
