package kernelfile

import (
	"cmp"
	"io"
	"slices"
	"sync"

	"nestdbg/internal/linux"
	"nestdbg/internal/mem"
	"nestdbg/internal/symfile"
)

// Modules writes files about the modules of one kernel. The types of modules
// continue those of the kernel, which are read once, for the first module that has
// any.
type Modules struct {
	kernel *linux.Kernel
	base   func() (*symfile.Base, error)
}

// NewModules returns a writer for the modules of k.
func NewModules(k *linux.Kernel) *Modules {
	return &Modules{kernel: k, base: sync.OnceValues(func() (*symfile.Base, error) {
		raw, err := k.RawBTF()
		if err != nil {
			return nil, err
		}
		base, _, err := symfile.NewBase(raw) // what is wrong with it, the kernel's own file says
		return base, err
	})}
}

// Write writes what the kernel knows of one of its modules: symbols, functions
// with their arguments, types and call-frame information, at run-time addresses.
// Types of the kernel are in it as far as the module's contain them; the others
// gdb finds in the kernel's file. The file has a section for each of the module's
// regions that is not empty. What is missing, and why, is in the problems.
func (f *Modules) Write(m *linux.Module, w io.Writer) (problems []string, err error) {
	file := &symfile.File{Arch: f.kernel.Arch(), BuildID: buildID(m.BuildID), Code: f.kernel}
	file.Sections = moduleSections(m)
	unit := symfile.Unit{Name: m.Name}
	if unit.Symbols, err = f.symbols(m); err != nil {
		return nil, err
	}
	if unit.BTF, file.Base, err = f.types(m); err != nil {
		problems = append(problems, err.Error())
	}
	if unit.Unwind, err = f.kernel.ModuleUnwind(m); err != nil {
		problems = append(problems, err.Error())
	}
	file.Units = []symfile.Unit{unit}
	left, err := file.Write(w)
	return append(problems, texts(left)...), err
}

// moduleSections are the module's regions that are not empty, ascending: gdb 13 aborts
// where the segments of a library are not (solib-target.c:410, "so->addr_low <=
// so->addr_high"; seen).
func moduleSections(m *linux.Module) []symfile.Section {
	var out []symfile.Section
	for i, r := range m.Regions {
		if r.Size != 0 {
			// The first region holds the text; what else there is differs by version.
			out = append(out, symfile.Section{Name: "." + r.Name, First: uint64(r.Base), Size: r.Size, Exec: i == 0, Write: i != 0})
		}
	}
	slices.SortFunc(out, func(a, b symfile.Section) int { return cmp.Compare(a.First, b.First) })
	return out
}

// symbols are those of a module that are in it. Per-CPU symbols are offsets.
func (f *Modules) symbols(m *linux.Module) ([]symfile.Symbol, error) {
	found, err := f.kernel.ModuleSymbols(m)
	if err != nil {
		return nil, err
	}
	return symbolsIn(m, found), nil
}

func symbolsIn(m *linux.Module, found []linux.ModuleSymbol) []symfile.Symbol {
	var out []symfile.Symbol
	for _, s := range found {
		if m.Contains(mem.Virt(s.Addr)) {
			out = append(out, symbol(s.Name, s.Addr, s.Size, s.Type))
		}
	}
	return out
}

// types are the module's BTF and what it continues.
func (f *Modules) types(m *linux.Module) ([]byte, *symfile.Base, error) {
	raw, err := f.kernel.RawModuleBTF(m.Name)
	if err != nil {
		return nil, nil, err
	}
	base, err := f.base()
	if err != nil {
		return nil, nil, err
	}
	return raw, base, nil
}
