package svm

import (
	"fmt"
	"strings"
)

// Meaning says in words what a field's value stands for: the names of bits that are
// set, what a number selects. "" where the number says it all.
func (v Value) Meaning() string {
	n, ok := v.Uint()
	if !ok {
		return ""
	}
	_, part, isSegment := strings.Cut(v.Name, ".")
	switch {
	case isSegment && part == "attrib":
		return segmentMeaning(uint16(n))
	case v.Name == "EXITCODE":
		return exitMeaning(n)
	case meanings[v.Name] != nil:
		return meanings[v.Name](n)
	case flagNames[v.Name] != nil:
		return flagNames[v.Name].render(n)
	}
	return ""
}

func exitMeaning(code uint64) string {
	name, _ := ExitName(code)
	return name
}

// names are the names of bits, from bit 0 on; "" is reserved or not named.
type names []string

// fixed is the name of a bit that is always 1 and says nothing.
const fixed = "-"

// render lists the bits of n that are set. Those without a name are counted as
// "reserved N", so that none goes unseen.
func (x names) render(n uint64) string {
	var out []string
	for i := range 64 {
		switch {
		case n>>i&1 == 0 || i < len(x) && x[i] == fixed:
		case i < len(x) && x[i] != "":
			out = append(out, x[i])
		default:
			out = append(out, fmt.Sprintf("reserved %d", i))
		}
	}
	return strings.Join(out, " ")
}

// numbered is count names made from a prefix: CR0, CR1.
func numbered(prefix string, count int) names {
	out := make(names, count)
	for i := range out {
		out[i] = fmt.Sprintf("%s%d", prefix, i)
	}
	return out
}

// flagNames are fields that are sets of bits (APM Vol. 2, Table B-1, and the chapters
// on control registers).
var flagNames = map[string]names{
	"INTERCEPT_CR_READ": numbered("CR", 16), "INTERCEPT_CR_WRITE": numbered("CR", 16),
	"INTERCEPT_DR_READ": numbered("DR", 16), "INTERCEPT_DR_WRITE": numbered("DR", 16),
	"INTERCEPT_EXCEPTION": vectorNames(),
	"INTERCEPT_WORD3": {"INTR", "NMI", "SMI", "INIT", "VINTR", "CR0.TS|MP-write", "IDTR-read", "GDTR-read",
		"LDTR-read", "TR-read", "IDTR-write", "GDTR-write", "LDTR-write", "TR-write", "RDTSC", "RDPMC",
		"PUSHF", "POPF", "CPUID", "RSM", "IRET", "INTn", "INVD", "PAUSE",
		"HLT", "INVLPG", "INVLPGA", "IOIO", "MSR", "task-switch", "FERR-freeze", "shutdown"},
	"INTERCEPT_WORD4": {"VMRUN", "VMMCALL", "VMLOAD", "VMSAVE", "STGI", "CLGI", "SKINIT", "RDTSCP",
		"ICEBP", "WBINVD", "MONITOR", "MWAIT", "MWAIT-armed", "XSETBV", "RDPRU", "EFER-write-trap",
		"CR0-write-trap", "CR1-write-trap", "CR2-write-trap", "CR3-write-trap", "CR4-write-trap", "CR5-write-trap",
		"CR6-write-trap", "CR7-write-trap", "CR8-write-trap", "CR9-write-trap", "CR10-write-trap", "CR11-write-trap",
		"CR12-write-trap", "CR13-write-trap", "CR14-write-trap", "CR15-write-trap"},
	"INTERCEPT_WORD5":  {"INVLPGB", "INVLPGB-illegal", "INVPCID", "MCOMMIT", "TLBSYNC", "bus-lock", "idle-HLT"},
	"ERAP_CONTROL":     {"ALLOW_LARGER_RAP", "CLEAR_RAP"},
	"INTERRUPT_SHADOW": {"interrupt shadow", "guest's RFLAGS.IF"},
	"NP_ENABLE": {"nested paging", "SEV", "SEV-ES", "guest mode execute trap", "SSS check", "VTE",
		"read-only guest page tables", "INVLPGB/TLBSYNC"},
	"LBR_VIRTUALIZATION_ENABLE": {"LBR", "VMLOAD/VMSAVE", "IBS", "PMC"},
	"VMCB_CLEAN": {"intercepts", "permission maps", "ASID", "TPR", "nested paging", "CRx", "DRx", "DT", "segments",
		"CR2", "LBR", "AVIC", "CET"},
	"EFER": efer,
	"CR0":  cr0, "CR4": cr4, "RFLAGS": rflags, "DR6": dr6,
	"DBGCTL": {"LBR", "BTF", "PB0", "PB1", "PB2", "PB3"},
}

var (
	efer = names{0: "SCE", 8: "LME", 10: "LMA", 11: "NXE", 12: "SVME", 13: "LMSLE", 14: "FFXSR", 15: "TCE",
		17: "MCOMMIT", 18: "INTWB", 20: "UAIE", 21: "AIBRSE"}
	cr0 = names{0: "PE", 1: "MP", 2: "EM", 3: "TS", 4: "ET", 5: "NE", 16: "WP", 18: "AM", 29: "NW", 30: "CD", 31: "PG"}
	cr4 = names{0: "VME", 1: "PVI", 2: "TSD", 3: "DE", 4: "PSE", 5: "PAE", 6: "MCE", 7: "PGE", 8: "PCE", 9: "OSFXSR",
		10: "OSXMMEXCPT", 11: "UMIP", 12: "LA57", 16: "FSGSBASE", 17: "PCIDE", 18: "OSXSAVE", 20: "SMEP", 21: "SMAP",
		22: "PKE", 23: "CET"}
	rflags = names{0: "CF", 1: fixed, 2: "PF", 4: "AF", 6: "ZF", 7: "SF", 8: "TF", 9: "IF", 10: "DF", 11: "OF",
		12: "IOPL0", 13: "IOPL1", 14: "NT", 16: "RF", 17: "VM", 18: "AC", 19: "VIF", 20: "VIP", 21: "ID"}
	dr6 = names{0: "B0", 1: "B1", 2: "B2", 3: "B3", 4: fixed, 5: fixed, 6: fixed, 7: fixed, 8: fixed, 9: fixed, 10: fixed,
		11: fixed, 13: "BD", 14: "BS", 15: "BT", 16: fixed, 17: fixed, 18: fixed, 19: fixed, 20: fixed, 21: fixed, 22: fixed,
		23: fixed, 24: fixed, 25: fixed, 26: fixed, 27: fixed, 28: fixed, 29: fixed, 30: fixed, 31: fixed}
)

// vectorNames are the exceptions as an exception bitmap has them.
func vectorNames() names {
	out := make(names, len(exceptions))
	for i := range out {
		out[i] = exceptionName(i)
	}
	return out
}

// meanings are fields that are more than a set of bits.
var meanings = map[string]func(uint64) string{
	"TLB_CONTROL": tlbMeaning,
	"V_INTR":      vintrMeaning,
	"EXITINTINFO": eventMeaning,
	"EVENTINJ":    eventMeaning,
	"DR7":         dr7Meaning,
	"G_PAT":       patMeaning,
	"CPL":         func(n uint64) string { return fmt.Sprintf("ring %d", n) },
}

func tlbMeaning(n uint64) string {
	switch n {
	case 0:
		return "flush nothing"
	case 1:
		return "flush the whole TLB"
	case 3:
		return "flush this guest's entries"
	case 7:
		return "flush this guest's non-global entries"
	}
	return "reserved"
}

// vintrMeaning reads the word at 0x060 (APM Vol. 2, Table B-1): V_TPR, V_IRQ, VGIF,
// V_INTR_PRIO and the rest, with the vector above them.
func vintrMeaning(n uint64) string {
	out := []string{fmt.Sprintf("V_TPR=%d", n&0xf)}
	for _, b := range []struct {
		bit  int
		name string
	}{{8, "V_IRQ"}, {9, "VGIF"}, {11, "V_NMI"}, {12, "V_NMI_MASK"}, {20, "V_IGN_TPR"}, {24, "V_INTR_MASKING"},
		{25, "VGIF-enable"}, {26, "V_NMI-enable"}, {30, "x2AVIC"}, {31, "AVIC"}} {
		if n>>b.bit&1 != 0 {
			out = append(out, b.name)
		}
	}
	if n>>8&1 != 0 {
		out = append(out, fmt.Sprintf("priority %d, vector %d", n>>16&0xf, n>>32&0xff))
	}
	return strings.Join(out, " ")
}

// eventTypes are the types of EVENTINJ and EXITINTINFO (APM Vol. 2, "Event Injection").
var eventTypes = [8]string{"interrupt", "reserved type 1", "NMI", "exception", "software interrupt",
	"reserved type 5", "reserved type 6", "reserved type 7"}

func eventMeaning(n uint64) string {
	if n>>31&1 == 0 {
		return "none"
	}
	kind, vector := n>>8&7, int(n&0xff)
	text := eventTypes[kind]
	switch kind {
	case 2:
	case 3:
		text += " " + exceptionName(vector)
	default:
		text += fmt.Sprintf(" %#x", vector)
	}
	if n>>11&1 != 0 {
		text += fmt.Sprintf(", error code %#x", n>>32)
	}
	return text
}

func dr7Meaning(n uint64) string {
	var out []string
	for i := range 4 {
		if n>>(2*i)&3 == 0 {
			continue
		}
		kind := [4]string{"execute", "write", "I/O", "read/write"}[n>>(16+4*i)&3]
		size := [4]int{1, 2, 8, 4}[n>>(18+4*i)&3]
		out = append(out, fmt.Sprintf("DR%d %s %d", i, kind, size))
	}
	if n>>13&1 != 0 {
		out = append(out, "GD")
	}
	if len(out) == 0 {
		return "no breakpoint"
	}
	return strings.Join(out, ", ")
}

// patTypes are the memory types of a PAT entry (APM Vol. 2, "Page-Attribute Table").
var patTypes = [8]string{"UC", "WC", "", "", "WT", "WP", "WB", "UC-"}

func patMeaning(n uint64) string {
	var out []string
	for i := range 8 {
		t := n >> (8 * i) & 0xff
		if t >= 8 || patTypes[t] == "" {
			out = append(out, fmt.Sprintf("reserved(%#x)", t))
		} else {
			out = append(out, patTypes[t])
		}
	}
	return strings.Join(out, " ")
}

// patLegal reports whether every entry of a PAT has a memory type that is defined.
func patLegal(n uint64) bool {
	for i := range 8 {
		if t := n >> (8 * i) & 0xff; t >= 8 || patTypes[t] == "" {
			return false
		}
	}
	return true
}

// segmentMeaning reads a segment's attributes: type, DPL and P of the descriptor in bits
// 7:0, AVL, L, D/B and G in bits 11:8 (APM Vol. 2, "Segment State in the VMCB").
func segmentMeaning(a uint16) string {
	if a>>7&1 == 0 {
		return "not present"
	}
	text := fmt.Sprintf("system type %d", a&0xf)
	if a>>4&1 != 0 {
		text = [8]string{"data r", "data rw", "data r down", "data rw down", "code x", "code xr", "code x conforming",
			"code xr conforming"}[a>>1&7]
	}
	text += fmt.Sprintf(" DPL %d", a>>5&3)
	for _, b := range []struct {
		bit  int
		name string
	}{{9, " L"}, {10, " D/B"}, {11, " G"}} {
		if a>>b.bit&1 != 0 {
			text += b.name
		}
	}
	return text
}
