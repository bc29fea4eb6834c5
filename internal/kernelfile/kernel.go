package kernelfile

import (
	"encoding/hex"
	"fmt"
	"io"
	"sync"

	"nestdbg/internal/linux"
	"nestdbg/internal/mem"
	"nestdbg/internal/symfile"
)

// Kernel writes what the kernel in memory says of itself, for a kernel whose
// vmlinux is not at hand: symbols, functions with their arguments, types and
// call-frame information, at run-time addresses. There are no source lines and no
// local variables. What is missing, and why, is in the problems.
func Kernel(k *linux.Kernel, w io.Writer) (problems []string, err error) {
	f, problems, err := kernel(k)
	if err != nil {
		return nil, err
	}
	left, err := f.Write(w)
	return append(problems, texts(left)...), err
}

func kernel(k *linux.Kernel) (f *symfile.File, problems []string, err error) {
	missing := func(what string, err error) {
		problems = append(problems, fmt.Sprintf("%s: %v", what, err))
	}
	unit := symfile.Unit{Name: "vmlinux"}
	if perCPU, ok := k.PerCPUSymbols(); ok {
		unit.PerCPU = &perCPU
	}
	typer, typerErr := k.NewVariableTyper()
	var damage string
	if unit.Symbols, damage, err = symbols(k, unit.PerCPU, typer); err != nil {
		return nil, nil, err
	}
	if damage != "" {
		problems = append(problems, "symbols: "+damage)
	}
	if unit.BTF, err = k.RawBTF(); err != nil {
		missing("types", err)
	} else if typerErr != nil {
		missing("types of variables", typerErr)
	} else {
		unit.Variables = variables(typer)
	}
	if unit.Unwind, err = k.Unwind(); err != nil {
		missing("call frames", err)
	} else if damage := unit.Unwind.Damage(); damage != "" {
		problems = append(problems, "call frames: "+damage)
	}
	f = &symfile.File{Arch: k.Arch(), BuildID: buildID(k.BuildID), Sections: sections(uint64(k.TextVA), k.Size, boundsIn(unit.Symbols)), Units: []symfile.Unit{unit}, Code: k,
		Ends: []mem.Range{k.UserRange()}} // as in Frames
	return f, problems, nil
}

// texts are what was left out of a file, for people.
func texts(left []symfile.Problem) (out []string) {
	for _, p := range left {
		out = append(out, p.String())
	}
	return out
}

// Kernels writes the files of several kernels as Kernel does. Of those with one build
// id the first is kept, since the others differ from it in their place only, and of all
// the types, which those of modules continue. It is safe for concurrent use.
type Kernels struct {
	mu    sync.Mutex
	left  map[string]int                  // how many are still to be written, by build id; guarded by mu
	first map[string]*symfile.Copy        // guarded by mu
	bases map[*linux.Kernel]*symfile.Base // of those that were written; guarded by mu
}

// NewKernels returns a writer for kernels with these build ids, as many times as they
// are there.
func NewKernels(buildIDs []string) *Kernels {
	k := &Kernels{left: make(map[string]int), first: make(map[string]*symfile.Copy), bases: make(map[*linux.Kernel]*symfile.Base)}
	for _, id := range buildIDs {
		k.left[id]++
	}
	return k
}

// Write writes the file of a kernel.
func (x *Kernels) Write(k *linux.Kernel, w io.Writer) (problems []string, err error) {
	f, problems, err := kernel(k)
	if err != nil {
		return nil, err
	}
	c := x.take(k.BuildID)
	same, left := false, []symfile.Problem(nil)
	if c != nil {
		same, left, err = c.Again(f, w)
	}
	if !same {
		c, left, err = f.WriteCopy(w)
	}
	if err == nil {
		x.keep(k, c)
	}
	return append(problems, texts(left)...), err
}

// take is the file of a kernel with a build id, nil if none was written yet.
func (x *Kernels) take(buildID string) *symfile.Copy {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.left[buildID]--
	return x.first[buildID]
}

// keep keeps what others need of a file.
func (x *Kernels) keep(k *linux.Kernel, c *symfile.Copy) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.bases[k] = c.Base()
	delete(x.first, k.BuildID)
	if x.left[k.BuildID] > 0 {
		x.first[k.BuildID] = c
	}
}

// Modules is NewModules, for a kernel whose file may have been written.
func (x *Kernels) Modules(k *linux.Kernel) *Modules {
	x.mu.Lock()
	defer x.mu.Unlock()
	m := NewModules(k)
	if base := x.bases[k]; base != nil {
		m.base = func() (*symfile.Base, error) { return base, nil }
	}
	return m
}

// buildID is one in hexadecimal as bytes, nil for anything else.
func buildID(text string) []byte {
	id, err := hex.DecodeString(text)
	if err != nil {
		return nil
	}
	return id
}

// symbols are those of kallsyms that have an address. Of absolute ones only those of
// per-CPU variables count: before Linux 6.15 that number and a CPU's offset are where its
// copy is. gdb takes no address for one of an absolute symbol's. typer, which may be nil,
// hears of them all. damage says which are missing, empty if none are known to be.
func symbols(k *linux.Kernel, perCPU *mem.Range, typer *linux.VariableTyper) (out []symfile.Symbol, damage string, err error) {
	table, err := k.Symbols()
	if err != nil {
		return nil, "", err
	}
	out = make([]symfile.Symbol, 0, table.Len())
	for s := range table.All() {
		if typer != nil {
			typer.Add(s)
		}
		size := uint64(0)
		switch {
		case !s.Absolute():
			size, _ = table.Size(s.Addr)
		case perCPU == nil || !perCPU.Contains(s.Addr):
			continue
		}
		out = append(out, symbol(s.Name, s.Addr, size, s.Type))
	}
	return out, table.Damage(), nil
}

// symbol is one of kallsyms, by its letter as in "nm": t is text, w weak, a capital
// is global.
func symbol(name string, addr, size uint64, letter byte) symfile.Symbol {
	lower := letter | 0x20
	return symfile.Symbol{Name: name, Addr: addr, Size: size,
		Code:  lower == 't' || lower == 'w',
		Local: letter == lower && lower != 'w',
	}
}

// bounds are the symbols at which a kernel image changes its nature, in the
// order of the image (Linux 6.1 arch/x86/kernel/vmlinux.lds.S). The last one
// only ends the one before.
var bounds = []struct {
	symbol string
	symfile.Section
}{
	{"_text", symfile.Section{Name: ".text", Exec: true}},
	{"_etext", symfile.Section{Name: ".rodata"}},
	{"_sdata", symfile.Section{Name: ".data", Write: true}},
	{"__init_begin", symfile.Section{Name: ".init.data", Write: true}},
	{"_sinittext", symfile.Section{Name: ".init.text", Exec: true}},
	{"_einittext", symfile.Section{Name: ".init.rodata"}},
	{"__bss_start", symfile.Section{Name: ".bss", Write: true}},
	{"_end", symfile.Section{}},
}

// boundsIn looks up the symbols of bounds. To ask the kernel's table for each would take
// longer, which makes an index then.
func boundsIn(symbols []symfile.Symbol) func(symbol string) (mem.Virt, bool) {
	found := make(map[string]mem.Virt)
	for _, b := range bounds {
		found[b.symbol] = 0
	}
	for i := range symbols {
		s := &symbols[i]
		if va, wanted := found[s.Name]; wanted && va == 0 {
			found[s.Name] = mem.Virt(s.Addr)
		}
	}
	return func(symbol string) (mem.Virt, bool) { return found[symbol], found[symbol] != 0 }
}

// sections cuts an image of a size at the bounds that its symbols name, in any case
// into one section that covers it.
func sections(first, size uint64, lookup func(symbol string) (mem.Virt, bool)) []symfile.Section {
	out := []symfile.Section{{Name: ".text", First: first, Exec: true}}
	for _, b := range bounds[1:] {
		va, ok := lookup(b.symbol)
		last := &out[len(out)-1]
		if !ok || uint64(va) <= last.First {
			continue
		}
		last.Size = uint64(va) - last.First
		if b.Name == "" {
			return out
		}
		b.First = uint64(va)
		out = append(out, b.Section)
	}
	last := &out[len(out)-1]
	last.Size = max(first+size, last.First+1) - last.First
	return out
}

// variables are those whose type everybody who debugs a kernel wants, and which BTF does
// not record: it has only per-CPU variables.
func variables(t *linux.VariableTyper) []symfile.Variable {
	var out []symfile.Variable
	for _, v := range t.Variables() {
		out = append(out, symfile.Variable{Name: v.Name, Addr: v.Addr, Type: v.Type, Pointer: v.Pointer, Array: v.Array, Count: v.Count})
	}
	return out
}
