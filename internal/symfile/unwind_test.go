package symfile

import (
	"debug/elf"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	cilium "github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
)

// unwindRows is the table for testdata/unwind.s, by name of the place. The columns
// are those of orcRow.
var unwindRows = []struct {
	place string
	row   orcRow
}{
	{"_start", orcRow{typeSignal: 1}},
	{"realign", orcRow{register: 5, offset: 8, typeSignal: 2}},
	{"realign.r10", orcRow{register: 6, typeSignal: 2}},
	{"realign.bp", orcRow{register: 6, bp: 4, typeSignal: 2}}, // not reached at a stop
	{"realign.saved", orcRow{register: 6, bp: 4, typeSignal: 2}},
	{"realign.indirect", orcRow{register: 8, offset: -8, bp: 4, typeSignal: 2}},
	{"switch", orcRow{register: 5, offset: 8, typeSignal: 2}},
	{"switch.indirect", orcRow{register: 9, offset: 8, typeSignal: 2}},
	{"victim", orcRow{register: 5, offset: 8, typeSignal: 2}},
	{"entry", orcRow{register: 5, typeSignal: 4 | 8}},
	{"entry.pushed", orcRow{register: 5, offset: 8, typeSignal: 4 | 8}},
	{"entry.regs", orcRow{register: 5, typeSignal: 3 | 8}},
	{"unknown", orcRow{}},
	{"fresh", orcRow{register: 5, offset: 8, typeSignal: 2}},
	{"fresh.8", orcRow{register: 5, offset: 16, typeSignal: 2}},
	{"handler", orcRow{register: 5, offset: 8, typeSignal: 2}},
	{"handler.push", orcRow{register: 5, offset: 16, bp: 1, bpOffset: -16, typeSignal: 2}},
}

// buildUnwind assembles the program and returns its path and what is known about it.
func buildUnwind(t *testing.T) (program string, f *File) {
	t.Helper()
	program = t.TempDir() + "/unwind"
	run := func(name string, args ...string) {
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	run("gcc", "-nostdlib", "-static", "-no-pie", "-o", program, "testdata/unwind.s")
	e, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	symbols, err := e.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	s := e.Section(".text")
	f = &File{Arch: arch.X86, Code: codeReader{s}, Units: []Unit{{BTF: handlerTypes(t)}}}
	f.Sections = []Section{{Name: s.Name, First: s.Addr, Size: s.Size, Exec: true}}
	address := make(map[string]uint64)
	for _, s := range symbols {
		address[s.Name] = s.Value
		inText := int(s.Section) < len(e.Sections) && e.Sections[s.Section].Name == ".text"
		if inText && !strings.Contains(s.Name, ".") && s.Name != "end" {
			f.Units[0].Symbols = append(f.Units[0].Symbols,
				Symbol{Name: s.Name, Addr: s.Value, Code: true})
		}
	}
	var rows []orcRow
	for _, r := range unwindRows {
		r.row.pc = address[r.place]
		rows = append(rows, r.row)
	}
	f.Units[0].Unwind = orcTable(t, address["end"], rows...)
	run("strip", program)
	return program, f
}

// handlerTypes knows handler as int handler(int error, void *regs).
func handlerTypes(t *testing.T) []byte {
	integer := &cilium.Int{Name: "int", Size: 4, Encoding: cilium.Signed}
	raw, _ := marshal(t, &cilium.Func{Name: "handler", Linkage: cilium.GlobalFunc, Type: &cilium.FuncProto{
		Return: integer, Params: []cilium.FuncParam{{Name: "error", Type: integer},
			{Name: "regs", Type: &cilium.Pointer{Target: &cilium.Void{}}}}}})
	return raw
}

// codeReader reads a section of a program at its runtime address.
type codeReader struct{ *elf.Section }

func (r codeReader) ReadVirt(p []byte, a mem.Virt) (int, error) {
	return r.ReadAt(p, int64(uint64(a)-r.Addr))
}

// unwound is what gdb answers in TestUnwind.
var unwound = []string{
	// At the first instruction of the entry: registers as the CPU pushed them. gdb's
	// word for a frame that was not called is "signal handler".
	"#0  <signal handler called>\n",
	"#1  fresh ()\n",
	"#2  switch ()\n",
	"#3  realign ()\n",
	"#4  _start ()\n",
	// At the handler, behind the instruction that gdb takes for its prologue.
	"#0  handler (error=-7, regs=0x1234)\n",
	// In the handler: all registers of the interrupted function.
	"#0  handler (error=<optimized out>, regs=<optimized out>)\n",
	"#1  <signal handler called>\n",
	"#2  fresh ()\n",
	"#3  switch ()\n",
	"#4  realign ()\n",
	"#5  _start ()\n",
	"#2  fresh ()\n",
	"$1 = 0xc0ffee\n",
	"$2 = 0x33\n",
	"#3  switch ()\n",
	"$3 = <not saved>\n",
	"#5  _start ()\n",
	"$4 = 0x6bad\n",
	"$5 = <not saved>\n",
}

// TestUnwind lets gdb run the program and find its way back over every kind of
// frame with nothing but our file.
func TestUnwind(t *testing.T) {
	program, f := buildUnwind(t)
	kernel := t.TempDir() + "/kernel"
	writeTo(t, f, kernel)
	out := runGDB(t, "set confirm off", "file "+program, "symbol-file "+kernel, "tbreak entry",
		"run", "backtrace", "tbreak handler", "continue", "backtrace 1", "continue", "backtrace",
		"frame 2", "print/x $r12", "print/x $cs",
		"frame 3", "print $r12", "frame 5", "print/x $rbp", "print $rbx", "kill")
	var got []string
	for l := range strings.Lines(out) {
		if l[0] == '#' || l[0] == '$' {
			got = append(got, regexp.MustCompile(` 0x[0-9a-f]{16} in`).ReplaceAllString(l, ""))
		}
	}
	if diff := cmp.Diff(unwound, got); diff != "" {
		t.Errorf("%s\ngdb says:\n%s", diff, out)
	}
}
