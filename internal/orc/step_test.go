package orc_test

import (
	"encoding/binary"
	"errors"
	"testing"

	"nestdbg/internal/mem"
	"nestdbg/internal/orc"
)

// words is memory made of 8-byte words. The nth read fails, if failAt is n.
type words struct {
	at     map[uint64]uint64
	reads  int
	failAt int
}

func (w *words) ReadVirt(p []byte, a mem.Virt) (int, error) {
	w.reads++
	for i := 0; i < len(p); i += 8 {
		v, ok := w.at[uint64(a)+uint64(i)]
		if !ok || w.reads == w.failAt {
			return i, &mem.FaultError{Space: "test", Addr: uint64(a) + uint64(i)}
		}
		binary.LittleEndian.PutUint64(p[i:], v)
	}
	return len(p), nil
}

// state makes a State of pairs.
func state(exact bool, regs map[orc.Reg]uint64) orc.State {
	s := orc.State{Exact: exact}
	for r, v := range regs {
		s.Set(r, v)
	}
	return s
}

const (
	stack  = 0xffffc90000010000
	caller = 0xffffffff81234567
)

// stackWords is a stack with something everywhere: the word at stack+8*i is
// caller+i.
func stackWords() *words {
	w := &words{at: map[uint64]uint64{}}
	for i := range uint64(64) {
		w.at[stack+8*i] = caller + i
	}
	w.at[0x1000] = stack + 0x40 // for the indirect bases
	return w
}

// pt_regs at stack: register n of struct pt_regs holds caller+n.
func allRegs() map[orc.Reg]uint64 {
	out := map[orc.Reg]uint64{}
	for r := orc.R15; r <= orc.SS; r++ {
		out[r] = caller + uint64(r)
	}
	return out
}

func TestStep(t *testing.T) {
	call := func(e orc.Entry) orc.Entry { e.Type = orc.Call; return e }
	type regs = map[orc.Reg]uint64
	partial := allRegs()
	for r := orc.R15; r < orc.IP; r++ {
		partial[r] = 7
	}
	for r := orc.IP; r <= orc.SS; r++ {
		partial[r] = caller + uint64(r-orc.IP)
	}
	sevens := regs{orc.IP: text, orc.SP: stack}
	for r := orc.R15; r < orc.IP; r++ {
		sevens[r] = 7
	}
	tests := []struct {
		name  string
		entry orc.Entry
		from  regs
		want  regs
	}{
		{"at the entry of a function", call(orc.Entry{Base: orc.BaseSP, SPOffset: 8}),
			regs{orc.IP: text, orc.SP: stack, orc.BP: 5, orc.BX: 6},
			regs{orc.IP: caller, orc.SP: stack + 8, orc.BP: 5}},
		{"rbp pushed", call(orc.Entry{Base: orc.BaseSP, SPOffset: 24, BP: orc.BPAtCFA, BPOffset: -16}),
			regs{orc.IP: text, orc.SP: stack},
			regs{orc.IP: caller + 2, orc.SP: stack + 24, orc.BP: caller + 1}},
		{"frame pointer", orc.FramePointer(),
			regs{orc.IP: text, orc.BP: stack + 8},
			regs{orc.IP: caller + 2, orc.SP: stack + 24, orc.BP: caller + 1}},
		{"realigned stack", call(orc.Entry{Base: orc.BaseR10, BP: orc.BPAtBP, BPOffset: 16}),
			regs{orc.IP: text, orc.R10: stack + 8, orc.BP: stack},
			regs{orc.IP: caller, orc.SP: stack + 8, orc.BP: caller + 2}},
		{"saved r10 below rbp", call(orc.Entry{Base: orc.BaseBPIndirect, SPOffset: -8}),
			regs{orc.IP: text, orc.BP: 0x1008},
			regs{orc.IP: caller + 7, orc.SP: stack + 0x40, orc.BP: 0x1008}},
		{"switched stack", call(orc.Entry{Base: orc.BaseSPIndirect, SPOffset: 8}),
			regs{orc.IP: text, orc.SP: 0x1000},
			regs{orc.IP: caller + 8, orc.SP: stack + 0x48}},
		{"r13", call(orc.Entry{Base: orc.BaseR13}), regs{orc.IP: text, orc.R13: stack + 8},
			regs{orc.IP: caller, orc.SP: stack + 8}},
		{"rdi", call(orc.Entry{Base: orc.BaseDI}), regs{orc.IP: text, orc.DI: stack + 8},
			regs{orc.IP: caller, orc.SP: stack + 8}},
		{"rdx", call(orc.Entry{Base: orc.BaseDX}), regs{orc.IP: text, orc.DX: stack + 8},
			regs{orc.IP: caller, orc.SP: stack + 8}},
		{"rax", call(orc.Entry{Base: orc.BaseAX}), regs{orc.IP: text, orc.AX: stack + 8},
			regs{orc.IP: caller, orc.SP: stack + 8}},
		{"pt_regs", orc.Entry{Type: orc.Regs, Base: orc.BaseSP, Signal: true},
			regs{orc.IP: text, orc.SP: stack}, allRegs()},
		{"interrupt frame", orc.Entry{Type: orc.RegsPartial, Base: orc.BaseSP, Signal: true}, sevens, partial},
		{"null pointer called", orc.NullCall(), regs{orc.IP: 0, orc.SP: stack},
			regs{orc.IP: caller, orc.SP: stack + 8}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			from := state(true, tt.from)
			w := stackWords()
			got, err := orc.Step(tt.entry, from, w)
			if err != nil {
				t.Fatal(err)
			}
			if want := state(tt.entry.Signal, tt.want); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
			for n := 1; n <= w.reads; n++ {
				faulty := stackWords()
				faulty.failAt = n
				got, err := orc.Step(tt.entry, from, faulty)
				if got != (orc.State{}) || !errors.Is(err, mem.ErrFault) {
					t.Errorf("read %d failed: %+v, %v", n, got, err)
				}
			}
		})
	}
}

func TestStepStops(t *testing.T) {
	type regs = map[orc.Reg]uint64
	sp := func(offset int16) orc.Entry {
		return orc.Entry{Type: orc.Call, Base: orc.BaseSP, SPOffset: offset}
	}
	zero := &words{at: map[uint64]uint64{stack: 0, stack + 8: text}}
	tests := []struct {
		name  string
		entry orc.Entry
		from  regs
		class error
	}{
		{"end", orc.Entry{Type: orc.End}, regs{orc.IP: text, orc.SP: stack}, orc.ErrEndOfStack},
		{"user mode", sp(8), regs{orc.IP: text, orc.SP: stack, orc.CS: 0x33}, orc.ErrEndOfStack},
		{"return to 0", sp(8), regs{orc.IP: text, orc.SP: stack}, orc.ErrEndOfStack},
		{"undefined", orc.Entry{}, regs{orc.IP: text, orc.SP: stack}, orc.ErrUndefined},
		{"rsp unknown", sp(8), regs{orc.IP: text}, orc.ErrUndefined},
		{"no such base", orc.Entry{Type: orc.Call, Base: 99}, regs{orc.SP: stack}, orc.ErrUndefined},
		{"no such type", orc.Entry{Type: 99, Base: orc.BaseSP}, regs{orc.SP: stack}, orc.ErrUndefined},
		{"rbp unknown", orc.Entry{Type: orc.Call, Base: orc.BaseSP, SPOffset: 16, BP: orc.BPAtBP},
			regs{orc.IP: 1, orc.SP: stack}, orc.ErrUndefined},
		{"own caller", sp(0), regs{orc.IP: text, orc.SP: stack + 16}, orc.ErrUndefined},
		{"not mapped", sp(8), regs{orc.IP: text, orc.SP: 8}, mem.ErrFault},
	}
	for _, tt := range tests {
		got, err := orc.Step(tt.entry, state(false, tt.from), zero)
		if got != (orc.State{}) || !errors.Is(err, tt.class) {
			t.Errorf("%s: %+v, %v, want %v", tt.name, got, err, tt.class)
		}
	}
}

func TestState(t *testing.T) {
	var s orc.State
	if _, ok := s.Get(orc.IP); ok {
		t.Error("the zero State knows a register")
	}
	if _, ok := s.LookupPC(); ok || s.User() {
		t.Error("the zero State knows where it is")
	}
	s.Set(99, 1)
	if _, ok := s.Get(99); ok || s != (orc.State{}) {
		t.Error("a register that does not exist was set")
	}
	s.Set(orc.IP, 0x1000)
	if pc, ok := s.LookupPC(); !ok || pc != 0xfff {
		t.Errorf("return address 0x1000 looked up at %#x", pc)
	}
	s.Exact = true
	if pc, ok := s.LookupPC(); !ok || pc != 0x1000 {
		t.Errorf("pc 0x1000 looked up at %#x", pc)
	}
}

// FuzzStep unwinds through a table and a stack of arbitrary bytes.
func FuzzStep(f *testing.F) {
	ip, unwind := sections([]raw{
		{start: text, sp: 8, flags: 5},
		{start: text + 16, sp: 16, bp: -16, flags: 0x15},
		{start: text + 32},
	})
	f.Add(ip, unwind, uint8(1), binary.LittleEndian.AppendUint64(nil, text+4))
	f.Fuzz(func(t *testing.T, ip, unwind []byte, version uint8, stackBytes []byte) {
		if v, err := orc.Detect(nil, unwind); err != nil && v != 0 {
			t.Fatal("version and error")
		}
		table, err := orc.New(ip, unwind, ipAddress, orc.Version(version%6))
		if (table == nil) == (err == nil) {
			t.Fatal("both or neither")
		}
		if err != nil {
			return
		}
		for r, e := range table.All() {
			if got, ok := table.Find(r.Last); !ok || got != e || r.Last < r.First {
				t.Fatalf("%v: %+v, found %+v", r, e, got)
			}
		}
		unwindAll(table, stackBytes)
	})
}

// unwindAll takes a bounded walk up a stack of these bytes.
func unwindAll(table *orc.Table, stackBytes []byte) {
	w := &words{at: map[uint64]uint64{}}
	for i := 0; i+8 <= len(stackBytes) && i < 4096; i += 8 {
		w.at[stack+uint64(i)] = binary.LittleEndian.Uint64(stackBytes[i:])
	}
	s := state(true, map[orc.Reg]uint64{orc.IP: text, orc.SP: stack, orc.BP: stack})
	for range 64 {
		pc, _ := s.LookupPC()
		e, ok := table.Find(pc)
		if !ok {
			e = orc.FramePointer()
		}
		var err error
		if s, err = orc.Step(e, s, w); err != nil {
			return
		}
	}
}
