package symfile

import (
	"encoding/binary"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
	"nestdbg/internal/orc"
)

// orcRow is an entry as the kernel has it, in the third version of the format:
// registers BP 4, SP 5, R10 6, BP_INDIRECT 8, SP_INDIRECT 9; rbp at PREV_SP 1, BP 4;
// types END 1, CALL 2, REGS 3, REGS_PARTIAL 4; signal 8.
type orcRow struct {
	pc         uint64
	register   uint16
	offset     int16
	bp         uint16
	bpOffset   int16
	typeSignal uint16
}

// orcTable makes a table; a last row that ends it is added.
func orcTable(t *testing.T, end uint64, rows ...orcRow) *orc.Table {
	t.Helper()
	const base = 0xffffffff82000000
	at := uint64(base)
	if end < 1<<32 {
		at = 0x10000
	}
	var ip, unwind []byte
	for i, r := range append(rows, orcRow{pc: end}) {
		ip = binary.LittleEndian.AppendUint32(ip, uint32(r.pc-at-uint64(4*i)))
		unwind = binary.LittleEndian.AppendUint16(unwind, uint16(r.offset))
		unwind = binary.LittleEndian.AppendUint16(unwind, uint16(r.bpOffset))
		unwind = binary.LittleEndian.AppendUint16(unwind, r.register|r.bp<<4|r.typeSignal<<8)
	}
	table, err := orc.New(ip, unwind, at, orc.V3)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// frameText is .debug_frame as readelf sees it: without CIEs and padding.
func frameText(t *testing.T, f *File) []string {
	t.Helper()
	name := t.TempDir() + "/kernel"
	writeTo(t, f, name)
	out, err := exec.Command("readelf", "--debug-dump=frames", name).CombinedOutput()
	if err != nil {
		t.Fatalf("readelf: %v\n%s", err, out)
	}
	var lines []string
	isCIE := true
	for l := range strings.Lines(string(out)) {
		l = strings.TrimSpace(l)
		switch {
		case strings.HasSuffix(l, " CIE"):
			isCIE = true
		case strings.Contains(l, " FDE "):
			isCIE = false
			lines = append(lines, l[strings.Index(l, "cie="):])
		case !isCIE && l != "" && l != "DW_CFA_nop":
			lines = append(lines, l)
		}
	}
	return lines
}

func checkFrames(t *testing.T, name string, u Unit, want ...string) {
	t.Helper()
	got := frameText(t, &File{Arch: arch.X86, Sections: testSections, Units: []Unit{u}})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: %s", name, diff)
	}
}

func TestFrames(t *testing.T) {
	const end = text + 0x100
	for _, c := range []struct {
		name string
		rows []orcRow
		want []string
	}{
		{"a function with a frame pointer", []orcRow{
			{text, 5, 8, 0, 0, 2}, {text + 1, 5, 16, 1, -16, 2}, {text + 4, 4, 16, 1, -16, 2},
			{text + 0x90, 5, 8, 0, 0, 2}},
			[]string{"cie=00000000 pc=ffffffff81000000..ffffffff81000100",
				"DW_CFA_advance_loc: 1 to ffffffff81000001",
				"DW_CFA_def_cfa_offset: 16", "DW_CFA_offset: r6 (rbp) at cfa-16",
				"DW_CFA_advance_loc: 3 to ffffffff81000004",
				"DW_CFA_def_cfa_register: r6 (rbp)",
				"DW_CFA_advance_loc1: 140 to ffffffff81000090",
				"DW_CFA_def_cfa: r7 (rsp) ofs 8", "DW_CFA_restore: r6 (rbp)"}},
		{"bases in memory", []orcRow{
			{text, 9, 8, 0, 0, 2}, {text + 2, 9, -8, 4, -24, 2}, {text + 4, 8, -16, 1, -12, 2},
			{text + 6, 6, 0, 1, 8, 2}, {text + 8, 5, -8, 0, 0, 2}},
			[]string{"cie=00000000 pc=ffffffff81000000..ffffffff81000100",
				"DW_CFA_def_cfa_expression (DW_OP_breg7 (rsp): 0; DW_OP_deref; DW_OP_plus_uconst: 8)",
				"DW_CFA_advance_loc: 2 to ffffffff81000002",
				"DW_CFA_def_cfa_expression (DW_OP_breg7 (rsp): 0; DW_OP_deref; DW_OP_consts: -8; DW_OP_plus)",
				"DW_CFA_expression: r6 (rbp) (DW_OP_breg6 (rbp): -24)",
				"DW_CFA_advance_loc: 2 to ffffffff81000004",
				"DW_CFA_def_cfa_expression (DW_OP_breg6 (rbp): -16; DW_OP_deref)",
				"DW_CFA_expression: r6 (rbp) (DW_OP_consts: -12; DW_OP_plus)",
				"DW_CFA_advance_loc: 2 to ffffffff81000006",
				"DW_CFA_def_cfa: r10 (r10) ofs 0", "DW_CFA_offset_extended_sf: r6 (rbp) at cfa+8",
				"DW_CFA_advance_loc: 2 to ffffffff81000008",
				"DW_CFA_def_cfa_expression (DW_OP_breg7 (rsp): -8)", "DW_CFA_restore: r6 (rbp)"}},
		{"where backtraces end", []orcRow{
			{text, 0, 0, 0, 0, 1}, {text + 8, 5, 8, 0, 0, 2}, {text + 16, 0, 0, 0, 0, 0}},
			[]string{"cie=00000000 pc=ffffffff81000000..ffffffff81000100",
				"DW_CFA_undefined: r16 (rip)",
				"DW_CFA_advance_loc: 8 to ffffffff81000008", "DW_CFA_restore: r16 (rip)",
				"DW_CFA_advance_loc: 8 to ffffffff81000010", "DW_CFA_undefined: r16 (rip)"}},
		{"exceptions", []orcRow{
			{text, 5, 8, 0, 0, 4 | 8}, {text + 2, 5, 0, 1, -16, 3 | 8}, {text + 4, 5, 8, 0, 0, 3 | 8},
			{text + 6, 5, 0, 0, 0, 3}},
			[]string{"cie=00000000 pc=ffffffff81000000..ffffffff81000002", "DW_CFA_def_cfa_offset: 8",
				"cie=00000068 pc=ffffffff81000002..ffffffff81000006",
				"DW_CFA_advance_loc: 2 to ffffffff81000004", "DW_CFA_def_cfa_offset: 8",
				"cie=000000d8 pc=ffffffff81000006..ffffffff81000100"}},
	} {
		for i, l := range c.want {
			c.want[i] = strings.TrimSpace(l)
		}
		checkFrames(t, c.name, Unit{Unwind: orcTable(t, end, c.rows...)}, c.want...)
	}
}

// TestFrameBoundaries: an FDE ends at the first change of frame in a new function,
// also where the rule would be the same, and after maxRows rows.
func TestFrameBoundaries(t *testing.T) {
	symbols := []Symbol{{Name: "b", Addr: text + 0x20, Code: true}, {Name: "data", Addr: text + 0x11},
		{Name: "a", Addr: text, Code: true}}
	checkFrames(t, "functions", Unit{Symbols: symbols, Unwind: orcTable(t, text+0x40,
		orcRow{text, 5, 8, 0, 0, 2}, orcRow{text + 0x10, 5, 16, 0, 0, 2}, orcRow{text + 0x20, 5, 8, 0, 0, 2})},
		"cie=00000000 pc=ffffffff81000000..ffffffff81000020",
		"DW_CFA_advance_loc: 16 to ffffffff81000010", "DW_CFA_def_cfa_offset: 16",
		"cie=00000000 pc=ffffffff81000020..ffffffff81000040")

	var rows []orcRow
	for i := range uint64(2*maxRows + 1) {
		rows = append(rows, orcRow{text + i, 5, int16(8 + 8*(i%2)), 0, 0, 2})
	}
	var fdes int
	for _, l := range frameText(t, &File{Arch: arch.X86, Units: []Unit{{Unwind: orcTable(t, text+5000, rows...)}}}) {
		if strings.HasPrefix(l, "cie=") {
			fdes++
		}
	}
	if fdes != 3 {
		t.Errorf("%d rows are in %d descriptions, want 3", len(rows), fdes)
	}
}

// TestAdvance has every size of step between two rows.
func TestAdvance(t *testing.T) {
	pc := uint64(text)
	rows := []orcRow{{pc, 5, 8, 0, 0, 2}}
	for i, step := range []uint64{63, 64, 255, 256, 65535, 65536} {
		pc += step
		rows = append(rows, orcRow{pc, 5, int16(16 + 8*i), 0, 0, 2})
	}
	var got []string
	for _, l := range frameText(t, &File{Arch: arch.X86, Units: []Unit{{Unwind: orcTable(t, pc+9, rows...)}}}) {
		if strings.HasPrefix(l, "DW_CFA_advance") {
			got = append(got, strings.Fields(l)[0]+" "+strings.Fields(l)[1])
		}
	}
	want := []string{"DW_CFA_advance_loc: 63", "DW_CFA_advance_loc1: 64", "DW_CFA_advance_loc1: 255",
		"DW_CFA_advance_loc2: 256", "DW_CFA_advance_loc2: 65535", "DW_CFA_advance_loc4: 65536"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestEnds: a backtrace ends in ranges without a table, and goes on where there is one.
func TestEnds(t *testing.T) {
	got := frameText(t, &File{Arch: arch.X86,
		Units: []Unit{{Unwind: orcTable(t, text+0x40, orcRow{text, 5, 8, 0, 0, 2})}},
		Ends:  []mem.Range{{First: 0, Last: 0x7fffffffffff}, {First: text + 0x40, Last: text + 0x4f}}})
	want := []string{"cie=00000000 pc=ffffffff81000000..ffffffff81000040",
		"cie=00000000 pc=0000000000000000..0000800000000000", "DW_CFA_undefined: r16 (rip)",
		"cie=00000000 pc=ffffffff81000040..ffffffff81000050", "DW_CFA_undefined: r16 (rip)"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
