package linux

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"

	"nestdbg/internal/kallsyms"
	"nestdbg/internal/mem"
)

// moduleSet is the list of modules as it was once, with the symbols of those that
// were asked for.
type moduleSet struct {
	list     []Module
	problems []Problem // what of the list could not be read

	mu      sync.Mutex
	symbols map[mem.Virt]*moduleSymbols // guarded by mu; by address of the struct module
}

// moduleSymbols are one module's symbols.
type moduleSymbols struct {
	byAddr []ModuleSymbol
	byName map[string]mem.Virt // the lowest of a name
	err    error
}

// ModuleSymbol is a symbol of a module.
type ModuleSymbol struct {
	kallsyms.Symbol
	Size uint64 // bytes, as the compiler recorded; 0 if it did not
}

// moduleSet returns the modules, listing them once until Forget.
func (k *Kernel) moduleSet() (*moduleSet, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.modules != nil {
		return k.modules, nil
	}
	list, problems, err := k.Modules()
	var missing *MissingError
	switch {
	case errors.As(err, &missing) && missing.Option == optionModules: // and so none
	case err != nil && len(list) == 0:
		return nil, err
	case err != nil:
		problems = append(problems, Problem{"rest of the modules", err})
	}
	k.modules = &moduleSet{list: list, problems: problems, symbols: map[mem.Virt]*moduleSymbols{}}
	return k.modules, nil
}

// ModuleSymbols are the symbols that the kernel keeps of a module, by ascending
// address. ErrUnsupported if it keeps none.
func (k *Kernel) ModuleSymbols(m *Module) ([]ModuleSymbol, error) {
	s := k.symbolsOf(m)
	return s.byAddr, s.err
}

// symbolsOf returns a module's symbols, reading them once until Forget.
func (k *Kernel) symbolsOf(m *Module) *moduleSymbols {
	set, err := k.moduleSet()
	if err != nil {
		return &moduleSymbols{err: err}
	}
	set.mu.Lock()
	defer set.mu.Unlock()
	if s := set.symbols[m.Addr]; s != nil {
		return s
	}
	s := &moduleSymbols{}
	s.byAddr, s.err = k.readModuleSymbols(m)
	s.byName = make(map[string]mem.Virt, len(s.byAddr))
	for _, sym := range s.byAddr {
		if _, ok := s.byName[sym.Name]; !ok {
			s.byName[sym.Name] = mem.Virt(sym.Addr)
		}
	}
	set.symbols[m.Addr] = s
	return s
}

func (k *Kernel) lookupModule(m *Module, name string) (mem.Virt, bool) {
	a, ok := k.symbolsOf(m).byName[name]
	return a, ok
}

// symbolizeModule names an address of a module. One before its first symbol is
// named by the module alone.
func (k *Kernel) symbolizeModule(m *Module, a mem.Virt) (Place, bool) {
	syms := k.symbolsOf(m).byAddr
	i := sort.Search(len(syms), func(i int) bool { return syms[i].Addr > uint64(a) })
	if i == 0 || !m.Contains(mem.Virt(syms[i-1].Addr)) {
		return Place{}, false
	}
	best := i - 1
	// Of several symbols at one address the first that has a size, as the kernel does
	// not, is the function rather than a section or mapping mark.
	for j := best; j >= 0 && syms[j].Addr == syms[best].Addr; j-- {
		if syms[j].Size != 0 {
			best = j
			break
		}
	}
	p := Place{Name: syms[best].Name, Module: m.Name, Offset: uint64(a) - syms[best].Addr, Size: syms[best].Size}
	if p.Size == 0 && i < len(syms) {
		p.Size = syms[i].Addr - syms[best].Addr
	}
	return p, true
}

// Elf64_Sym: name u32, info u8, other u8, section u16, value u64, size u64. (ELF
// gABI, "Symbol Table".) 24 bytes.
const elfSymSize = 24

// Bounds of a module's symbol table.
const (
	moduleSymbolsMax = 1 << 20
	moduleStringsMax = 64 << 20
	moduleNameMax    = 512 // KSYM_NAME_LEN, Linux 6.1
)

// readModuleSymbols reads struct module.kallsyms (Linux 4.5): an ELF symbol table,
// and since 5.2 the type letters beside it, which were in st_info before.
func (k *Kernel) readModuleSymbols(m *Module) ([]ModuleSymbol, error) {
	if m.kallsyms == 0 {
		return nil, fmt.Errorf("symbols of module %s: %w", m.Name, ErrUnsupported)
	}
	t, err := k.Types()
	if err != nil {
		return nil, err
	}
	s := newShape(t, "mod_kallsyms")
	symtab, count, strtab := s.need("symtab"), s.need("num_symtab"), s.need("strtab")
	typetab, hasTypes := s.want("typetab")
	rec, err := s.read(k.space, m.kallsyms)
	if err != nil {
		return nil, fmt.Errorf("symbols of module %s: %w", m.Name, err)
	}
	n := rec.uint(count)
	if n > moduleSymbolsMax {
		return nil, fmt.Errorf("module %s has %d symbols: %w", m.Name, n, ErrCorrupt)
	}
	syms := make([]byte, n*elfSymSize)
	if _, err := k.space.ReadVirt(syms, rec.virt(symtab)); err != nil {
		return nil, fmt.Errorf("symbols of module %s: %w", m.Name, err)
	}
	var types []byte
	if hasTypes {
		types = make([]byte, n)
		if _, err := k.space.ReadVirt(types, rec.virt(typetab)); err != nil {
			return nil, fmt.Errorf("symbol types of module %s: %w", m.Name, err)
		}
	}
	names, err := k.moduleStrings(syms, rec.virt(strtab))
	if err != nil {
		return nil, fmt.Errorf("symbol names of module %s: %w", m.Name, err)
	}
	return moduleSymbolList(syms, types, names), nil
}

// moduleStrings reads as much of the string table as the symbols refer to.
func (k *Kernel) moduleStrings(syms []byte, strtab mem.Virt) ([]byte, error) {
	last := uint32(0)
	for i := 0; i < len(syms); i += elfSymSize {
		last = max(last, binary.LittleEndian.Uint32(syms[i:]))
	}
	if last > moduleStringsMax {
		return nil, fmt.Errorf("string table of %d bytes: %w", last, ErrCorrupt)
	}
	// The last string's length is not known: it ends before the next hole.
	names := make([]byte, uint64(last)+moduleNameMax)
	n, err := k.space.ReadVirt(names, strtab)
	if n <= int(last) {
		return nil, err
	}
	return names[:n], nil
}

// moduleSymbolList joins the tables, sorted by address. Undefined symbols (section
// 0) and nameless ones are left out, as in /proc/kallsyms.
func moduleSymbolList(syms, types, names []byte) []ModuleSymbol {
	var out []ModuleSymbol
	for i := 0; i+elfSymSize <= len(syms); i += elfSymSize {
		e := syms[i:][:elfSymSize]
		name := cString(names, binary.LittleEndian.Uint32(e))
		if section := binary.LittleEndian.Uint16(e[6:]); section == 0 || name == "" {
			continue
		}
		letter := e[4]
		if types != nil {
			letter = types[i/elfSymSize]
		}
		out = append(out, ModuleSymbol{
			Symbol: kallsyms.Symbol{Name: name, Addr: binary.LittleEndian.Uint64(e[8:]), Type: letter},
			Size:   binary.LittleEndian.Uint64(e[16:]),
		})
	}
	slices.SortStableFunc(out, func(a, b ModuleSymbol) int { return cmp.Compare(a.Addr, b.Addr) })
	return out
}

// cString is the string at an offset of a table, cleaned; empty if it is outside
// or has no end.
func cString(table []byte, off uint32) string {
	if uint64(off) >= uint64(len(table)) {
		return ""
	}
	b := table[off:]
	b = b[:min(len(b), moduleNameMax)]
	for i, c := range b {
		if c == 0 {
			return cleanText(b[:i])
		}
	}
	return ""
}
