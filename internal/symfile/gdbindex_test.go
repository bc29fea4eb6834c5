package symfile

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cilium "github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"

	"nestdbg/internal/arch"
	"nestdbg/internal/btf"
)

// readIndex reads what a .gdb_index says of each name, and its units. It shares
// nothing with the writer but the number of the version.
func readIndex(t *testing.T, b []byte) (names map[string][]uint32, units []string) {
	t.Helper()
	u32 := func(at int) int { return int(binary.LittleEndian.Uint32(b[at:])) }
	if len(b) < 24 || u32(0) != indexVersion {
		t.Fatalf("index of %d bytes", len(b))
	}
	for at := u32(4); at < u32(8); at += 16 {
		units = append(units, fmt.Sprintf("%#x+%#x", binary.LittleEndian.Uint64(b[at:]), binary.LittleEndian.Uint64(b[at+8:])))
	}
	names = make(map[string][]uint32)
	for at, pool := u32(16), u32(20); at < pool; at += 8 {
		name, list := u32(at), u32(at+4)
		if name == 0 && list == 0 {
			continue
		}
		text, _, _ := bytes.Cut(b[pool+name:], []byte{0})
		var says []uint32
		for i := range u32(pool + list) {
			says = append(says, uint32(u32(pool+list+4+4*i)))
		}
		slices.Sort(says)
		names[string(text)] = says
	}
	return names, units
}

// indexedFile has every kind of entry that has a name, and some names twice.
func indexedFile(t *testing.T) *File {
	types, task := someTypes()
	proto := &cilium.FuncProto{Return: task, Params: []cilium.FuncParam{{Name: "t", Type: &cilium.Pointer{Target: task}}}}
	for _, name := range []string{"start", "task", "IDLE"} {
		types = append(types, &cilium.Func{Name: name, Type: proto, Linkage: cilium.StaticFunc})
	}
	raw, ids := marshal(t, types...)
	return &File{Arch: arch.X86, Sections: testSections, BuildID: []byte{0xab, 0xcd, 0xef}, Units: []Unit{{Name: "kernel", BTF: raw,
		Symbols: []Symbol{{Name: "start", Addr: text, Size: 0x40, Code: true},
			{Name: "task", Addr: text + 0x40, Size: 0x20, Code: true, Local: true},
			{Name: "IDLE", Addr: text + 0x1000, Size: 0x20, Code: true}},
		Variables: []Variable{{Name: "first", Addr: 0xffffffff82000000, Type: 1}, {Name: "task", Addr: 0xffffffff82000040,
			Type: btf.ID(ids[task])}}}}}
}

// TestIndexIsGDBs compares the index with the one that gdb makes of the same file
// when it does not see that it has one.
func TestIndexIsGDBs(t *testing.T) {
	f := indexedFile(t)
	var b bytes.Buffer
	if problems, err := f.Write(&b); err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	e, _ := write(t, f)
	ours, err := e.Section(".gdb_index").Data()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	name := filepath.Join(dir, "kernel")
	hidden := bytes.Replace(b.Bytes(), []byte(".gdb_index\x00"), []byte(".not_index\x00"), 1)
	if err := os.WriteFile(name, hidden, 0o600); err != nil {
		t.Fatal(err)
	}
	runGDB(t, "file "+name, "save gdb-index "+dir)
	theirs, err := os.ReadFile(name + ".gdb-index")
	if err != nil {
		t.Fatal(err)
	}
	got, units := readIndex(t, ours)
	want, wantUnits := readIndex(t, theirs)
	if long, ok := want["unsigned long"]; !ok || len(want) < 15 {
		t.Errorf("gdb's index: %v, %v", want, long)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(wantUnits, units); diff != "" {
		t.Error(diff)
	}
}

// TestIndexCache: a gdb that keeps indexes by build id neither takes another file's
// for ours nor keeps ours.
func TestIndexCache(t *testing.T) {
	f, dir := indexedFile(t), t.TempDir()
	stale := filepath.Join(dir, "abcdef.gdb-index")
	if err := os.WriteFile(stale, []byte("of another file"), 0o600); err != nil {
		t.Fatal(err)
	}
	cache := []string{"set index-cache directory " + dir, "set index-cache enabled on"}
	name := filepath.Join(t.TempDir(), "kernel")
	writeTo(t, f, name)
	got := runGDB(t, append(cache, "file "+name, "whatis start", "print sizeof(struct task)", "print IDLE == 0",
		"info symbol 0xffffffff81000041")...)
	want := "type = struct task (struct task *)\n$1 = 120\n"
	if !strings.HasPrefix(got, want) || !strings.Contains(got, "task + 1 in section .text\n") || strings.Contains(got, "rror") {
		t.Errorf("gdb says %q", got)
	}
	if err := os.Remove(stale); err != nil {
		t.Fatal(err)
	}
	runGDB(t, append(cache, "file "+name, "whatis start")...)
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("in the cache: %v, %v", left, err)
	}
}

// TestIndexHostileNames: names that want the same place cost a bounded time, and a
// name without an end is left out.
func TestIndexHostileNames(t *testing.T) {
	var x gdbIndex
	x.begin(0)
	str := []byte{0}
	const count = 1 << 14
	for i := range count { // "b " and "ac" make the same hash
		x.add(shapeTypedef, uint32(len(str)))
		for bit := range 14 {
			str = append(str, []string{"b ", "ac"}[i>>bit&1]...)
		}
		str = append(str, 0)
	}
	x.add(shapeTypedef, uint32(len(str)))
	str = append(str, bytes.Repeat([]byte("x"), 10*indexNameMax)...)
	names, _ := readIndex(t, x.section(str, func(uint64) bool { return false }).b)
	if len(names) != indexStepsMax {
		t.Errorf("%d names, want %d", len(names), indexStepsMax)
	}
}
