package symfile

import (
	"bytes"
	"debug/dwarf"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	cilium "github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"

	"nestdbg/internal/arch"
)

// write writes a file that must be written, and opens it with the standard library.
func write(t *testing.T, f *File) (*elf.File, []Problem) {
	t.Helper()
	var b bytes.Buffer
	problems, err := f.Write(&b)
	if err != nil {
		t.Fatal(err)
	}
	e, err := elf.NewFile(bytes.NewReader(b.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	return e, problems
}

// gdb runs commands on a file in the real gdb, which the tests need as they need Go.
func gdb(t *testing.T, f *File, commands ...string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "kernel")
	writeTo(t, f, name)
	return runGDB(t, append([]string{"file " + name}, commands...)...)
}

func writeTo(t *testing.T, f *File, name string) {
	t.Helper()
	out, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(out); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

func runGDB(t *testing.T, commands ...string) string {
	t.Helper()
	args := []string{"-nx", "-batch", "-iex", "set debuginfod enabled off"}
	for _, c := range commands {
		args = append(args, "-ex", c)
	}
	out, err := exec.Command("gdb", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("gdb: %v\n%s", err, out)
	}
	return string(out)
}

// marshal makes raw BTF of types. It is cilium's, so it shares nothing with our reader.
func marshal(t *testing.T, types ...cilium.Type) ([]byte, map[cilium.Type]cilium.TypeID) {
	t.Helper()
	b, err := cilium.NewBuilder(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	ids := make(map[cilium.Type]cilium.TypeID)
	for _, typ := range types {
		if ids[typ], err = b.Add(typ); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := b.Marshal(nil, &cilium.MarshalOptions{Order: binary.LittleEndian})
	if err != nil {
		t.Fatal(err)
	}
	return raw, ids
}

var testSections = []Section{
	{Name: ".text", First: 0xffffffff81000000, Size: 0x2000, Exec: true},
	{Name: ".data", First: 0xffffffff82000000, Size: 0x1000, Write: true},
	{Name: ".rodata", First: 0xffffffff81800000, Size: 0x1000},
	{Name: ".data..percpu", First: 0, Size: 0x800, Write: true},
}

func TestSections(t *testing.T) {
	id := []byte{1, 2, 3, 4, 5}
	e, problems := write(t, &File{Arch: arch.X86, BuildID: id, Sections: testSections})
	if len(problems) > 0 {
		t.Error(problems)
	}
	if e.Type != elf.ET_EXEC || e.Machine != elf.EM_X86_64 || e.Class != elf.ELFCLASS64 {
		t.Errorf("header %v", e.FileHeader)
	}
	for i, want := range testSections {
		flags := elf.SHF_ALLOC
		if want.Exec {
			flags |= elf.SHF_EXECINSTR
		}
		if want.Write {
			flags |= elf.SHF_WRITE
		}
		s, p := e.Sections[1+i], e.Progs[i]
		if s.Name != want.Name || s.Type != elf.SHT_NOBITS || s.Flags != flags ||
			s.Addr != want.First || s.Size != want.Size {
			t.Errorf("section %d: %+v, want %+v", i, s.SectionHeader, want)
		}
		if p.Type != elf.PT_LOAD || p.Vaddr != want.First || p.Memsz != want.Size || p.Filesz != 0 {
			t.Errorf("segment %d: %+v, want %+v", i, p.ProgHeader, want)
		}
	}
	for _, s := range e.Sections[1+len(testSections):] {
		if s.Flags&elf.SHF_ALLOC != 0 {
			t.Errorf("%s would count as a section of the library", s.Name)
		}
	}
	if e.Section(".note.gnu.build-id") != nil {
		t.Error("a build id in a file without types")
	}
	raw, _ := marshal(t, &cilium.Int{Name: "int", Size: 4})
	e, _ = write(t, &File{Arch: arch.X86, BuildID: id, Sections: testSections, Units: []Unit{{Name: "kernel", BTF: raw}}})
	note, err := e.Section(".note.gnu.build-id").Data()
	if err != nil {
		t.Fatal(err)
	}
	want := "\x04\x00\x00\x00\x05\x00\x00\x00\x03\x00\x00\x00GNU\x00\x01\x02\x03\x04\x05\x00\x00\x00"
	if string(note) != want {
		t.Errorf("build id %q, want %q", note, want)
	}
}

func TestSymbols(t *testing.T) {
	e, problems := write(t, &File{Arch: arch.X86, Sections: testSections, Units: []Unit{{Symbols: []Symbol{
		{Name: "init_task", Addr: 0xffffffff82000100, Size: 64},
		{Name: "_text", Addr: 0xffffffff81000000, Code: true},
		{Name: "helper", Addr: 0xffffffff81000010, Size: 16, Code: true, Local: true},
		{Name: "", Addr: 1},
		{Name: "_etext", Addr: 0xffffffff81002000, Code: true},
		{Name: "runqueues", Addr: 0x100},
		{Name: "nowhere", Addr: 0xffffffffc0000000},
		{Name: "e\x1b[31mvil", Addr: 0xffffffff81800000, Local: true},
	}}}})
	if want := []Problem{{Text: `symbol "" at 0x1: left out`, Count: 1}}; !cmp.Equal(problems, want) {
		t.Error(cmp.Diff(problems, want))
	}
	symbols, err := e.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range symbols {
		where := s.Section.String()
		if int(s.Section) < len(e.Sections) {
			where = e.Sections[s.Section].Name
		}
		got = append(got, fmt.Sprintf("%s %#x+%#x %v %v %s", s.Name, s.Value, s.Size,
			elf.ST_BIND(s.Info), elf.ST_TYPE(s.Info), where))
	}
	want := []string{
		"helper 0xffffffff81000010+0x10 STB_LOCAL STT_FUNC .text",
		"e?[31mvil 0xffffffff81800000+0x0 STB_LOCAL STT_OBJECT .rodata",
		"init_task 0xffffffff82000100+0x40 STB_GLOBAL STT_OBJECT .data",
		"_text 0xffffffff81000000+0x0 STB_GLOBAL STT_FUNC .text",
		"_etext 0xffffffff81002000+0x0 STB_GLOBAL STT_FUNC .text",
		"runqueues 0x100+0x0 STB_GLOBAL STT_OBJECT .data..percpu",
		"nowhere 0xffffffffc0000000+0x0 STB_GLOBAL STT_OBJECT SHN_ABS",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if info := e.Section(".symtab").Info; info != 3 {
		t.Errorf("first global symbol is %d, want 3", info)
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		file File
		want error
	}{
		{"architecture", File{Arch: &arch.Arch{Name: "vax"}}, ErrUnsupported},
		{"no architecture", File{}, ErrUnsupported},
		{"section at the end", File{Arch: arch.X86,
			Sections: []Section{{First: 1<<64 - 1, Size: 2}}}, ErrCorrupt},
		{"sections", File{Arch: arch.X86, Sections: make([]Section, 0xffff)}, ErrCorrupt},
	} {
		var b bytes.Buffer
		if _, err := c.file.Write(&b); !errors.Is(err, c.want) || b.Len() > 0 {
			t.Errorf("%s: %d bytes, %v; want %v", c.name, b.Len(), err, c.want)
		}
	}
}

// failAfter fails from the n-th write on.
type failAfter struct{ n int }

var errFull = errors.New("disk full")

func (w *failAfter) Write(p []byte) (int, error) {
	if w.n--; w.n < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestWriterFails(t *testing.T) {
	f := File{Arch: arch.X86, BuildID: []byte{1}, Sections: testSections}
	for n := 0; ; n++ {
		w := failAfter{n}
		_, err := f.Write(&w)
		if w.n >= 0 {
			if err != nil || n < 5 {
				t.Errorf("after %d writes: %v", n, err)
			}
			return
		}
		if !errors.Is(err, errFull) {
			t.Fatalf("write %d failed, got %v", n, err)
		}
	}
}

// entries walks the DWARF of a file and resolves every type in it.
func entries(e *elf.File) (*dwarf.Data, []*dwarf.Entry, error) {
	d, err := e.DWARF()
	if err != nil {
		return nil, nil, err
	}
	var all []*dwarf.Entry
	for r := d.Reader(); ; {
		entry, err := r.Next()
		if err != nil {
			return nil, nil, err
		}
		if entry == nil {
			return d, all, nil
		}
		if off, ok := entry.Val(dwarf.AttrType).(dwarf.Offset); ok {
			if _, err := d.Type(off); err != nil {
				return nil, nil, fmt.Errorf("type of %v: %w", entry, err)
			}
		}
		all = append(all, entry)
	}
}

func mustEntries(t *testing.T, e *elf.File) (*dwarf.Data, []*dwarf.Entry) {
	t.Helper()
	d, all, err := entries(e)
	if err != nil {
		t.Fatal(err)
	}
	return d, all
}

// describeEntry renders an entry for comparison; "" for parts of a type.
func describeEntry(d *dwarf.Data, e *dwarf.Entry) string {
	name, _ := e.Val(dwarf.AttrName).(string)
	typ := "void"
	if off, ok := e.Val(dwarf.AttrType).(dwarf.Offset); ok {
		if u, err := d.Type(off); err == nil {
			typ = u.String()
		}
	}
	switch e.Tag {
	case dwarf.TagCompileUnit:
		return "unit " + name
	case dwarf.TagStructType, dwarf.TagUnionType:
		if u, err := d.Type(e.Offset); err == nil {
			return u.(*dwarf.StructType).Defn()
		}
	case dwarf.TagEnumerationType:
		if u, err := d.Type(e.Offset); err == nil {
			return u.(*dwarf.EnumType).String()
		}
	case dwarf.TagTypedef:
		return "typedef " + name + " " + typ
	case dwarf.TagSubprogram:
		return fmt.Sprintf("%s %s at %#x+%#x external %v", typ, name, e.Val(dwarf.AttrLowpc),
			e.Val(dwarf.AttrHighpc), e.Val(dwarf.AttrExternal))
	case dwarf.TagFormalParameter:
		return strings.TrimRight("  "+typ+" "+name, " ")
	case dwarf.TagUnspecifiedParameters:
		return "  ..."
	case dwarf.TagVariable:
		return fmt.Sprintf("%s %s at %x external %v", typ, name, e.Val(dwarf.AttrLocation),
			e.Val(dwarf.AttrExternal))
	}
	return ""
}

// checkEntries compares what a file describes, in the order of the file.
func checkEntries(t *testing.T, f *File, want ...string) {
	t.Helper()
	e, problems := write(t, f)
	for _, p := range problems {
		t.Error(p)
	}
	d, all := mustEntries(t, e)
	var got []string
	for _, entry := range all {
		if s := describeEntry(d, entry); s != "" {
			got = append(got, s)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
