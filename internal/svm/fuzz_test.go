package svm

import (
	"testing"

	"nestdbg/internal/svm/svmtest"
)

// FuzzParse looks at a page made of the input, repeated at offset 0x400.
func FuzzParse(f *testing.F) {
	f.Add(svmtest.VMCB(nil))
	f.Add(svmtest.HostSave(0x18dce000, nil))
	f.Add(page(f, "vmcb"))
	f.Add(page(f, "hsave"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := make([]byte, PageSize)
		copy(p[0x400:], b)
		copy(p, b)
		v, err := Parse(p)
		if err != nil {
			t.Fatal(err)
		}
		a := Assess(p, below2G)
		if a.Plausible && QuickReject(p) {
			t.Fatalf("rejected, but assessed as %+v", a)
		}
		if a.Score != len(a.Evidence) {
			t.Fatalf("score %d of %q", a.Score, a.Evidence)
		}
		if a.Plausible && IsHostSave(p) {
			t.Fatal("both a VMCB and a host save area")
		}
		for _, f := range v.Fields() {
			f.Uint()
			f.Meaning()
		}
		v.ExitDetails()
		v.Checks(uint(p[0]))
		v.Structures()
		if _, ok := v.Registers().PC(); ok == (v.u64(offNPEnable)&sevESEnable != 0) {
			t.Fatalf("RIP known %v", ok)
		}
		if r, err := HostRegisters(p); (r == nil) == (err == nil) {
			t.Fatalf("registers %v with error %v", r, err)
		}
		if _, err := HostVMCB(p); err != nil && IsHostSave(p) {
			t.Fatal(err)
		}
	})
}

func BenchmarkQuickReject(b *testing.B) {
	memory := make([]byte, 64<<20)
	for i := range memory {
		memory[i] = byte(i >> 12)
	}
	b.SetBytes(int64(len(memory)))
	for b.Loop() {
		for p := 0; p < len(memory); p += PageSize {
			QuickReject(memory[p : p+PageSize])
		}
	}
}
