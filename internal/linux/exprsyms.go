package linux

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"nestdbg/internal/cexpr"
)

// exprSymbols are the variables and functions of a kernel for expressions.
type exprSymbols struct {
	k     *Kernel
	types *exprTypes // nil if the kernel has none
	env   *cexpr.Env
}

// Variable implements cexpr.Symbols. The address is what kallsyms says. The type is
// what BTF says: of functions, of per-CPU variables, and where pahole was told to
// (1.28, --btf_features=global_var) of all. For a few more it is what every
// kernel has, and then a note says so.
func (s *exprSymbols) Variable(name string) (cexpr.Variable, error) {
	sym, err := s.symbol(name)
	if err != nil {
		return cexpr.Variable{}, err
	}
	v := cexpr.Variable{Addr: sym.Addr, PerCPU: s.isPerCPU(sym)}
	if s.types == nil {
		return v, nil
	}
	of := s.types.of(sym.Module)
	if s.isCode(sym) {
		if v.Type = s.types.function(of.spec, name); v.Type == nil {
			v.Type = cexpr.NewType(cexpr.Def{Kind: cexpr.KindFunc, Elem: cexpr.Void, Variadic: true})
			v.Note = "what the function " + name + " takes and returns is not in BTF"
		}
		return v, nil
	}
	known := s.types.variables(of.spec)[name]
	for _, k := range known {
		v.PerCPU = v.PerCPU || strings.HasSuffix(k.section, "percpu")
	}
	switch {
	case len(known) == 1:
		v.Type = known[0].typ
	case len(known) > 1:
		v.Note = fmt.Sprintf("BTF has %d variables %s; which of them has this address it does not say", len(known), name)
	default:
		v.Type, v.Note = s.assumed(sym)
	}
	return v, nil
}

// symbol is the one that a name stands for: that of the kernel itself before those
// of modules, a global one before static ones, which there may be many of.
func (s *exprSymbols) symbol(name string) (Symbol, error) {
	list, problems := s.k.LookupAll(name)
	own := slices.DeleteFunc(slices.Clone(list), func(sym Symbol) bool { return sym.Module != "" })
	if len(own) > 0 {
		list = own
	}
	one, isOne := only(list, func(sym Symbol) byte { return sym.Type })
	switch {
	case len(list) == 0:
		return Symbol{}, s.notFound(name, problems)
	case isOne:
		return one, nil
	}
	var places []string
	for _, sym := range list[:min(len(list), 6)] {
		text := fmt.Sprintf("%#x", sym.Addr)
		if sym.Module != "" {
			text += " [" + sym.Module + "]"
		}
		places = append(places, text)
	}
	if len(list) > len(places) {
		places = append(places, "...")
	}
	return Symbol{}, &cexpr.Error{Pos: -1, Msg: fmt.Sprintf("%d symbols are called %s: %s; write *(TYPE *) and the address",
		len(list), name, strings.Join(places, ", "))}
}

// notFound is the error for a name that no symbol has, with why one may not be found.
func (s *exprSymbols) notFound(name string, problems []Problem) error {
	if _, err := s.k.Symbols(); err != nil {
		return err
	}
	var missing *MissingError
	why := strings.TrimPrefix(Unread(problems), "; ")
	if err := s.k.missingSymbol(name, ""); errors.As(err, &missing) {
		why = "its table has no variables, which " + missing.Option + " gives"
	}
	if why == "" {
		return fmt.Errorf("symbol %s: %w", name, cexpr.ErrNotFound)
	}
	return &cexpr.Error{Pos: -1, Msg: why, Err: cexpr.ErrNotFound}
}

// only is the one that is meant among symbols of one name: the global one, before
// static ones.
func only[S any](list []S, letter func(S) byte) (one S, ok bool) {
	globals := 0
	for _, s := range list {
		if c := letter(s); c >= 'A' && c <= 'Z' {
			one, globals = s, globals+1
		}
	}
	if len(list) == 1 {
		return list[0], true
	}
	return one, globals == 1
}

// isCode reports whether a symbol is a function. The letter does not tell: in Debian's
// 7.2 the variables of some sections have that of code.
func (s *exprSymbols) isCode(sym Symbol) bool {
	letter := strings.IndexByte("tTwWiI", sym.Type) >= 0
	if !letter || sym.Module != "" {
		return letter
	}
	known := false
	for _, ends := range [][2]string{{"_stext", "_etext"}, {"_sinittext", "_einittext"}} {
		start, ok := s.k.lookupCore(ends[0])
		end, okEnd := s.k.lookupCore(ends[1])
		if !ok || !okEnd {
			continue
		}
		if known = true; uint64(start) <= sym.Addr && sym.Addr < uint64(end) {
			return true
		}
	}
	return !known
}

// isPerCPU reports whether a symbol lies where the kernel keeps what each CPU gets a
// copy of. Before Linux 6.15 x86-64 links it at 0, and its symbols are absolute.
func (s *exprSymbols) isPerCPU(sym Symbol) bool {
	if sym.Module != "" {
		return false // BTF says it; see Variable
	}
	r, ok := s.k.PerCPUSymbols()
	return ok && r.Contains(sym.Addr)
}

// assumed is the type of a variable whose type BTF does not have, but which is the
// same in all kernels. A type that has no room before the next symbol is not it.
func (s *exprSymbols) assumed(sym Symbol) (*cexpr.Type, string) {
	text, ok := wellKnown[sym.Name]
	if !ok {
		return nil, ""
	}
	t, err := s.env.Resolve(text)
	if err != nil {
		return nil, ""
	}
	size, err := t.Size()
	if err != nil || sym.Size != 0 && size > sym.Size {
		return nil, ""
	}
	if d, err := t.Def(); err == nil && d.Kind == cexpr.KindArray && d.Count == 0 {
		// It ends where the next variable begins, or before; text ends with its NUL.
		if each, err := d.Elem.Size(); err == nil && each > 1 {
			t = cexpr.ArrayOf(d.Elem, min(sym.Size/each, pageSize))
		}
	}
	return t, fmt.Sprintf("%s is assumed to be %s: this kernel's BTF does not say it, and all kernels agree", sym.Name, text)
}
