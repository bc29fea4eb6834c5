package svm

import "fmt"

// Exit codes that other packages ask for (APM Vol. 2, Appendix C "SVM Intercept
// Exit Codes").
const (
	ExitIntr     = 0x60
	ExitCPUID    = 0x72
	ExitHLT      = 0x78
	ExitIOIO     = 0x7b
	ExitMSR      = 0x7c
	ExitShutdown = 0x7f
	ExitVMRUN    = 0x80
	ExitVMMCALL  = 0x81
	ExitNPF      = 0x400
	ExitInvalid  = ^uint64(0)
)

// ExitName says an exit code in words, as the manual does without VMEXIT_:
// "NPF", "HLT", "CR3 write", "exception #PF". ok is false for a code that no
// processor gives.
func ExitName(code uint64) (name string, ok bool) {
	switch {
	case code <= 0x0f:
		return fmt.Sprintf("CR%d read", code), true
	case code <= 0x1f:
		return fmt.Sprintf("CR%d write", code-0x10), true
	case code <= 0x2f:
		return fmt.Sprintf("DR%d read", code-0x20), true
	case code <= 0x3f:
		return fmt.Sprintf("DR%d write", code-0x30), true
	case code <= 0x5f:
		return "exception " + exceptionName(int(code-0x40)), true
	case code <= 0x8f:
		return exits60[code-0x60], true
	case code <= 0x9f:
		return fmt.Sprintf("CR%d write trap", code-0x90), true
	case code-0xa0 < uint64(len(exitsA0)):
		return exitsA0[code-0xa0], true
	case code-0x400 < uint64(len(exits400)):
		return exits400[code-0x400], true
	case code == 1<<32-1:
		// As KVM writes it: 32 bits of the code and zeros above (Linux 6.1
		// arch/x86/kvm/svm/nested.c:nested_svm_vmrun).
		return exitsEnd[0], true
	case ExitInvalid-code < uint64(len(exitsEnd)):
		return exitsEnd[ExitInvalid-code], true
	case code == 0xf0000000:
		return "Hyper-V enlightenment", true // Hyper-V TLFS, HV_SVM_EXITCODE_ENL
	}
	return fmt.Sprintf("exit code %#x", code), false
}

// Refused reports whether the last VMRUN failed by the VMCB's own word, which is 64 bits
// of a processor's and 32 of KVM's.
func (v *VMCB) Refused() bool { return v.ExitCode() == ExitInvalid || v.ExitCode() == 1<<32-1 }

// exceptionName is the mnemonic of a vector (APM Vol. 2, "Vectors").
func exceptionName(vector int) string {
	if vector < len(exceptions) && exceptions[vector] != "" {
		return exceptions[vector]
	}
	return fmt.Sprintf("vector %d", vector)
}

var exceptions = [32]string{
	0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF",
	10: "#TS", 11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC",
	19: "#XF", 21: "#CP", 28: "#HV", 29: "#VC", 30: "#SX",
}

// exits60 are the exit codes from 0x60 on, without a gap.
var exits60 = [0x30]string{
	"INTR", "NMI", "SMI", "INIT", "VINTR", "CR0 selective write", "IDTR read", "GDTR read",
	"LDTR read", "TR read", "IDTR write", "GDTR write", "LDTR write", "TR write", "RDTSC", "RDPMC",
	"PUSHF", "POPF", "CPUID", "RSM", "IRET", "INTn", "INVD", "PAUSE",
	"HLT", "INVLPG", "INVLPGA", "IOIO", "MSR", "task switch", "FERR freeze", "shutdown",
	"VMRUN", "VMMCALL", "VMLOAD", "VMSAVE", "STGI", "CLGI", "SKINIT", "RDTSCP",
	"ICEBP", "WBINVD", "MONITOR", "MWAIT", "MWAIT conditional", "XSETBV", "RDPRU", "EFER write trap",
}

var exitsA0 = []string{"INVLPGB", "INVLPGB illegal", "INVPCID", "MCOMMIT", "TLBSYNC", "bus lock", "idle HLT"}

// exitsEnd are the exit codes from -1 downwards.
var exitsEnd = []string{"invalid guest state", "busy", "idle required", "invalid performance counter"}

var exits400 = []string{"NPF", "AVIC incomplete IPI", "AVIC no acceleration", "VMGEXIT"}
