package linux

import (
	"fmt"

	"nestdbg/internal/kallsyms"
)

// Symbol is a symbol of the kernel or of a module.
type Symbol struct {
	kallsyms.Symbol
	Module string // "" for the kernel itself
	Size   uint64 // bytes: up to the next symbol if its own size is not recorded; 0 if unknown
}

// symbolsOfKernel is what a Problem with all symbols of the kernel is about.
const symbolsOfKernel = "symbols of the kernel"

// LookupAll is every symbol with this name: those of the kernel by ascending
// address, then those of the modules in their order. Problems are those of
// SymbolProblems.
func (k *Kernel) LookupAll(name string) ([]Symbol, []Problem) {
	var out []Symbol
	if table, err := k.Symbols(); err == nil {
		for _, s := range table.LookupAll(name) {
			size := uint64(0)
			if !s.Absolute() {
				size, _ = table.Size(s.Addr)
			}
			out = append(out, Symbol{Symbol: s, Size: size})
		}
	}
	if set, err := k.moduleSet(); err == nil {
		for i := range set.list {
			for _, s := range k.symbolsOf(&set.list[i]).byAddr {
				if s.Name == name {
					out = append(out, Symbol{Symbol: s.Symbol, Module: set.list[i].Name, Size: s.Size})
				}
			}
		}
	}
	return out, k.SymbolProblems()
}

// SymbolProblems are why a symbol may not be found that is there: a table that is
// damaged or cannot be read, modules that are not in the list, or whose symbols could
// not be read.
func (k *Kernel) SymbolProblems() []Problem {
	problems := k.tableProblems()
	set, err := k.moduleSet()
	if err != nil {
		return append(problems, Problem{"modules", err})
	}
	problems = append(problems, set.problems...)
	for i := range set.list {
		if err := k.symbolsOf(&set.list[i]).err; err != nil {
			problems = append(problems, Problem{"symbols of " + set.list[i].Name, err})
		}
	}
	return problems
}

// tableProblems are those of the kernel's own table.
func (k *Kernel) tableProblems() []Problem {
	table, err := k.Symbols()
	if err == nil && table.Damage() != "" {
		err = fmt.Errorf("%s: %w", table.Damage(), kallsyms.ErrCorrupt)
	}
	if err != nil {
		return []Problem{{symbolsOfKernel, err}}
	}
	return nil
}
