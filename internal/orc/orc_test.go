package orc_test

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nestdbg/internal/mem"
	"nestdbg/internal/orc"
)

const (
	ipAddress = 0xffffffff82c5d5c0
	text      = 0xffffffff81000000
)

// raw is one entry as the kernel stores it.
type raw struct {
	start  uint64
	sp, bp int16
	flags  uint16
}

// sections packs entries into the two arrays.
func sections(entries []raw) (ip, unwind []byte) {
	for i, e := range entries {
		place := ipAddress + uint64(4*i)
		ip = binary.LittleEndian.AppendUint32(ip, uint32(e.start-place))
		unwind = binary.LittleEndian.AppendUint16(unwind, uint16(e.sp))
		unwind = binary.LittleEndian.AppendUint16(unwind, uint16(e.bp))
		unwind = binary.LittleEndian.AppendUint16(unwind, e.flags)
	}
	return ip, unwind
}

func newTable(t testing.TB, v orc.Version, entries []raw) *orc.Table {
	t.Helper()
	ip, unwind := sections(entries)
	table, err := orc.New(ip, unwind, ipAddress, v)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// Flags are written out as the kernel's headers of each version have them, the
// register of rsp in the lowest digit, that of rbp in the next.
func TestDecode(t *testing.T) {
	call := orc.Entry{Type: orc.Call, Base: orc.BaseSP, SPOffset: 16, BP: orc.BPAtCFA, BPOffset: -16}
	with := func(f func(*orc.Entry)) orc.Entry {
		e := orc.Entry{Type: orc.Call, SPOffset: 16, BPOffset: -16}
		f(&e)
		return e
	}
	base := func(b orc.Base) orc.Entry { return with(func(e *orc.Entry) { e.Base = b }) }
	exception := func(kind orc.Type, signal bool) orc.Entry {
		return with(func(e *orc.Entry) { e.Base, e.Type, e.Signal = orc.BaseSP, kind, signal })
	}
	end, undefined := orc.Entry{Type: orc.End}, orc.Entry{}
	tests := []struct {
		version orc.Version
		flags   uint16
		want    orc.Entry
	}{
		{orc.V1, 0x015, call}, {orc.V2, 0x015, call}, {orc.V3, 0x215, call}, {orc.V4, 0x283, call},
		{orc.V1, 0x000, undefined}, {orc.V2, 0x000, undefined}, {orc.V3, 0, undefined}, {orc.V4, 0, undefined},
		{orc.V1, 0x400, end}, {orc.V2, 0x800, end}, {orc.V3, 0x100, end}, {orc.V4, 0x100, end},
		{orc.V1, 0x105, exception(orc.Regs, true)}, {orc.V1, 0x205, exception(orc.RegsPartial, true)},
		{orc.V2, 0x105, exception(orc.Regs, false)}, {orc.V2, 0x505, exception(orc.Regs, true)},
		{orc.V3, 0x305, exception(orc.Regs, false)}, {orc.V3, 0xc05, exception(orc.RegsPartial, true)},
		{orc.V4, 0xb03, exception(orc.Regs, true)}, {orc.V4, 0x403, exception(orc.RegsPartial, false)},
		{orc.V1, 0x002, base(orc.BaseDX)}, {orc.V1, 0x003, base(orc.BaseDI)},
		{orc.V1, 0x004, base(orc.BaseBP)}, {orc.V1, 0x006, base(orc.BaseR10)},
		{orc.V1, 0x007, base(orc.BaseR13)}, {orc.V1, 0x008, base(orc.BaseBPIndirect)},
		{orc.V1, 0x009, base(orc.BaseSPIndirect)}, {orc.V3, 0x20a, base(orc.BaseAX)},
		{orc.V4, 0x201, base(orc.BaseAX)}, {orc.V4, 0x202, base(orc.BaseDX)},
		{orc.V4, 0x203, base(orc.BaseSP)}, {orc.V4, 0x204, base(orc.BaseBP)},
		{orc.V4, 0x205, base(orc.BaseDI)}, {orc.V4, 0x206, base(orc.BaseR10)},
		{orc.V4, 0x207, base(orc.BaseR13)}, {orc.V4, 0x209, base(orc.BaseSPIndirect)},
		{orc.V4, 0x20a, base(orc.BaseBPIndirect)},
		{orc.V3, 0x246, with(func(e *orc.Entry) { e.Base, e.BP = orc.BaseR10, orc.BPAtBP })},
		{orc.V4, 0x24a, with(func(e *orc.Entry) { e.Base, e.BP = orc.BaseBPIndirect, orc.BPAtBP })},
	}
	for _, tt := range tests {
		table := newTable(t, tt.version, []raw{{start: text, sp: 16, bp: -16, flags: tt.flags}, {start: text + 1}})
		got, ok := table.Find(text)
		if !ok || got != tt.want {
			t.Errorf("version %d flags %#x: %+v, %v, want %+v", tt.version, tt.flags, got, ok, tt.want)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	good := []raw{{start: text, sp: 8, flags: 5}, {start: text + 16}}
	ip, unwind := sections(good)
	backwards, _ := sections([]raw{good[1], good[0]})
	flags := func(f uint16) []byte {
		_, u := sections([]raw{{start: text, sp: 8, flags: f}, good[1]})
		return u
	}
	tests := []struct {
		name       string
		ip, unwind []byte
		version    orc.Version
	}{
		{"nothing", nil, nil, orc.V1},
		{"half an address", ip[:6], unwind, orc.V1},
		{"fewer entries", ip, unwind[:6], orc.V1},
		{"more entries", ip[:4], unwind, orc.V1},
		{"descending", backwards, unwind, orc.V1},
		{"version 0", ip, unwind, 0},
		{"version 5", ip, unwind, 5},
		{"type 3", ip, flags(0x305), orc.V1},
		{"bit 11 in version 1", ip, flags(0x805), orc.V1},
		{"type 5", ip, flags(0x505), orc.V3},
		{"high bits", ip, flags(0x1205), orc.V3},
		{"no register", ip, flags(0x200), orc.V3},
		{"register 11", ip, flags(0x20b), orc.V3},
		{"the caller's rsp as base", ip, flags(0x201), orc.V3},
		{"the caller's rsp as base", ip, flags(0x208), orc.V4},
		{"rbp from rdi", ip, flags(0x235), orc.V3},
		{"a table of version 1 as 3", ip, unwind, orc.V3},
	}
	for _, tt := range tests {
		table, err := orc.New(tt.ip, tt.unwind, ipAddress, tt.version)
		if table != nil || !errors.Is(err, orc.ErrCorrupt) {
			t.Errorf("%s: %v, %v", tt.name, table, err)
		}
	}
}

// TestDamage overwrites a few entries of a table: they are Undefined, and so is what
// borders on a lost address, since where it ends is lost too. All else is as before.
func TestDamage(t *testing.T) {
	for version, call := range map[orc.Version]uint16{orc.V1: 0x005, orc.V2: 0x005, orc.V3: 0x205, orc.V4: 0x203} {
		checkDamage(t, version, call)
	}
}

// checkDamage is TestDamage with a version; call is what flags a call has there.
func checkDamage(t *testing.T, version orc.Version, call uint16) {
	const n = 40
	entries := func() []raw {
		all := manyEntries(n)
		for i := range all {
			all[i].flags = call
		}
		return all
	}
	undefined := func(first, end uint64) func(uint64) bool {
		return func(pc uint64) bool { return pc >= text+first && pc < text+end }
	}
	for _, tt := range []struct {
		name   string
		edit   func(all []raw)
		lost   func(pc uint64) bool
		damage string
	}{
		{"nothing", func([]raw) {}, undefined(0, 0), ""},
		{"no such entry", func(all []raw) { all[3].flags = 0xffff }, undefined(0x30, 0x40), "1 of 40 entries are damaged"},
		{"no such entries", func(all []raw) { all[3].flags, all[9].flags = 0xffff, 0x209f },
			func(pc uint64) bool { return undefined(0x30, 0x40)(pc) || undefined(0x90, 0xa0)(pc) }, "2 of 40 entries are damaged"},
		{"an address too high", func(all []raw) { all[3].start += 0x400000 }, undefined(0x20, 0x40), "1 of 40 entries are damaged"},
		{"an address too low", func(all []raw) { all[3].start -= 0x400000 }, undefined(0x20, 0x40), "1 of 40 entries are damaged"},
		{"both of one", func(all []raw) { all[3].start, all[3].flags = text, 0xffff }, undefined(0x20, 0x40), "1 of 40 entries are damaged"},
		{"the first address", func(all []raw) { all[0].start += 0x1000 }, undefined(0, 0x10), "1 of 40 entries are damaged"},
		{"two neighbours", func(all []raw) { all[3].start, all[4].start = text+0x5000, text+0x4000 }, undefined(0x20, 0x50), "2 of 40 entries are damaged"},
	} {
		all := entries()
		tt.edit(all)
		table := newTable(t, version, all)
		if got := table.Damage(); got != tt.damage {
			t.Errorf("version %d, %s: damage %q, want %q", version, tt.name, got, tt.damage)
		}
		for pc := uint64(text); pc < text+16*(n-1); pc++ {
			want := orc.Entry{Type: orc.Call, Base: orc.BaseSP, SPOffset: 8}
			if tt.lost(pc) {
				want = orc.Entry{}
			}
			// Nothing says that there is anything before the first address that is left.
			if got, ok := table.Find(pc); got != want || !ok && pc >= text+16 {
				t.Errorf("version %d, %s: Find(%#x) = %+v, %v, want %+v", version, tt.name, pc, got, ok, want)
				break
			}
		}
		next := uint64(0)
		for r, e := range table.All() {
			if got, ok := table.Find(r.First); next != 0 && r.First != next || !ok || got != e {
				t.Errorf("version %d, %s: All has %v %+v, Find %+v", version, tt.name, r, e, got)
			}
			next = r.Last + 1
		}
	}
	for name, edit := range map[string]func(*raw){
		"entries":   func(e *raw) { e.flags = 0xffff },
		"addresses": func(e *raw) { e.start = text },
	} {
		all := entries()
		for i := range all[:n/3] {
			edit(&all[n-1-2*i])
		}
		ip, unwind := sections(all)
		if table, err := orc.New(ip, unwind, ipAddress, version); table != nil || !errors.Is(err, orc.ErrCorrupt) {
			t.Errorf("version %d, a third of the %s is damaged: %v, %v", version, name, table, err)
		}
	}
}

func TestDetect(t *testing.T) {
	header := func(b ...byte) []byte { return append(b, make([]byte, 12)...) }
	entries := func(flags ...uint16) []byte {
		var all []raw
		for _, f := range flags {
			all = append(all, raw{flags: f})
		}
		_, u := sections(all)
		return u
	}
	tests := []struct {
		name           string
		header, unwind []byte
		want           orc.Version
	}{
		{"header of 6.3", header(0xdb, 0x84, 0xae, 0xd4, 0x10, 0x3b, 0x31, 0xdd), nil, orc.V2},
		{"header of 6.12", header(0xfe, 0x5d, 0x32, 0xbf, 0x58, 0x1b, 0xd6, 0x3b), nil, orc.V3},
		{"header of 7.2", header(0x13, 0x7c, 0x36, 0xad, 0x76, 0x27, 0xc4, 0xdd), nil, orc.V4},
		{"unknown header", header(1, 2, 3, 4, 5, 6, 7, 8), entries(0x205, 0x215, 0), orc.V3},
		{"5.10", nil, entries(0, 5, 0x15, 0x105, 0x400), orc.V1},
		{"6.3", nil, entries(0, 5, 0x15, 0x505, 0x800), orc.V2},
		{"6.3 without end", nil, entries(0, 5, 0x15, 0x605), orc.V2},
		{"5.10 with a wrong bit", nil, entries(0, 5, 0x15, 0x405, 0x105, 0x400, 0x400), orc.V1},
		{"6.3 with a wrong bit", nil, entries(0, 5, 0x15, 0x400, 0x505, 0x605, 0x800), orc.V2},
		{"6.12", nil, entries(0, 0x205, 0x215, 0xc05, 0x100), orc.V3},
		{"7.2", nil, entries(0, 0x203, 0x283, 0xc03, 0x100), orc.V4},
		{"nothing", nil, nil, 0},
		{"no rsp", nil, entries(0, 0, 0x400), 0},
		{"rsp in neither form", nil, entries(3, 3, 3, 5), 0},
	}
	for _, tt := range tests {
		got, err := orc.Detect(tt.header, tt.unwind)
		if got != tt.want || (err == nil) != (tt.want != 0) || (err != nil && !errors.Is(err, orc.ErrCorrupt)) {
			t.Errorf("%s: version %d, %v, want %d", tt.name, got, err, tt.want)
		}
	}
}

// Of entries for one address the last counts, and the table's last entry is the
// end of the one before.
func TestRanges(t *testing.T) {
	entries := []raw{
		{start: text, sp: 8, flags: 0x205},
		{start: text + 4, sp: 16, flags: 0x205},
		{start: text + 0x20}, {start: text + 0x20, sp: 24, flags: 0x205},
		{start: text + 0x30},
	}
	table := newTable(t, orc.V3, entries)
	at := func(sp int16) orc.Entry { return orc.Entry{Type: orc.Call, Base: orc.BaseSP, SPOffset: sp} }
	type piece struct {
		Range mem.Range
		Entry orc.Entry
	}
	want := []piece{
		{mem.Range{First: text, Last: text + 3}, at(8)},
		{mem.Range{First: text + 4, Last: text + 0x1f}, at(16)},
		{mem.Range{First: text + 0x20, Last: text + 0x2f}, at(24)},
	}
	var got []piece
	for r, e := range table.All() {
		got = append(got, piece{r, e})
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for range table.All() {
		break // must be allowed
	}
	for _, p := range want {
		for pc := p.Range.First; pc <= p.Range.Last; pc++ {
			if e, ok := table.Find(pc); !ok || e != p.Entry {
				t.Errorf("Find(%#x) = %+v, %v", pc, e, ok)
			}
		}
	}
	for _, pc := range []uint64{0, text - 1, text + 0x30, text + 0x31, 1<<64 - 1} {
		if e, ok := table.Find(pc); ok {
			t.Errorf("Find(%#x) = %+v, outside of the table", pc, e)
		}
	}
	if table.Len() != 5 || table.Version() != orc.V3 {
		t.Errorf("%d entries of version %d", table.Len(), table.Version())
	}
}

func BenchmarkNew(b *testing.B) {
	ip, unwind := sections(manyEntries(400000))
	b.ResetTimer()
	for b.Loop() {
		if _, err := orc.New(ip, unwind, ipAddress, orc.V3); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNewDamaged(b *testing.B) {
	all := manyEntries(400000)
	all[200000].start += 1 << 28
	ip, unwind := sections(all)
	for b.Loop() {
		if _, err := orc.New(ip, unwind, ipAddress, orc.V3); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFind(b *testing.B) {
	table := newTable(b, orc.V3, manyEntries(400000))
	pc := uint64(0)
	for b.Loop() {
		if _, ok := table.Find(text + pc%(16*399999)); !ok {
			b.Fatal("not found")
		}
		pc += 104729
	}
}

func manyEntries(n int) []raw {
	out := make([]raw, n)
	for i := range out {
		out[i] = raw{start: text + uint64(16*i), sp: 8, flags: 0x205}
	}
	return out
}
