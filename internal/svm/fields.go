package svm

import "fmt"

// Area is a half of the VMCB.
type Area string

// The areas of a VMCB.
const (
	Control Area = "control" // offsets 0 to 0x3ff
	Save    Area = "save"    // from 0x400 on
)

// Field is one field of the VMCB. Offset and Size are in bytes, Offset from the
// start of the page also in the save area, where the manual counts from 0x400.
type Field struct {
	Name   string
	Offset int
	Size   int
	Area   Area
}

// Value is a field with its bytes, little-endian, part of the page.
type Value struct {
	Field
	Bytes []byte
}

// Uint returns the value of a field of at most 8 bytes; ok is false for others.
func (v Value) Uint() (n uint64, ok bool) {
	if len(v.Bytes) > 8 {
		return 0, false
	}
	for i := len(v.Bytes) - 1; i >= 0; i-- {
		n = n<<8 | uint64(v.Bytes[i])
	}
	return n, true
}

// Fields returns every field with its value, in the order of the manual.
func (v *VMCB) Fields() []Value {
	out := make([]Value, len(fields))
	for i, f := range fields {
		out[i] = Value{f, v.page[f.Offset : f.Offset+f.Size : f.Offset+f.Size]}
	}
	return out
}

// Offsets that the code uses. The table below has all of them again by name; a
// test keeps the two together.
const (
	offIntercept3 = 0x00c
	offIntercept4 = 0x010 // bit 0: VMRUN
	offReserved   = 0x018 // 36 bytes up to 0x3b
	offIOPM       = 0x040
	offMSRPM      = 0x048
	offASID       = 0x058
	offTLBControl = 0x05c
	offVIntr      = 0x060
	offExitCode   = 0x070
	offExitInfo1  = 0x078
	offExitInfo2  = 0x080
	offNPEnable   = 0x090
	offEventInj   = 0x0a8
	offNCR3       = 0x0b0

	offAVICBacking  = 0x0e0
	offAVICLogical  = 0x0f0
	offAVICPhysical = 0x0f8

	saveArea        = 0x400
	offES           = saveArea + 0x000
	offCS           = saveArea + 0x010
	offSS           = saveArea + 0x020
	offDS           = saveArea + 0x030
	offFS           = saveArea + 0x040
	offGS           = saveArea + 0x050
	offGDTR         = saveArea + 0x060
	offLDTR         = saveArea + 0x070
	offIDTR         = saveArea + 0x080
	offTR           = saveArea + 0x090
	offCPL          = saveArea + 0x0cb
	offEFER         = saveArea + 0x0d0
	offCR4          = saveArea + 0x148
	offCR3          = saveArea + 0x150
	offCR0          = saveArea + 0x158
	offDR7          = saveArea + 0x160
	offDR6          = saveArea + 0x168
	offRFLAGS       = saveArea + 0x170
	offRIP          = saveArea + 0x178
	offRSP          = saveArea + 0x1d8
	offSCET         = saveArea + 0x1e0
	offRAX          = saveArea + 0x1f8
	offSTAR         = saveArea + 0x200
	offLSTAR        = saveArea + 0x208
	offCSTAR        = saveArea + 0x210
	offSFMASK       = saveArea + 0x218
	offKernelGSBase = saveArea + 0x220
	offSysenterCS   = saveArea + 0x228
	offSysenterESP  = saveArea + 0x230
	offSysenterEIP  = saveArea + 0x238
	offCR2          = saveArea + 0x240
	offGPAT         = saveArea + 0x268
)

// A segment register in the save area: selector u16, attrib u16, limit u32,
// base u64. attrib has the access byte in bits 7:0 and AVL, L, D/B, G in 11:8.
const (
	segAttrib = 2
	segLimit  = 4
	segBase   = 8
)

// fields is the whole VMCB. The manual has no short names for the words of
// intercepts; those are ours.
var fields = append(controlFields[:len(controlFields):len(controlFields)], saveFields()...)

var controlFields = []Field{
	{"INTERCEPT_CR_READ", 0x000, 2, Control},
	{"INTERCEPT_CR_WRITE", 0x002, 2, Control},
	{"INTERCEPT_DR_READ", 0x004, 2, Control},
	{"INTERCEPT_DR_WRITE", 0x006, 2, Control},
	{"INTERCEPT_EXCEPTION", 0x008, 4, Control},
	{"INTERCEPT_WORD3", 0x00c, 4, Control},
	{"INTERCEPT_WORD4", 0x010, 4, Control},
	{"INTERCEPT_WORD5", 0x014, 4, Control},
	{"PAUSE_FILTER_THRESHOLD", 0x03c, 2, Control},
	{"PAUSE_FILTER_COUNT", 0x03e, 2, Control},
	{"IOPM_BASE_PA", 0x040, 8, Control},
	{"MSRPM_BASE_PA", 0x048, 8, Control},
	{"TSC_OFFSET", 0x050, 8, Control},
	{"GUEST_ASID", 0x058, 4, Control},
	{"TLB_CONTROL", 0x05c, 1, Control},
	{"ERAP_CONTROL", 0x05d, 1, Control},
	{"V_INTR", 0x060, 8, Control},
	{"INTERRUPT_SHADOW", 0x068, 8, Control},
	{"EXITCODE", 0x070, 8, Control},
	{"EXITINFO1", 0x078, 8, Control},
	{"EXITINFO2", 0x080, 8, Control},
	{"EXITINTINFO", 0x088, 8, Control},
	{"NP_ENABLE", 0x090, 8, Control},
	{"AVIC_APIC_BAR", 0x098, 8, Control},
	{"GHCB_PA", 0x0a0, 8, Control},
	{"EVENTINJ", 0x0a8, 8, Control},
	{"N_CR3", 0x0b0, 8, Control},
	{"LBR_VIRTUALIZATION_ENABLE", 0x0b8, 8, Control},
	{"VMCB_CLEAN", 0x0c0, 4, Control},
	{"nRIP", 0x0c8, 8, Control},
	{"FETCHED_BYTES", 0x0d0, 1, Control},
	{"GUEST_INSTRUCTION_BYTES", 0x0d1, 15, Control},
	{"AVIC_APIC_BACKING_PAGE", 0x0e0, 8, Control},
	{"AVIC_LOGICAL_TABLE", 0x0f0, 8, Control},
	{"AVIC_PHYSICAL_TABLE", 0x0f8, 8, Control},
	{"VMSA_PA", 0x108, 8, Control},
	{"VMGEXIT_RAX", 0x110, 8, Control},
	{"VMGEXIT_CPL", 0x118, 1, Control},
	{"BUS_LOCK_COUNTER", 0x120, 2, Control},
	{"UPDATE_IRR", 0x134, 4, Control},
	{"ALLOWED_SEV_FEATURES", 0x138, 8, Control},
	{"GUEST_SEV_FEATURES", 0x140, 8, Control},
	{"REQUESTED_IRR", 0x150, 32, Control},
	{"HOST_RESERVED", 0x3e0, 32, Control},
}

// saveFields is the state save area. The names of the parts of a segment
// register are ours.
func saveFields() []Field {
	var f []Field
	for i, name := range []string{"ES", "CS", "SS", "DS", "FS", "GS", "GDTR", "LDTR", "IDTR", "TR"} {
		at := saveArea + 16*i
		f = append(f,
			Field{name + ".selector", at, 2, Save}, Field{name + ".attrib", at + segAttrib, 2, Save},
			Field{name + ".limit", at + segLimit, 4, Save}, Field{name + ".base", at + segBase, 8, Save})
	}
	f = append(f, Field{"VMPL", 0x4ca, 1, Save}, Field{"CPL", 0x4cb, 1, Save}, Field{"EFER", 0x4d0, 8, Save})
	for i := range 6 {
		f = append(f, Field{fmt.Sprintf("PERF_CTL%d", i), 0x4e0 + 16*i, 8, Save},
			Field{fmt.Sprintf("PERF_CTR%d", i), 0x4e8 + 16*i, 8, Save})
	}
	f = append(f, quads(0x548, "CR4", "CR3", "CR0", "DR7", "DR6", "RFLAGS", "RIP")...)
	f = append(f, quads(0x5c0, "INSTR_RETIRED_CTR", "PERF_CTR_GLOBAL_STS", "PERF_CTR_GLOBAL_CTL",
		"RSP", "S_CET", "SSP", "ISST_ADDR", "RAX", "STAR", "LSTAR", "CSTAR", "SFMASK", "KERNEL_GS_BASE",
		"SYSENTER_CS", "SYSENTER_ESP", "SYSENTER_EIP", "CR2")...)
	f = append(f, quads(0x668, "G_PAT", "DBGCTL", "BR_FROM", "BR_TO", "LASTEXCPFROM", "LASTEXCPTO",
		"DBGEXTNCFG")...)
	f = append(f, quads(0x6e0, "SPEC_CTRL")...)
	f = append(f, Field{"LBR_STACK", 0xa70, 256, Save})
	return append(f, quads(0xb70, "LBR_SELECT", "IBS_FETCH_CTL", "IBS_FETCH_LINADDR", "IBS_OP_CTL",
		"IBS_OP_RIP", "IBS_OP_DATA", "IBS_OP_DATA2", "IBS_OP_DATA3", "IBS_DC_LINADDR", "BP_IBSTGT_RIP", "IC_IBS_EXTD_CTL")...)
}

// quads makes fields of 8 bytes one behind the other, in the save area.
func quads(at int, names ...string) []Field {
	var f []Field
	for i, name := range names {
		f = append(f, Field{name, at + 8*i, 8, Save})
	}
	return f
}
