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
// address, then those of the modules in their order. Problems are modules whose
// symbols could not be read, and a table that is damaged.
func (k *Kernel) LookupAll(name string) ([]Symbol, []Problem) {
	var out []Symbol
	var problems []Problem
	table, err := k.Symbols()
	if err != nil {
		problems = append(problems, Problem{symbolsOfKernel, err})
	} else {
		for _, s := range table.LookupAll(name) {
			size := uint64(0)
			if !s.Absolute() {
				size, _ = table.Size(s.Addr)
			}
			out = append(out, Symbol{Symbol: s, Size: size})
		}
		if damage := table.Damage(); damage != "" {
			problems = append(problems, Problem{symbolsOfKernel, fmt.Errorf("%s: %w", damage, kallsyms.ErrCorrupt)})
		}
	}
	set, err := k.moduleSet()
	if err != nil {
		return out, append(problems, Problem{"modules", err})
	}
	for i := range set.list {
		more, err := k.ModuleSymbols(&set.list[i])
		if err != nil {
			problems = append(problems, Problem{"symbols of " + set.list[i].Name, err})
		}
		for _, s := range more {
			if s.Name == name {
				out = append(out, Symbol{Symbol: s.Symbol, Module: set.list[i].Name, Size: s.Size})
			}
		}
	}
	return out, problems
}
