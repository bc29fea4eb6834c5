package symfile

import (
	"slices"
	"strings"
	"sync"

	"nestdbg/internal/btf"
)

// typed is a unit and its types.
type typed struct {
	types
	unit *Unit
}

// locationBytes is how much .debug_loc a symbol takes: 26 bytes in Linux 6.1.
const locationBytes = 32

// describeUnits makes .debug_info, what belongs to it, and .gdb_index, or nothing.
func (w *writer) describeUnits(f *File) []part {
	base, units := w.parseUnits(f)
	if f.Base == nil {
		w.kernel = base
	}
	if len(units) == 0 {
		return nil
	}
	var info, str, loc buffer
	var index gdbIndex
	for _, t := range units {
		// For Linux 6.1 that is enough by a tenth.
		info.grow(len(t.unit.BTF) * 4 / 5)
		str.grow(len(t.own.strings) + 1<<10)
		loc.grow(len(t.unit.Symbols) * locationBytes)
	}
	str.u8(0)
	describe := func(t typed) {
		if max(info.len(), str.len(), loc.len()) > maxStrings {
			w.notes.add("types of %s: no room", cleanName(t.unit.Name))
			return
		}
		d := describer{types: t.types, notes: w.notes, places: &w.places, code: f.Code,
			info: &info, str: &str, loc: &loc, index: &index}
		d.describeUnit(t.unit)
		w.entries = append(w.entries, d.entries...)
	}
	if f.Base != nil {
		for _, t := range units {
			t.markNeeds(t.unit.Variables)
		}
		describe(typed{types{own: base}, &Unit{Name: "kernel"}})
	}
	for _, t := range units {
		describe(t)
	}
	indexed := index.section(str.b, w.places.moves)
	return []part{
		{name: ".debug_info", kind: shtProgbits, data: info.b, moves: info.moves, align: 1},
		{name: ".debug_loc", kind: shtProgbits, data: loc.b, moves: loc.moves, align: 1},
		{name: ".debug_abbrev", kind: shtProgbits, data: abbreviations(), align: 1},
		{name: ".debug_str", kind: shtProgbits, data: str.b, align: 1},
		{name: ".gdb_index", kind: shtProgbits, data: indexed.b, moves: indexed.moves, align: 4},
	}
}

// Base is a kernel's own BTF, for the files of its modules. It is read once, since
// that takes longer than all the rest of such a file. It is safe for concurrent use.
type Base struct{ table table }

// NewBase reads a kernel's raw BTF, which must not change from then on. What is
// wrong with single types is reported as by File.Write; BTF that a module's
// cannot continue, because it cannot be read to its end, is an error of package btf.
func NewBase(raw []byte) (*Base, []Problem, error) {
	t, err := parseBTF(raw, nil)
	if err != nil {
		return nil, nil, err
	}
	n := &notes{}
	all := types{own: t}
	all.check(n)
	return &Base{table: *t}, n.problems, nil
}

// partial returns a table of which only what will be marked is described.
func (b *Base) partial() *table {
	t := b.table
	t.state = slices.Clone(t.state)
	t.die = make([]uint32, len(t.state))
	t.isPartial = true
	t.interned = make(map[uint32]uint32)
	return &t
}

// parseUnits parses and checks the types of all units that have any. base is what
// those of modules continue.
func (w *writer) parseUnits(f *File) (base *table, units []typed) {
	if f.Base != nil {
		base = f.Base.partial()
	}
	for i := range f.Units {
		u := &f.Units[i]
		isKernel := f.Base == nil && i == 0
		if len(u.BTF) == 0 || !isKernel && base == nil {
			w.notes.skipUnit(u)
			continue
		}
		t, err := parseBTF(u.BTF, base)
		if err != nil {
			w.notes.add("BTF of %s: %v", cleanName(u.Name), err)
		}
		if t == nil {
			continue
		}
		all := types{base: base, own: t}
		all.check(w.notes)
		units = append(units, typed{all, u})
		if isKernel && err == nil {
			base = t
		}
	}
	return base, units
}

// skipUnit reports a unit that cannot be described, if it wanted to be.
func (n *notes) skipUnit(u *Unit) {
	switch {
	case len(u.BTF) > 0:
		n.add("BTF of %s continues one that is not there: left out", cleanName(u.Name))
	case len(u.Variables) > 0:
		n.add("variables of %s without BTF: left out", cleanName(u.Name))
	}
}

// describeUnit writes one compilation unit.
func (d *describer) describeUnit(u *Unit) {
	start := d.begin(u.Name)
	if d.own.interned == nil {
		d.own.nameOffset = uint32(d.str.len())
		d.copyStrings(d.own.strings)
	}
	var functions map[string]*function
	var found sync.WaitGroup
	found.Go(func() { functions = d.findFunctions(u.Symbols) })
	d.describeTypes(d.own)
	found.Wait()
	d.functions(u.Symbols, functions)
	d.variables(u)
	d.end(start)
}

// function is what BTF, the symbols and the code say about one name.
type function struct {
	proto       uint32 // type id
	symbol      int    // index in Unit.Symbols, -1 if there is none
	entry       uint64 // see entrySize
	isAmbiguous bool
}

// findFunctions finds the symbols of the functions that BTF knows. It only reads.
func (d *describer) findFunctions(symbols []Symbol) map[string]*function {
	if len(symbols) == 0 {
		return nil
	}
	byName := d.prototypes()
	code := codeWindow{code: d.code}
	for i := range symbols { // mostly by ascending address
		s := &symbols[i]
		if !s.Code {
			continue
		}
		f, ok := byName[s.Name]
		switch {
		case !ok:
		case f.symbol < 0:
			f.symbol, f.entry = i, entrySize(&code, s.Addr)
		case symbols[f.symbol].Addr != s.Addr:
			f.isAmbiguous = true
		}
	}
	return byName
}

// functions describes the functions that have one prototype and one address.
// Several static functions may share a name, and BTF does not say to which of
// them a prototype belongs; those stay plain symbols.
func (d *describer) functions(symbols []Symbol, byName map[string]*function) {
	if len(byName) == 0 {
		return
	}
	for i := range d.own.Len() {
		if d.own.KindAt(i) != btf.Func {
			continue
		}
		r := d.own.record(i)
		f := byName[string(d.own.Text(r.Name))]
		if f == nil || f.symbol < 0 || f.isAmbiguous {
			continue
		}
		d.function(r.Name, f, &symbols[f.symbol])
		f.symbol = -1 // a second record of the same name adds nothing
	}
}

// prototypes collects the functions that the unit's BTF knows.
func (d *describer) prototypes() map[string]*function {
	count := 0
	for i := range d.own.Len() {
		if d.own.KindAt(i) == btf.Func {
			count++
		}
	}
	byName := make(map[string]*function, count)
	all := make([]function, 0, count) // does not grow: byName points into it
	for i := range d.own.Len() {
		if d.own.KindAt(i) != btf.Func {
			continue
		}
		r := d.own.record(i)
		name := d.own.Text(r.Name)
		if f := byName[string(name)]; f != nil {
			f.isAmbiguous = f.isAmbiguous || f.proto != r.Ref
		} else if len(name) > 0 {
			all = append(all, function{proto: r.Ref, symbol: -1})
			byName[string(name)] = &all[len(all)-1]
		}
	}
	return byName
}

// maxFunction bounds the size of a function in bytes; DW_AT_high_pc has 4.
const maxFunction = 1<<32 - 1

// function describes one function. Where its parameters are is known at its entry
// only; from then on gdb calls their values optimized out.
func (d *describer) function(name uint32, f *function, s *Symbol) {
	t, i := d.at(f.proto)
	if i < 0 {
		return
	}
	size := s.Size
	if size == 0 {
		size = d.places.extent(s.Addr)
	}
	r := t.record(i)
	if r.Kind != btf.FuncProto || size == 0 || size > maxFunction {
		d.notes.add("function %q of %#x bytes, BTF kind %d: not described", s.Name, size, r.Kind)
		return
	}
	r.prune(t.state[i])
	d.open(shapeFunction, r.Ref, name)
	d.index.setExternal(!s.Local)
	d.index.code(s.Addr, size)
	d.info.flag(!s.Local)
	moves := d.places.moves(s.Addr)
	d.info.addr(s.Addr, moves)
	d.info.u32(uint32(size))
	if d.places.keep {
		d.entries = append(d.entries, codeEntry{s.Addr, f.entry})
	}
	d.parameters(&r, argumentRegisters[:d.arguments(&r)], func(reg uint8) uint32 {
		return d.loc.location(s.Addr, f.entry, reg, moves)
	})
}

// variables describes the unit's variables: those that the caller knows, and those of
// BTF, whose address is that of the symbol.
func (d *describer) variables(u *Unit) {
	known := make(map[string]bool)
	for _, v := range u.Variables {
		known[v.Name] = true
		typ, ok := d.typeOf(&v)
		if !ok {
			d.notes.add("variable at %#x of type %d: not described", v.Addr, v.Type)
			continue
		}
		d.variable(d.intern(v.Name), typ, v.Addr, true)
	}
	if len(u.Symbols) == 0 {
		return
	}
	byName := d.btfVariables()
	for i := range u.Symbols {
		s := &u.Symbols[i]
		v := byName[s.Name]
		switch {
		case v == nil || s.Code || v.isPerCPU != u.isPerCPU(s.Addr):
		case v.symbol < 0:
			v.symbol = i
		case u.Symbols[v.symbol].Addr != s.Addr:
			v.isAmbiguous = true
		}
	}
	for i := range u.Symbols {
		s := &u.Symbols[i]
		v := byName[s.Name]
		if v == nil || v.isAmbiguous || v.symbol != i || known[s.Name] {
			continue
		}
		if str, ok := d.name(v.name); ok {
			d.variable(str, die{typ: v.typ}, s.Addr, !s.Local)
		}
	}
}

// btfVariable is what BTF and the symbols say about one name.
type btfVariable struct {
	name, typ   uint32
	isPerCPU    bool
	symbol      int // index in Unit.Symbols, -1 if there is none
	isAmbiguous bool
}

// btfVariables collects the variables of the unit's BTF by name. Static variables of
// several files share names, and BTF does not say which symbol is whose: several
// variables, or symbols, of one name in sections of one kind stay plain symbols.
func (d *describer) btfVariables() map[string]*btfVariable {
	byName := make(map[string]*btfVariable)
	for i := range d.own.Len() {
		if d.own.KindAt(i) != btf.Datasec {
			continue
		}
		section := d.own.record(i)
		// ".data..percpu" (pahole 1.25 btf_encoder.c:PERCPU_SECTION).
		isPerCPU := strings.HasSuffix(string(d.own.Text(section.Name)), "percpu")
		for n := range section.Count { // struct btf_var_secinfo: type, offset, size
			s, k := d.at(section.U32(12 * n))
			if s != d.own || d.own.KindAt(k) != btf.Var {
				continue
			}
			r := d.own.record(k)
			name := string(d.own.Text(r.Name))
			if v := byName[name]; v != nil {
				v.isAmbiguous = true
			} else {
				byName[name] = &btfVariable{name: r.Name, typ: r.Ref, isPerCPU: isPerCPU, symbol: -1}
			}
		}
	}
	return byName
}

// isPerCPU reports whether a symbol at an address stands for a variable of which each
// CPU has a copy elsewhere.
func (u *Unit) isPerCPU(addr uint64) bool {
	return u.PerCPU != nil && u.PerCPU.Contains(addr)
}

// die is a type as an entry refers to it: by its number in BTF, or by where it is
// described.
type die struct{ typ, at uint32 }

// typeOf is the type of a variable; it describes what BTF need not have.
func (d *describer) typeOf(v *Variable) (die, bool) {
	typ := uint32(v.Type)
	if s, i := d.target(typ); (i < 0 || !s.isDescribed(i)) && !(typ == 0 && v.Pointer) { // which is void *
		return die{}, false
	}
	switch at := uint32(d.info.len()); {
	case v.Pointer:
		d.entry(shapePointer, typ, 0)
		return die{at: at}, true
	case v.Array:
		d.arrayOf(typ, v.Count)
		return die{at: at}, true
	}
	return die{typ: typ}, true
}

// variable describes one variable. One without a type would be no more than the
// symbol it is already.
func (d *describer) variable(str uint32, of die, addr uint64, isExternal bool) {
	if of.at != 0 {
		d.info.u8(shapeVariable.code(true, str != 0))
		d.info.u32(of.at)
		if str != 0 {
			d.info.u32(str)
		}
		d.index.add(shapeVariable, str)
	} else if s, i := d.target(of.typ); i >= 0 && s.isDescribed(i) {
		d.entry(shapeVariable, of.typ, str)
	} else {
		d.notes.add("variable at %#x of type %d: not described", addr, of.typ)
		return
	}
	d.index.setExternal(isExternal && str != 0)
	d.info.flag(isExternal)
	d.info.uleb(1 + pointerSize)
	d.info.u8(opAddr)
	d.info.addr(addr, d.places.moves(addr))
}
