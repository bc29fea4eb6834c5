package vmx

import "fmt"

// Exit reasons that other packages ask for (SDM Vol. 3D, Appendix C "VMX Basic Exit
// Reasons").
const (
	ExitHLT              = 12
	ExitEPTViolation     = 48
	ExitEPTMisconfigured = 49
)

// Bits of an exit reason above the basic one (SDM Vol. 3C, "Basic VM-Exit
// Information").
const (
	reasonBasic     = 0xffff
	reasonShadow    = 1 << 25 // shadow stack busy
	reasonBusLock   = 1 << 26
	reasonEnclave   = 1 << 27
	reasonMTF       = 1 << 28 // pending MTF
	reasonVMXRoot   = 1 << 29
	reasonFailed    = 1 << 31 // VM-entry failure
	reasonUndefined = 1<<32 - 1 - reasonBasic - reasonShadow - reasonBusLock - reasonEnclave -
		reasonMTF - reasonVMXRoot - reasonFailed
)

// ExitName says an exit reason in words: "EPT violation", "HLT", "VM entry failed:
// invalid guest state". ok is false for one that no processor gives.
func ExitName(reason uint64) (name string, ok bool) {
	basic := reason & reasonBasic
	if reason>>32 != 0 || reason&reasonUndefined != 0 || basic >= uint64(len(exits)) || exits[basic] == "" {
		return fmt.Sprintf("exit reason %#x", reason), false
	}
	name = exits[basic]
	if reason&reasonFailed != 0 {
		name = "VM entry failed: " + name
	}
	if reason&reasonEnclave != 0 {
		name += " in an enclave"
	}
	return name, true
}

// exits are the basic exit reasons by number.
var exits = [...]string{
	0: "exception or NMI", 1: "external interrupt", 2: "triple fault", 3: "INIT", 4: "SIPI", 5: "I/O SMI",
	6: "other SMI", 7: "interrupt window", 8: "NMI window", 9: "task switch", 10: "CPUID", 11: "GETSEC",
	12: "HLT", 13: "INVD", 14: "INVLPG", 15: "RDPMC", 16: "RDTSC", 17: "RSM", 18: "VMCALL", 19: "VMCLEAR",
	20: "VMLAUNCH", 21: "VMPTRLD", 22: "VMPTRST", 23: "VMREAD", 24: "VMRESUME", 25: "VMWRITE", 26: "VMXOFF",
	27: "VMXON", 28: "control register access", 29: "debug register access", 30: "I/O instruction", 31: "RDMSR",
	32: "WRMSR", 33: "invalid guest state", 34: "MSR loading", 36: "MWAIT", 37: "monitor trap flag",
	39: "MONITOR", 40: "PAUSE", 41: "machine check", 43: "TPR below threshold", 44: "APIC access",
	45: "virtualized EOI", 46: "access to GDTR or IDTR", 47: "access to LDTR or TR", 48: "EPT violation",
	49: "EPT misconfiguration", 50: "INVEPT", 51: "RDTSCP", 52: "VMX-preemption timer", 53: "INVVPID",
	54: "WBINVD", 55: "XSETBV", 56: "APIC write", 57: "RDRAND", 58: "INVPCID", 59: "VMFUNC", 60: "ENCLS",
	61: "RDSEED", 62: "page-modification log full", 63: "XSAVES", 64: "XRSTORS", 65: "PCONFIG",
	66: "sub-page permission", 67: "UMWAIT", 68: "TPAUSE", 69: "LOADIWKEY", 70: "ENCLV",
	72: "ENQCMD PASID translation", 73: "ENQCMDS PASID translation", 74: "bus lock", 75: "instruction timeout",
	76: "SEAMCALL", 77: "TDCALL", 78: "RDMSRLIST", 79: "WRMSRLIST", 84: "RDMSR with immediate",
	85: "WRMSR with immediate",
}

// ExitReason is the reason of the last exit, or of the last VM entry's failure; ok
// is false if the layout does not tell. ExitName says it in words.
func (v *VMCS) ExitReason() (reason uint64, ok bool) { return v.Get(ExitReason) }

// Refused reports whether the last VM entry failed by the VMCS's own word: it exited at
// once, or, for the controls and the host state, the instruction failed. Of the latter
// the number stays until another instruction fails.
func (v *VMCS) Refused() bool {
	reason, _ := v.ExitReason()
	failed := v.get(InsnError)
	return reason&reasonFailed != 0 || failed == insnBadControls || failed == insnBadHost
}

// InsnErrorName says the VM-instruction error field in words (SDM Vol. 3C,
// "VM-Instruction Error Numbers"); 0 means that no VMX instruction failed.
func InsnErrorName(n uint64) (name string, ok bool) {
	if n < uint64(len(insnErrors)) && insnErrors[n] != "" {
		return insnErrors[n], true
	}
	return fmt.Sprintf("VM-instruction error %d", n), false
}

// VM-instruction errors of an entry that checks refused.
const (
	insnBadControls = 7
	insnBadHost     = 8
)

var insnErrors = [...]string{
	0: "none", 1: "VMCALL in VMX root operation", 2: "VMCLEAR with an invalid address",
	3: "VMCLEAR with the VMXON pointer", 4: "VMLAUNCH with a VMCS that is not clear",
	5: "VMRESUME with a VMCS that is not launched", 6: "VMRESUME after VMXOFF",
	7: "VM entry with invalid control fields", 8: "VM entry with invalid host-state fields",
	9: "VMPTRLD with an invalid address", 10: "VMPTRLD with the VMXON pointer",
	11: "VMPTRLD with a wrong revision identifier", 12: "VMREAD or VMWRITE of a field that does not exist",
	13: "VMWRITE of a read-only field", 15: "VMXON in VMX root operation",
	16: "VM entry with an invalid executive-VMCS pointer", 17: "VM entry with an executive VMCS that is not launched",
	18: "VM entry with an executive-VMCS pointer that is not the VMXON pointer",
	19: "VMCALL with a VMCS that is not clear", 20: "VMCALL with invalid VM-exit controls",
	22: "VMCALL with a wrong MSEG revision", 23: "VMXOFF under dual-monitor treatment",
	24: "VMCALL with invalid SMM-monitor features", 25: "VM entry with an invalid executive VMCS",
	26: "VM entry with events blocked by MOV SS", 28: "invalid operand of INVEPT or INVVPID",
}
