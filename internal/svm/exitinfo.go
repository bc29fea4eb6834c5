package svm

import "fmt"

// Detail is a part of what EXITINFO1 and EXITINFO2 say, in words.
type Detail struct{ Name, Text string }

// Bits of the error code of a nested page fault, EXITINFO1 (APM Vol. 2, "Nested versus
// Guest Page Faults, Fault Ordering").
const (
	npfPresent  = 1 << 0
	npfWrite    = 1 << 1
	npfReserved = 1 << 3
	npfFetch    = 1 << 4
	npfFinal    = 1 << 32 // in the translation of the guest's final physical address
	npfTables   = 1 << 33 // in the translation of the guest's page tables
)

var (
	pageFault = names{0: "P", 1: "W", 2: "U", 3: "RSV", 4: "I/D", 5: "PK", 6: "SS", 31: "RMP"}
	npfBits   = append(append(names(nil), pageFault...),
		"final", "page tables", "ENC", "SIZEM", "VMPL", "SSS")
)

// NestedFault is a nested page fault as an exit reports it.
type NestedFault struct {
	Addr     uint64 // guest physical
	Code     uint64 // EXITINFO1
	Write    bool
	Fetch    bool
	Present  bool // a permission was missing, or a reserved bit set; else an entry was not present
	Reserved bool
	Tables   bool // while the guest's own page tables were read
}

// NestedFault is the fault that the guest left with; ok is false if its last exit was
// for another reason.
func (v *VMCB) NestedFault() (f NestedFault, ok bool) {
	code := v.ExitInfo1()
	return NestedFault{
		Addr: v.ExitInfo2(), Code: code, Write: code&npfWrite != 0, Fetch: code&npfFetch != 0,
		Present: code&npfPresent != 0, Reserved: code&npfReserved != 0, Tables: code&npfTables != 0,
	}, v.ExitCode() == ExitNPF
}

// ExitDetails decodes EXITINFO1 and EXITINFO2 by the exit code (APM Vol. 2, Appendix C
// and the sections on each intercept). Nil where they mean nothing.
func (v *VMCB) ExitDetails() []Detail {
	code, info1, info2 := v.ExitCode(), v.ExitInfo1(), v.ExitInfo2()
	hex := func(name string, n uint64) Detail { return Detail{name, fmt.Sprintf("%#x", n)} }
	switch {
	case code == ExitNPF:
		return []Detail{hex("guest physical address", info2), {"error code", fmt.Sprintf("%#x: %s", info1, npfMeaning(info1))}}
	case code == 0x4e: // #PF
		return []Detail{hex("address", info2), {"error code", fmt.Sprintf("%#x: %s", info1, pageFault.render(info1))}}
	case code >= 0x40 && code <= 0x5f:
		if hasErrorCode(int(code - 0x40)) {
			return []Detail{hex("error code", info1)}
		}
	case code <= 0x3f:
		return registerAccess(code, info1)
	case code == ExitIOIO:
		return ioDetails(info1, info2)
	case code == ExitMSR:
		return []Detail{{"access", [2]string{"RDMSR", "WRMSR"}[info1&1]}}
	case code == 0x7d: // task switch
		return []Detail{hex("selector of the TSS", info1&0xffff), hex("error code", info2&0xffffffff), {"cause", taskSwitchCause(info2)}}
	case code == 0x75: // INTn
		return []Detail{hex("vector", info1&0xff)}
	case code == 0x79 && info1>>63 == 0: // INVLPG, with decode assists
		return []Detail{hex("address", info1)}
	case code == 0x401:
		return []Detail{hex("ICR", info1), {"cause", aviCause(info2)}, {"APIC index", fmt.Sprint(info2 & 0x1ff)}}
	case code == 0x402:
		return []Detail{hex("APIC offset", info1&0xff0), {"access", [2]string{"read", "write"}[info1>>32&1]}}
	}
	return nil
}

// npfMeaning says an error code of a nested page fault in words.
func npfMeaning(code uint64) string {
	what := "read"
	switch {
	case code&npfFetch != 0:
		what = "instruction fetch"
	case code&npfWrite != 0:
		what = "write"
	}
	why := "not present"
	switch {
	case code&npfReserved != 0:
		why = "reserved bit set"
	case code&npfPresent != 0:
		why = "not permitted"
	}
	text := what + ", " + why
	switch {
	case code&npfTables != 0:
		text += ", while the guest's page tables were read"
	case code&npfFinal != 0:
		text += ", of the guest's access itself"
	}
	return text + " (" + npfBits.render(code) + ")"
}

// hasErrorCode reports whether an exception pushes an error code (APM Vol. 2, "Vectors").
func hasErrorCode(vector int) bool {
	switch vector {
	case 8, 10, 11, 12, 13, 14, 17, 21, 29, 30:
		return true
	}
	return false
}

// registerAccess is for MOV CRx and DRx, of which decode assists give the other register.
func registerAccess(code, info1 uint64) []Detail {
	if info1>>63 == 0 && code < 0x20 {
		return nil // not MOV CRx, or a processor without decode assists
	}
	return []Detail{{"general register", [16]string{"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
		"r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"}[info1&0xf]}}
}

// ioDetails is APM Vol. 2, "EXITINFO1 for IOIO Intercept".
func ioDetails(info1, next uint64) []Detail {
	text := [2]string{"OUT", "IN"}[info1&1]
	if info1>>2&1 != 0 {
		text = [2]string{"OUTS", "INS"}[info1&1]
	}
	if info1>>3&1 != 0 {
		text = "REP " + text
	}
	for i, size := range []string{"1 byte", "2 bytes", "4 bytes"} {
		if info1>>(4+i)&1 != 0 {
			text += ", " + size
		}
	}
	return []Detail{{"access", text}, {"port", fmt.Sprintf("%#x", info1>>16&0xffff)}, {"next RIP", fmt.Sprintf("%#x", next)}}
}

func taskSwitchCause(info2 uint64) string {
	switch {
	case info2>>36&1 != 0:
		return "IRET"
	case info2>>38&1 != 0:
		return "far jump"
	}
	return "call, interrupt or exception"
}

// aviCause is APM Vol. 2, "AVIC IPI Delivery Not Completed".
func aviCause(info2 uint64) string {
	id := info2 >> 32
	if causes := []string{"invalid interrupt type", "target not running", "invalid target", "invalid backing page",
		"invalid vector"}; id < uint64(len(causes)) {
		return causes[id]
	}
	return fmt.Sprintf("reserved cause %d", id)
}
