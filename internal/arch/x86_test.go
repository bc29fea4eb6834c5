package arch

import "testing"

func TestTakesInterrupts(t *testing.T) {
	r := NewRegisters(X86)
	if _, known := r.TakesInterrupts(); known {
		t.Error("known without flags")
	}
	for flags, want := range map[uint64]bool{0x246: true, 0x46: false, 0x200: true} {
		r.Set("eflags", flags)
		if takes, known := r.TakesInterrupts(); !known || takes != want {
			t.Errorf("%#x: %v, %v", flags, takes, known)
		}
	}
}
