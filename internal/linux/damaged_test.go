package linux

import (
	"errors"
	"testing"

	"nestdbg/internal/orc"
)

// TestDamagedUnwindTable overwrites one entry of the kernel's table:
// a stack that does not lead there is as before, one that does ends there, and
// what is wrong is named.
func TestDamagedUnwindTable(t *testing.T) {
	for _, tt := range []struct {
		name   string
		entry  uint64 // which is overwritten
		frames int
		err    error
	}{
		{"one that is not needed", 5, 6, nil},
		{"one that is needed", 1, 2, orc.ErrUndefined},
	} {
		s, stack := newStackFake(t)
		regs := fakeStack(stack)
		s.poke16(s.symbols["__start_orc_unwind"]+6*tt.entry+4, 0xffff)
		u := s.find().Unwinder()
		got, err := u.CPU(regs)
		if len(got) != tt.frames || got[len(got)-1].Guess || !errors.Is(err, tt.err) {
			t.Errorf("%s: %+v, %v", tt.name, got, err)
		}
		if len(u.Problems) != 1 || u.Problems[0].String() != "unwind table: 1 of 7 entries are damaged: orc table corrupt" {
			t.Errorf("%s: problems %v", tt.name, u.Problems)
		}
	}
}
