package linux

import (
	"testing"

	"nestdbg/internal/arch"
)

// A kernel runs as long as a CPU is on tables that map it; what is left of it in
// memory after a reset does not count.
func TestRuns(t *testing.T) {
	s := newFakeSystem(t, true)
	k := s.find()
	on := func(root uint64) *arch.Registers {
		r := arch.NewRegisters(arch.X86)
		r.Set("cr3", root)
		return r
	}
	own, none, unknown := on(uint64(s.root)|7), on(0x5000), arch.NewRegisters(arch.X86)
	for _, tt := range []struct {
		name string
		cpus []*arch.Registers
		want bool
	}{
		{"its tables", []*arch.Registers{own}, true},
		{"the user's half of its tables", []*arch.Registers{on(uint64(s.root) | 1<<12)}, uint64(s.root)&(1<<12) == 0},
		{"one CPU of several", []*arch.Registers{none, nil, own}, true},
		{"other tables", []*arch.Registers{none}, false},
		{"after a reset", []*arch.Registers{on(0)}, false},
		{"no registers", []*arch.Registers{unknown}, true},
		{"no CPU", nil, true},
	} {
		if got := k.Runs(tt.cpus); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
	// The next kernel, without KASLR: another banner at the same place.
	copy(s.ram[fakeImagePA+fakeBannerAt:], "Linux version 9")
	if k.Runs([]*arch.Registers{own}) {
		t.Error("another kernel at the same place is taken for this one")
	}
}
