package vmx

import (
	"testing"

	"nestdbg/internal/vmx/vmxtest"
)

// FuzzAssess looks at a page that begins with the input, by all layouts.
func FuzzAssess(f *testing.F) {
	for _, kind := range vmxtest.Kinds {
		f.Add(vmxtest.VMCS(kind, nil))
		f.Add(vmxtest.Page(kind, nil))
	}
	f.Add(realPage(f, "bochs"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := make([]byte, PageSize)
		copy(p, b)
		a := Assess(p, below2G)
		if a.Plausible && QuickReject(p) {
			t.Fatalf("rejected, but assessed as %+v", a)
		}
		if a.Score != len(a.Evidence) {
			t.Fatalf("score %d of %q", a.Score, a.Evidence)
		}
		for _, l := range Layouts {
			v, err := View(p, l)
			if err != nil {
				t.Fatal(err)
			}
			if len(v.Fields()) != len(l.Fields()) {
				t.Fatalf("%s: %d fields of %d", l.Name, len(v.Fields()), len(l.Fields()))
			}
			for _, c := range v.Checks() {
				if c.Name == "" || c.Seen == "" && c.Name != "it is no shadow VMCS" {
					t.Fatalf("%s: check %+v", l.Name, c)
				}
			}
			if _, ok := v.GuestRegisters().PC(); !ok {
				t.Fatalf("%s: no RIP", l.Name)
			}
			if r, err := v.HostRegisters(); (r == nil) == (err == nil) {
				t.Fatalf("registers %v with error %v", r, err)
			}
			v.EventInjection()
			v.ExitDetails()
			v.EPTFault()
			for _, x := range v.Fields() {
				x.Field.Meaning(x.Value)
			}
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
