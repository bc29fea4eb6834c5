package svm

import (
	"strings"
	"testing"

	"nestdbg/internal/svm/svmtest"
)

func TestMeaning(t *testing.T) {
	for _, c := range []struct {
		field string
		value uint64
		want  string
	}{
		{"INTERCEPT_CR_WRITE", 0x11, "CR0 CR4"},
		{"INTERCEPT_EXCEPTION", 1<<14 | 1<<6, "#UD #PF"},
		{"INTERCEPT_WORD3", 1<<0 | 1<<18 | 1<<31, "INTR CPUID shutdown"},
		{"INTERCEPT_WORD4", 1<<0 | 1<<1 | 1<<31, "VMRUN VMMCALL CR15-write-trap"},
		{"INTERCEPT_WORD5", 1 << 12, "reserved 12"},
		{"TLB_CONTROL", 3, "flush this guest's entries"},
		{"TLB_CONTROL", 2, "reserved"},
		{"V_INTR", 0x03000200, "V_TPR=0 VGIF V_INTR_MASKING VGIF-enable"},
		{"V_INTR", 0x41<<32 | 5<<16 | 1<<8 | 3, "V_TPR=3 V_IRQ priority 5, vector 65"},
		{"EVENTINJ", 0, "none"},
		{"EVENTINJ", 1<<31 | 0xec, "interrupt 0xec"},
		{"EXITINTINFO", 0x2<<32 | 1<<31 | 1<<11 | 3<<8 | 14, "exception #PF, error code 0x2"},
		{"EVENTINJ", 1<<31 | 2<<8 | 2, "NMI"},
		{"NP_ENABLE", 1, "nested paging"},
		{"VMCB_CLEAN", 0x11, "intercepts nested paging"},
		{"EXITCODE", 0x400, "NPF"},
		{"EFER", 0x1d01, "SCE LME LMA NXE SVME"},
		{"CR0", 0x80050033, "PE MP ET NE WP AM PG"},
		{"RFLAGS", 0x246, "PF ZF IF"},
		{"DR6", 0xffff0ff0, ""},
		{"DR6", 0xffff4ff1, "B0 BS"},
		{"DR7", 0x400, "no breakpoint"},
		{"DR7", 0x400 | 2 | 1<<16 | 3<<18, "DR0 write 4"},
		{"G_PAT", 0x0007040600070406, "WB WT UC- UC WB WT UC- UC"},
		{"G_PAT", 0x0007040600070402, "reserved(0x2) WT UC- UC WB WT UC- UC"},
		{"CS.attrib", 0xa9b, "code xr DPL 0 L G"},
		{"SS.attrib", 0xcf3, "data rw DPL 3 D/B G"},
		{"TR.attrib", 0x8b, "system type 11 DPL 0"},
		{"FS.attrib", 0x1c, "not present"},
		{"CPL", 3, "ring 3"},
		{"RIP", 0x1000, ""},
	} {
		f := Value{Bytes: make([]byte, 8)}
		f.Name = c.field
		for i := range f.Bytes {
			f.Bytes[i] = byte(c.value >> (8 * i))
		}
		if got := f.Meaning(); got != c.want {
			t.Errorf("%s %#x: %q, want %q", c.field, c.value, got, c.want)
		}
	}
}

// Every name that has a meaning is a field.
func TestMeaningNames(t *testing.T) {
	there := map[string]bool{}
	for _, f := range fields {
		there[f.Name] = true
	}
	for name := range flagNames {
		if !there[name] {
			t.Errorf("no field %s", name)
		}
	}
	for name := range meanings {
		if !there[name] {
			t.Errorf("no field %s", name)
		}
	}
}

func TestExitDetails(t *testing.T) {
	for _, c := range []struct {
		code, info1, info2 uint64
		want               string
	}{
		{0x400, 1<<32 | 6, 0xfee000b0, "guest physical address: 0xfee000b0; " +
			"error code: 0x100000006: write, not present, of the guest's access itself (W U final)"},
		{0x400, 1<<33 | 5, 0x3000, "guest physical address: 0x3000; " +
			"error code: 0x200000005: read, not permitted, while the guest's page tables were read (P U page tables)"},
		{0x400, 1<<32 | 0x1d, 0x3000, "guest physical address: 0x3000; " +
			"error code: 0x10000001d: instruction fetch, reserved bit set, of the guest's access itself (P U RSV I/D final)"},
		{0x4e, 2, 0x7fff0000, "address: 0x7fff0000; error code: 0x2: W"},
		{0x4d, 0x18, 0, "error code: 0x18"},
		{0x46, 0x18, 0, ""},
		{0x7b, 0x3f8<<16 | 1<<4, 0x1002, "access: OUT, 1 byte; port: 0x3f8; next RIP: 0x1002"},
		{0x7b, 0x1f0<<16 | 1<<5 | 1<<3 | 1<<2 | 1, 0x1002, "access: REP INS, 2 bytes; port: 0x1f0; next RIP: 0x1002"},
		{0x7c, 1, 0, "access: WRMSR"},
		{0x10, 1<<63 | 3, 0, "general register: rbx"},
		{0x10, 0, 0, ""},
		{0x7d, 0x28, 1 << 36, "selector of the TSS: 0x28; error code: 0x0; cause: IRET"},
		{0x401, 0x4500, 1 << 32, "ICR: 0x4500; cause: target not running; APIC index: 0"},
		{0x402, 1<<32 | 0xb0, 0, "APIC offset: 0xb0; access: write"},
		{0x78, 5, 5, ""},
	} {
		v := view(t, svmtest.VMCB(svmtest.Values{"EXITCODE": c.code, "EXITINFO1": c.info1, "EXITINFO2": c.info2}))
		var out []string
		for _, d := range v.ExitDetails() {
			out = append(out, d.Name+": "+d.Text)
		}
		if got := strings.Join(out, "; "); got != c.want {
			t.Errorf("exit %#x: %s\nwant %s", c.code, got, c.want)
		}
		f, ok := v.NestedFault()
		if ok != (c.code == 0x400) || ok && (f.Addr != c.info2 || f.Write != (c.info1&2 != 0) || f.Tables != (c.info1>>33&1 != 0)) {
			t.Errorf("exit %#x: nested fault %+v, %v", c.code, f, ok)
		}
	}
}
