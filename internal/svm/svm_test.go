package svm

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/svm/svmtest"
)

// page reads a real page in testdata.
func page(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name+".gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// check compares registers by name; what is not in want must not be known.
func check(t *testing.T, r *arch.Registers, want map[string]uint64) {
	t.Helper()
	for i, reg := range arch.X86.Regs {
		w, expected := want[reg.Name]
		if r.Known(i) != expected {
			t.Errorf("%s: known %v, want %v", reg.Name, r.Known(i), expected)
			continue
		}
		if v, _ := r.Get(reg.Name); expected && v != w {
			t.Errorf("%s = %#x, want %#x", reg.Name, v, w)
		}
	}
}

func view(t testing.TB, p []byte) *VMCB {
	t.Helper()
	v, err := Parse(p)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestParseSize(t *testing.T) {
	for _, n := range []int{0, 1, 4095, 4097, 8192} {
		if v, err := Parse(make([]byte, n)); v != nil || !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d bytes: %v, %v", n, v, err)
		}
		if a := Assess(make([]byte, n), nil); a.Plausible || len(a.Against) != 1 {
			t.Errorf("%d bytes: %+v", n, a)
		}
		if IsHostSave(make([]byte, n)) {
			t.Errorf("%d bytes are a host save area", n)
		}
		if _, err := HostVMCB(make([]byte, n)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// realGuest is the VMCB in testdata as the manual's tables read it by hand, from
// a hex dump of the page.
var realGuest = map[string]uint64{
	"rip": 0x52be59, "rsp": 0x7ffee04f05b0, "rax": 0x565ec10, "eflags": 0x286, "cpl": 3, "cr8": 1,
	"cr0": 0x80050033, "cr2": 0x7ffee04efdd8, "cr3": 0x28ce000, "cr4": 0x711eb0, "efer": 0x1d01,
	"dr6": 0xffff0ff0, "dr7": 0x400, "es": 0, "cs": 0x33, "ss": 0x2b, "ds": 0, "fs": 0, "gs": 0,
	"es_base": 0, "cs_base": 0, "ss_base": 0, "ds_base": 0, "fs_base": 0x565d3c0, "gs_base": 0,
	"gdtr_base": 0xfffffe0000001000, "gdtr_limit": 0x7f, "idtr_base": 0xfffffe0000000000, "idtr_limit": 0xfff,
	"ldtr": 0, "ldtr_base": 0, "tr": 0x40, "tr_base": 0xfffffe0000003000, "k_gs_base": 0xff481cbc0f600000,
	"star": 0x0023001000000000, "lstar": 0xffffffff94400080, "cstar": 0xffffffff94401870, "fmask": 0x257fd5,
	"sysenter_cs": 0x10, "sysenter_esp": 0xfffffe0000003000, "sysenter_eip": 0xffffffff944017b0,
	"pat": 0x0007040600070406,
}

func TestRealVMCB(t *testing.T) {
	p := page(t, "vmcb")
	v := view(t, p)
	check(t, v.Registers(), realGuest)
	name, ok := ExitName(v.ExitCode())
	if !v.NestedPaging() || v.Encrypted() || v.NCR3() != 0x194ed000 || v.ASID() != 11 || name != "INTR" || !ok {
		t.Errorf("nested paging %v, encrypted %v, root %#x, ASID %d, exit %q", v.NestedPaging(), v.Encrypted(), v.NCR3(), v.ASID(), name)
	}
	if v.ExitInfo1() != 0 || v.ExitInfo2() != 0 || v.IOPM() != 0x265c000 || v.MSRPM() != 0x19d5a000 {
		t.Errorf("exit info %#x %#x, IOPM %#x, MSRPM %#x", v.ExitInfo1(), v.ExitInfo2(), v.IOPM(), v.MSRPM())
	}
	a := Assess(p, below2G)
	if QuickReject(p) || !a.Plausible || len(a.Against) != 0 || a.Score != len(a.Evidence) || IsHostSave(p) {
		t.Errorf("assessed as %+v", a)
	}
	for _, c := range v.Checks(0) {
		if !c.OK {
			t.Errorf("VMRUN would refuse it: %+v", c)
		}
	}
}

func TestRealHostSave(t *testing.T) {
	p := page(t, "hsave")
	r, err := HostRegisters(p)
	if err != nil {
		t.Fatal(err)
	}
	check(t, r, map[string]uint64{
		"rip": 0xffffffffc05e3dcc, "rsp": 0xff5e51f7803fb950, "rax": 0x18dce000, "eflags": 0x246, "cpl": 0,
		"cr0": 0x80050033, "cr2": 0x7ffee04efdd8, "cr3": 0x19dc0000, "cr4": 0x751ea0, "efer": 0x1d01,
		"dr6": 0xffff0ff0, "dr7": 0x400, "es": 0, "cs": 0x10, "ss": 0x18, "ds": 0, "fs": 0, "gs": 0,
		"es_base": 0, "cs_base": 0, "ss_base": 0, "ds_base": 0, "fs_base": 0x7f822b07c6c0, "gs_base": 0xff37a4c33bf00000,
		"gdtr_base": 0xfffffe000003c000, "gdtr_limit": 0x7f, "idtr_base": 0xfffffe0000000000, "idtr_limit": 0xfff,
		"ldtr": 0, "ldtr_base": 0, "tr": 0x40, "tr_base": 0xfffffe000003e000, "k_gs_base": 0,
		"star": 0x0023001000000000, "lstar": 0xffffffffb5000080, "cstar": 0xffffffffb5001870, "fmask": 0x257fd5,
		"sysenter_cs": 0x10, "sysenter_esp": 0xfffffe000003e000, "sysenter_eip": 0xffffffffb50017b0,
	})
	if a, err := HostVMCB(p); a != 0x18dce000 || err != nil {
		t.Errorf("VMCB at %#x, %v", a, err)
	}
	if !IsHostSave(p) || Assess(p, nil).Plausible || !QuickReject(p) {
		t.Error("not recognised as a host save area, or taken for a VMCB")
	}
}

// TestRegisters gives each field a value of its own.
func TestRegisters(t *testing.T) {
	v := view(t, svmtest.Page(svmtest.Values{
		"V_INTR": 1<<24 | 0x45, "NP_ENABLE": 1, "ES": 1, "CS": 2, "SS": 3, "DS": 4, "FS": 5, "GS": 6, "LDTR": 7, "TR": 8,
		"ES base": 11, "CS base": 12, "SS base": 13, "DS base": 14, "FS base": 15, "GS base": 16, "LDTR base": 17,
		"TR base": 18, "GDTR base": 19, "GDTR limit": 20, "IDTR base": 21, "IDTR limit": 22, "CPL": 2, "EFER": 24,
		"CR0": 25, "CR2": 26, "CR3": 27, "CR4": 28, "DR6": 29, "DR7": 30, "RFLAGS": 31, "RIP": 32, "RSP": 33, "RAX": 34,
		"STAR": 35, "LSTAR": 36, "CSTAR": 37, "SFMASK": 38, "KernelGSBase": 39, "SYSENTER_CS": 40, "SYSENTER_ESP": 41,
		"SYSENTER_EIP": 42, "G_PAT": 43,
	}))
	check(t, v.Registers(), map[string]uint64{
		"cr8": 5, "es": 1, "cs": 2, "ss": 3, "ds": 4, "fs": 5, "gs": 6, "ldtr": 7, "tr": 8,
		"es_base": 11, "cs_base": 12, "ss_base": 13, "ds_base": 14, "fs_base": 15, "gs_base": 16, "ldtr_base": 17,
		"tr_base": 18, "gdtr_base": 19, "gdtr_limit": 20, "idtr_base": 21, "idtr_limit": 22, "cpl": 2, "efer": 24,
		"cr0": 25, "cr2": 26, "cr3": 27, "cr4": 28, "dr6": 29, "dr7": 30, "eflags": 31, "rip": 32, "rsp": 33, "rax": 34,
		"star": 35, "lstar": 36, "cstar": 37, "fmask": 38, "k_gs_base": 39, "sysenter_cs": 40, "sysenter_esp": 41,
		"sysenter_eip": 42, "pat": 43,
	})
}

func TestRegistersUnknown(t *testing.T) {
	for name, c := range map[string]struct {
		values svmtest.Values
		absent []string
	}{
		"no nested paging": {svmtest.Values{"NP_ENABLE": 0}, []string{"pat"}},
		"no own TPR":       {svmtest.Values{"V_INTR": 5}, []string{"cr8"}},
		"SEV-ES":           {svmtest.Values{"NP_ENABLE": 7}, []string{"rip", "cr3", "gs_base", "cpl", "pat"}},
	} {
		r := view(t, svmtest.VMCB(c.values)).Registers()
		for _, reg := range c.absent {
			if v, ok := r.Get(reg); ok {
				t.Errorf("%s: %s = %#x", name, reg, v)
			}
		}
	}
	for _, bits := range []uint64{2, 4, 6} {
		if !view(t, svmtest.VMCB(svmtest.Values{"NP_ENABLE": 1 | bits})).Encrypted() {
			t.Errorf("NP_ENABLE %#x is not encrypted", 1|bits)
		}
	}
}

func TestHostRegistersParts(t *testing.T) {
	const vmcb = 0x18dce000
	for name, c := range map[string]struct {
		values svmtest.Values
		run    bool // what VMRUN saves is known
		saved  bool // what VMSAVE saves is known
	}{
		"TCG and KVM":       {nil, true, true},
		"TCG and Xen":       {svmtest.Values{"TR base": 0, "TR": 0, "GS base": 0, "LSTAR": 0}, true, false},
		"KVM as L0 and KVM": {svmtest.Values{"EFER": 0, "RIP": 0, "CR3": 0, "RAX": 0}, false, true},
		"never used":        {svmtest.Values{"EFER": 0, "TR base": 0}, false, false},
	} {
		r, err := HostRegisters(svmtest.HostSave(vmcb, c.values))
		if (err == nil) != (c.run || c.saved) || err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: error %v", name, err)
		}
		if err != nil {
			continue
		}
		_, run := r.PC()
		_, cr3 := r.Get("cr3")
		_, saved := r.Get("gs_base")
		_, lstar := r.Get("lstar")
		if run != c.run || cr3 != c.run || saved != c.saved || lstar != c.saved {
			t.Errorf("%s: RIP %v, CR3 %v known, want %v; GS %v, LSTAR %v known, want %v", name, run, cr3, c.run, saved, lstar, c.saved)
		}
		if a, err := HostVMCB(svmtest.HostSave(vmcb, c.values)); (err == nil) != c.run || c.run && a != vmcb {
			t.Errorf("%s: VMCB at %#x, %v", name, a, err)
		}
	}
	if _, err := HostVMCB(svmtest.HostSave(0x1234, nil)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("RAX that is no page: %v", err)
	}
}

func TestExitName(t *testing.T) {
	for code, want := range map[uint64]string{
		0: "CR0 read", 8: "CR8 read", 0x10: "CR0 write", 0x18: "CR8 write", 0x27: "DR7 read", 0x37: "DR7 write",
		0x40: "exception #DE", 0x4e: "exception #PF", 0x4f: "exception vector 15", 0x5d: "exception #VC",
		0x60: "INTR", 0x61: "NMI", 0x64: "VINTR", 0x65: "CR0 selective write", 0x6e: "RDTSC", 0x72: "CPUID",
		0x77: "PAUSE", 0x78: "HLT", 0x7b: "IOIO", 0x7c: "MSR", 0x7f: "shutdown", 0x80: "VMRUN", 0x81: "VMMCALL",
		0x87: "RDTSCP", 0x8a: "MONITOR", 0x8b: "MWAIT", 0x8d: "XSETBV", 0x8f: "EFER write trap", 0x90: "CR0 write trap",
		0xa2: "INVPCID", 0xa5: "bus lock", 0xa6: "idle HLT", 0x400: "NPF", 0x401: "AVIC incomplete IPI", 0x403: "VMGEXIT",
		1<<32 - 1: "invalid guest state", 1<<64 - 1: "invalid guest state", 1<<64 - 2: "busy",
	} {
		if got, ok := ExitName(code); got != want || !ok {
			t.Errorf("exit code %#x is %q (%v), want %q", code, got, ok, want)
		}
	}
	names := map[string]uint64{}
	for code := range uint64(0xa7) {
		name, ok := ExitName(code)
		if other, twice := names[name]; !ok || name == "" || twice {
			t.Errorf("exit code %#x is %q (%v), as is %#x", code, name, ok, other)
		}
		names[name] = code
	}
	for _, code := range []uint64{0xa7, 0x3ff, 0x404, 1 << 32, 1<<64 - 5, 0xf0000001} {
		if got, ok := ExitName(code); ok || got != fmt.Sprintf("exit code %#x", code) {
			t.Errorf("exit code %#x is %q (%v)", code, got, ok)
		}
	}
}
