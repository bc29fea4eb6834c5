package vmx

import (
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// realPage reads a real page in testdata.
func realPage(t testing.TB, name string) []byte {
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

// TestRealVMCS reads a VMCS of Bochs; the values were read by hand, from a hex dump of the
// page.
func TestRealVMCS(t *testing.T) {
	p := realPage(t, "bochs")
	a := Assess(p, below2G)
	if QuickReject(p) || !a.Plausible || len(a.Against) != 0 || a.VMCS.Layout() != Bochs || a.VMCS.Revision() != 0x2b {
		t.Fatalf("assessed as %+v", a)
	}
	v := a.VMCS
	reason, _ := v.ExitReason()
	name, ok := ExitName(reason)
	if pointer, on := v.EPT(); name != "HLT" || !ok || pointer != 0x1af9905e || !on || v.ModeBasedExecute() {
		t.Errorf("exit %q, EPT pointer %#x (%v), mode-based %v", name, pointer, on, v.ModeBasedExecute())
	}
	for _, c := range v.Checks(Processor{}) {
		if !c.OK {
			t.Errorf("VM entry would refuse it: %s (%s)", c.Wrong, c.Seen)
		}
	}
	// EFER is switched without the VMCS: what it has of it is old.
	check(t, v.GuestRegisters(), map[string]uint64{
		"rip": 0xffffffffa5617a0a, "rsp": 0xffffffffa6603e98, "eflags": 0x246, "cpl": 0, "efer_mode": 0xd00, "dr7": 0x400,
		"cr0": 0x80050033, "cr3": 0x37be004, "cr4": 0x3326b0, "pat": 0x0407050600070106,
		"es": 0, "cs": 0x10, "ss": 0x18, "ds": 0, "fs": 0, "gs": 0, "ldtr": 0, "tr": 0x40,
		"es_base": 0, "cs_base": 0, "ss_base": 0, "ds_base": 0, "fs_base": 0, "gs_base": 0xffff8f144ec00000,
		"ldtr_base": 0, "tr_base": 0xfffffe0000003000, "gdtr_base": 0xfffffe0000001000, "gdtr_limit": 0x7f,
		"idtr_base": 0xfffffe0000000000, "idtr_limit": 0xfff, "sysenter_cs": 0x10,
		"sysenter_esp": 0xfffffe0000003000, "sysenter_eip": 0xffffffffa58017b0,
	})
	host, err := v.HostRegisters()
	if err != nil {
		t.Fatal(err)
	}
	check(t, host, map[string]uint64{
		"rip": 0xffffffffc06313ae, "rsp": 0xffffcdf9c05fb9e0, "eflags": 2, "cpl": 0, "efer_mode": 0xd00, "dr7": 0x400,
		"cr0": 0x80050033, "cr3": 0x2520005, "cr4": 0x3326b0, "pat": 0x0407050600070106,
		"es": 0, "cs": 0x10, "ss": 0x18, "ds": 0, "fs": 0, "gs": 0, "ldtr": 0, "tr": 0x40,
		"es_base": 0, "cs_base": 0, "ss_base": 0, "ds_base": 0, "fs_base": 0x7f91b994f6c0, "gs_base": 0xffff89c3de400000,
		"tr_base": 0xfffffe0000003000, "gdtr_base": 0xfffffe0000001000, "gdtr_limit": 0xffff,
		"idtr_base": 0xfffffe0000000000, "idtr_limit": 0xffff, "sysenter_cs": 0x10,
		"sysenter_esp": 0xfffffe0000003000, "sysenter_eip": 0xffffffffabc017b0,
	})
}
