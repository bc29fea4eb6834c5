package svm

import (
	"testing"

	"nestdbg/internal/svm/svmtest"
)

func TestFieldTable(t *testing.T) {
	names, end := map[string]Field{}, 0
	for _, f := range fields {
		if _, twice := names[f.Name]; twice {
			t.Errorf("%s is there twice", f.Name)
		}
		names[f.Name] = f
		if f.Offset < end || f.Offset+f.Size > PageSize || f.Size == 0 {
			t.Errorf("%s at %#x with %d bytes, the one before ends at %#x", f.Name, f.Offset, f.Size, end)
		}
		if (f.Offset >= 0x400) != (f.Area == Save) {
			t.Errorf("%s at %#x is in the area %s", f.Name, f.Offset, f.Area)
		}
		end = f.Offset + f.Size
	}
	for name, at := range map[string]int{
		"AVIC_APIC_BACKING_PAGE": offAVICBacking, "AVIC_LOGICAL_TABLE": offAVICLogical, "AVIC_PHYSICAL_TABLE": offAVICPhysical,
		"INTERCEPT_WORD3": offIntercept3, "INTERCEPT_WORD4": offIntercept4, "IOPM_BASE_PA": offIOPM, "MSRPM_BASE_PA": offMSRPM, "GUEST_ASID": offASID,
		"TLB_CONTROL": offTLBControl, "V_INTR": offVIntr, "EXITCODE": offExitCode, "EXITINFO1": offExitInfo1,
		"EXITINFO2": offExitInfo2, "NP_ENABLE": offNPEnable, "EVENTINJ": offEventInj, "N_CR3": offNCR3,
		"ES.selector": offES, "CS.selector": offCS, "SS.selector": offSS, "DS.selector": offDS, "FS.selector": offFS,
		"GS.selector": offGS, "GDTR.selector": offGDTR, "LDTR.selector": offLDTR, "IDTR.selector": offIDTR,
		"TR.selector": offTR, "CPL": offCPL, "EFER": offEFER, "CR4": offCR4, "CR3": offCR3, "CR0": offCR0,
		"DR7": offDR7, "DR6": offDR6, "RFLAGS": offRFLAGS, "RIP": offRIP, "RSP": offRSP, "S_CET": offSCET, "RAX": offRAX, "STAR": offSTAR,
		"LSTAR": offLSTAR, "CSTAR": offCSTAR, "SFMASK": offSFMASK, "KERNEL_GS_BASE": offKernelGSBase,
		"SYSENTER_CS": offSysenterCS, "SYSENTER_ESP": offSysenterESP, "SYSENTER_EIP": offSysenterEIP,
		"CR2": offCR2, "G_PAT": offGPAT,
	} {
		if names[name].Offset != at {
			t.Errorf("%s at %#x in the table, %#x in the code", name, names[name].Offset, at)
		}
	}
}

// TestManual has offsets of fields that the code does not use, from the manual.
func TestManual(t *testing.T) {
	want := map[string]Field{
		"PAUSE_FILTER_COUNT": {Offset: 0x03e, Size: 2}, "TSC_OFFSET": {Offset: 0x050, Size: 8},
		"INTERRUPT_SHADOW": {Offset: 0x068, Size: 8}, "EXITINTINFO": {Offset: 0x088, Size: 8},
		"LBR_VIRTUALIZATION_ENABLE": {Offset: 0x0b8, Size: 8}, "VMCB_CLEAN": {Offset: 0x0c0, Size: 4},
		"nRIP": {Offset: 0x0c8, Size: 8}, "GUEST_INSTRUCTION_BYTES": {Offset: 0x0d1, Size: 15},
		"AVIC_APIC_BACKING_PAGE": {Offset: 0x0e0, Size: 8}, "AVIC_PHYSICAL_TABLE": {Offset: 0x0f8, Size: 8},
		"VMSA_PA": {Offset: 0x108, Size: 8}, "ALLOWED_SEV_FEATURES": {Offset: 0x138, Size: 8},
		"TR.base": {Offset: 0x498, Size: 8}, "GS.attrib": {Offset: 0x452, Size: 2}, "IDTR.limit": {Offset: 0x484, Size: 4},
		"PERF_CTL0": {Offset: 0x4e0, Size: 8}, "PERF_CTR5": {Offset: 0x538, Size: 8},
		"INSTR_RETIRED_CTR": {Offset: 0x5c0, Size: 8}, "PERF_CTR_GLOBAL_CTL": {Offset: 0x5d0, Size: 8},
		"S_CET": {Offset: 0x5e0, Size: 8}, "ISST_ADDR": {Offset: 0x5f0, Size: 8}, "DBGCTL": {Offset: 0x670, Size: 8},
		"BR_TO": {Offset: 0x680, Size: 8}, "DBGEXTNCFG": {Offset: 0x698, Size: 8}, "SPEC_CTRL": {Offset: 0x6e0, Size: 8},
		"LBR_SELECT": {Offset: 0xb70, Size: 8}, "IC_IBS_EXTD_CTL": {Offset: 0xbc0, Size: 8},
	}
	for _, f := range fields {
		if w, ok := want[f.Name]; ok {
			if f.Offset != w.Offset || f.Size != w.Size {
				t.Errorf("%s at %#x with %d bytes, the manual has %#x and %d", f.Name, f.Offset, f.Size, w.Offset, w.Size)
			}
			delete(want, f.Name)
		}
	}
	if len(want) > 0 {
		t.Errorf("not in the table: %v", want)
	}
}

func TestFields(t *testing.T) {
	v := view(t, svmtest.VMCB(svmtest.Values{"EXITINFO2": 0xfee000b0, "ASID": 0x1234}))
	want := map[string]uint64{"EXITINFO2": 0xfee000b0, "GUEST_ASID": 0x1234, "CS.attrib": 0xa9b, "CPL": 0, "CR3": 0x28ce000}
	got := v.Fields()
	if len(got) != len(fields) {
		t.Fatalf("%d fields, want %d", len(got), len(fields))
	}
	for _, f := range got {
		n, ok := f.Uint()
		if ok != (f.Size <= 8) || len(f.Bytes) != f.Size {
			t.Errorf("%s: number %v with %d of %d bytes", f.Name, ok, len(f.Bytes), f.Size)
		}
		if w, ok := want[f.Name]; ok && n != w {
			t.Errorf("%s = %#x, want %#x", f.Name, n, w)
		}
	}
}
