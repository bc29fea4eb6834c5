package linux

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"nestdbg/internal/btf"
	"nestdbg/internal/cexpr"
)

// exprTypes are the types of a kernel and of its modules for expressions. It
// belongs to one goroutine, like the cexpr.Types it makes.
type exprTypes struct {
	k    *Kernel
	core *Types
	made map[*btf.Spec]map[btf.ID]*cexpr.Type

	modules  []*Types  // those with types of their own
	searched bool      // modules is filled
	bare     bool      // there are modules without types
	problems []Problem // modules whose types could not be read
	vars     map[*btf.Spec]map[string][]exprVar
}

// exprVar is a variable that BTF knows: a BTF_KIND_VAR.
type exprVar struct {
	typ     *cexpr.Type
	section string
}

func newExprTypes(k *Kernel, core *Types) *exprTypes {
	return &exprTypes{k: k, core: core, made: map[*btf.Spec]map[btf.ID]*cexpr.Type{},
		vars: map[*btf.Spec]map[string][]exprVar{}}
}

// all yields the types of the kernel, and then those of each module that has some.
func (x *exprTypes) all(yield func(*Types) bool) {
	if !yield(x.core) {
		return
	}
	if !x.searched {
		x.searched = true
		x.search()
	}
	for _, t := range x.modules {
		if !yield(t) {
			return
		}
	}
}

// search finds the modules with types.
func (x *exprTypes) search() {
	if x.core.cut != nil {
		x.problems = []Problem{{"types of " + x.core.of + " and its modules to their end", x.core.cut}}
		return // they continue the kernel's
	}
	set, err := x.k.moduleSet()
	if err != nil {
		x.problems = []Problem{{"modules", err}}
		return
	}
	x.problems = slices.Clone(set.problems)
	for i := range set.list {
		name := set.list[i].Name
		switch t, err := x.k.ModuleTypes(name); {
		case errors.Is(err, ErrNotFound): // as those that were built without
			x.bare = true
		case err != nil:
			x.problems = append(x.problems, Problem{"types of module " + name, err})
		default:
			x.modules = append(x.modules, t)
			if t.cut != nil {
				x.problems = append(x.problems, Problem{"types of module " + name + " to their end", t.cut})
			}
		}
	}
}

// of is the types that a module's BTF says, or the kernel's for "".
func (x *exprTypes) of(module string) *Types {
	if module == "" {
		return x.core
	}
	t, err := x.k.ModuleTypes(module)
	if err != nil {
		return x.core
	}
	return t
}

// kindsOf are the kinds of BTF that a keyword stands for.
func kindsOf(keyword string) []btf.Kind {
	switch keyword {
	case "struct":
		return []btf.Kind{btf.Struct}
	case "union":
		return []btf.Kind{btf.Union}
	case "enum":
		return []btf.Kind{btf.Enum, btf.Enum64}
	}
	return []btf.Kind{btf.Typedef, btf.Int, btf.Float}
}

func oneOf(k btf.Kind, kinds []btf.Kind) bool {
	for _, other := range kinds {
		if k == other {
			return true
		}
	}
	return false
}

// Named implements cexpr.Types. What the kernel has itself hides what modules have, but
// for a name that says which module is meant; Note tells that there are such.
func (x *exprTypes) Named(keyword, name string) ([]*cexpr.Type, error) {
	var out []*cexpr.Type
	module, bare, scoped := strings.Cut(name, "::")
	for t := range x.all {
		switch {
		case !scoped:
			out = append(out, x.in(t, keyword, name)...)
		case t.module == module:
			out = append(out, x.in(t, keyword, bare)...)
		}
		if len(out) > sameNameMax {
			return nil, fmt.Errorf("more than %d types %s: %w", sameNameMax, name, ErrCorrupt)
		}
		if t == x.core && len(out) > 0 {
			break
		}
	}
	switch {
	case len(out) > 0:
		return out, nil
	case len(x.problems) > 0:
		return nil, &cexpr.Error{Pos: -1, Msg: strings.TrimPrefix(Unread(x.problems), "; "), Err: cexpr.ErrNotFound}
	case x.bare && len(x.modules) == 0:
		return nil, &cexpr.Error{Pos: -1, Msg: "types of modules are not known, which " + optionModuleTypes + " gives (Linux 5.11)", Err: cexpr.ErrNotFound}
	}
	return nil, fmt.Errorf("type %s %s: %w", keyword, name, cexpr.ErrNotFound)
}

// in returns the types of a name that are the kernel's own, or a module's.
func (x *exprTypes) in(t *Types, keyword, name string) (out []*cexpr.Type) {
	kinds := kindsOf(keyword)
	for _, id := range t.spec.Named(name) {
		typ, ok := t.spec.Type(id)
		if !ok || !oneOf(typ.Kind, kinds) || typ.Kind == btf.Enum && typ.Count == 0 { // which is only declared
			continue
		}
		if out = append(out, x.typ(t.spec, id)); len(out) > sameNameMax {
			return out
		}
	}
	return out
}

// Note implements cexpr.Types. Modules have a type of the kernel's once more where the
// tool that wrote the BTF did not see that it is the same; those that look the same are
// no other type.
func (x *exprTypes) Note(keyword, name string) string {
	var first *cexpr.Type
	var owner string
	var others []string
	for t := range x.all {
		for _, typ := range x.in(t, keyword, name) {
			if first == nil {
				first, owner = typ, t.of
			} else if t != x.core && t.of != owner && !looksLike(typ, first) {
				others = append(others, strings.TrimSpace(keyword+" "+t.module+"::"+name))
				break
			}
		}
	}
	const most = 5
	if len(others) > most {
		others = append(others[:most], "...")
	}
	if len(others) == 0 {
		return ""
	}
	return fmt.Sprintf("%s is that of %s; another is %s", strings.TrimSpace(keyword+" "+name), owner, strings.Join(others, ", "))
}

// looksLike reports whether two types have the same size and the same names at the same
// places.
func looksLike(a, b *cexpr.Type) bool {
	x, errX := a.Under()
	y, errY := b.Under()
	if errX != nil || errY != nil {
		return (errX == nil) == (errY == nil)
	}
	return x.Kind == y.Kind && x.Size == y.Size && slices.Equal(x.Enumerators, y.Enumerators) &&
		slices.EqualFunc(x.Members, y.Members, func(m, n cexpr.Member) bool {
			return m.Name == n.Name && m.BitOffset == n.BitOffset && m.BitSize == n.BitSize
		})
}

// Names implements cexpr.Types.
func (x *exprTypes) Names(keyword string) iter.Seq[string] {
	kinds := kindsOf(keyword)
	return func(yield func(string) bool) {
		for t := range x.all {
			for i := range t.spec.Len() {
				typ := t.spec.At(i)
				if name := t.spec.Text(typ.Name); oneOf(typ.Kind, kinds) && len(name) > 0 && !yield(string(name)) {
					return
				}
			}
		}
	}
}

// Enumerator implements cexpr.Types. It goes through all enumerations, which takes
// some milliseconds, and is asked only for what is no symbol.
func (x *exprTypes) Enumerator(name string) (*cexpr.Type, uint64, error) {
	for t := range x.all {
		for i := range t.spec.Len() {
			typ := t.spec.At(i)
			if typ.Kind != btf.Enum && typ.Kind != btf.Enum64 {
				continue
			}
			each := len(typ.Data) / max(typ.Count, 1)
			for n := range typ.Count {
				if string(t.spec.Text(typ.U32(each*n))) != name {
					continue
				}
				out := x.typ(t.spec, t.spec.First()+btf.ID(i))
				d, err := out.Def()
				if err != nil {
					return nil, 0, err
				}
				return out, d.Enumerators[n].Value, nil
			}
		}
	}
	return nil, 0, fmt.Errorf("enumerator %s: %w", name, cexpr.ErrNotFound)
}

// typ is the type of a number. One number gives one object, so that types can be
// compared.
func (x *exprTypes) typ(s *btf.Spec, id btf.ID) *cexpr.Type {
	// What says nothing about values is left out: restrict, and tags such as __user.
	for range 64 {
		t, ok := s.Type(id)
		if !ok || t.Kind != btf.Restrict && t.Kind != btf.TypeTag {
			break
		}
		id = btf.ID(t.Ref)
	}
	for s.Base() != nil && id < s.First() {
		s = s.Base()
	}
	if id == 0 {
		return cexpr.Void
	}
	if x.made[s] == nil {
		x.made[s] = map[btf.ID]*cexpr.Type{}
	}
	t := x.made[s][id]
	if t == nil {
		t = cexpr.LazyType(func() (cexpr.Def, error) { return x.define(s, id) })
		x.made[s][id] = t
	}
	return t
}

// define is the definition of a type.
func (x *exprTypes) define(s *btf.Spec, id btf.ID) (cexpr.Def, error) {
	t, ok := s.Type(id)
	if !ok {
		return cexpr.Def{}, fmt.Errorf("no type %d: %w", id, ErrCorrupt)
	}
	d := cexpr.Def{Name: cleanText(s.Text(t.Name))}
	to := func() *cexpr.Type { return x.typ(s, btf.ID(t.Ref)) }
	switch t.Kind {
	case btf.Int:
		d = integer(&t, d.Name)
	case btf.Float:
		d.Kind, d.Size = cexpr.KindFloat, uint64(t.Ref)
	case btf.Ptr:
		d.Kind, d.Size, d.Elem = cexpr.KindPointer, 8, to()
	case btf.Typedef:
		d.Kind, d.Elem = cexpr.KindTypedef, to()
	case btf.Const, btf.Restrict, btf.TypeTag: // the last two by the thousand are as good as nothing
		d.Kind, d.Elem = cexpr.KindConst, to()
	case btf.Volatile:
		d.Kind, d.Elem = cexpr.KindVolatile, to()
	case btf.Array:
		d.Kind, d.Elem, d.Count = cexpr.KindArray, x.typ(s, btf.ID(t.U32(0))), uint64(t.U32(8))
	case btf.Struct, btf.Union:
		d.Kind, d.Size = cexpr.KindStruct, uint64(t.Ref)
		if t.Kind == btf.Union {
			d.Kind = cexpr.KindUnion
		}
		for i := range t.Count {
			m := s.Member(&t, i)
			d.Members = append(d.Members, cexpr.Member{Name: cleanText(s.Text(m.Name)), Type: x.typ(s, m.Type),
				BitOffset: uint64(m.BitOffset), BitSize: uint64(m.BitSize)})
		}
	case btf.Enum, btf.Enum64:
		enumeration(s, &t, &d)
	case btf.Fwd:
		x.forward(&t, &d)
	case btf.Func:
		return x.define(s, btf.ID(x.proto(s, &t)))
	case btf.FuncProto:
		d.Kind, d.Elem = cexpr.KindFunc, to()
		for i := range t.Count {
			if i == t.Count-1 && t.U32(8*i) == 0 && t.U32(8*i+4) == 0 {
				d.Variadic = true
				break
			}
			d.Params = append(d.Params, cexpr.Param{Name: cleanText(s.Text(t.U32(8 * i))), Type: x.typ(s, btf.ID(t.U32(8*i+4)))})
		}
	default:
		return cexpr.Def{}, fmt.Errorf("type %d is of kind %d, which is no type of a value: %w", id, t.Kind, ErrCorrupt)
	}
	return d, nil
}

// proto is the prototype of a function; 0, which is void, if it has none.
func (x *exprTypes) proto(s *btf.Spec, f *btf.Type) btf.ID {
	if t, ok := s.Type(btf.ID(f.Ref)); ok && t.Kind == btf.FuncProto {
		return btf.ID(f.Ref)
	}
	return 0
}

// integer is a BTF_KIND_INT, by the name that C has for it.
func integer(t *btf.Type, name string) cexpr.Def {
	const isSigned, isBool = 1, 4 // BTF_INT_SIGNED, BTF_INT_BOOL
	encoding := t.U32(0) >> 24 & 0xf
	d := cexpr.Def{Kind: cexpr.KindInt, Name: name, Size: uint64(t.Ref), Signed: encoding&isSigned != 0}
	if encoding&isBool != 0 {
		d.Kind = cexpr.KindBool
	}
	// A type of the same name as one of C's, but another size, keeps its own.
	if c, ok := cexpr.Basic(name); ok && c.Size == d.Size {
		d.Name = c.Name
	}
	return d
}

// enumeration is a BTF_KIND_ENUM or ENUM64. One without negative values is unsigned,
// as compilers have it: BTF before pahole 1.24 does not say.
func enumeration(s *btf.Spec, t *btf.Type, d *cexpr.Def) {
	d.Kind, d.Size = cexpr.KindEnum, uint64(t.Ref)
	signed := s.IsSigned(t)
	if t.Kind == btf.Enum64 {
		signed = t.Flag
	}
	if t.Count == 0 {
		d.Kind, d.Name = cexpr.KindForward, "enum "+d.Name
		return
	}
	for i := range t.Count {
		e := cexpr.Enumerator{}
		if t.Kind == btf.Enum64 {
			e.Name = cleanText(s.Text(t.U32(12 * i)))
			e.Value = uint64(t.U32(12*i+4)) | uint64(t.U32(12*i+8))<<32
		} else {
			e.Name, e.Value = cleanText(s.Text(t.U32(8*i))), uint64(t.U32(8*i+4))
			if signed {
				e.Value = uint64(int32(e.Value))
			}
		}
		d.Signed = d.Signed || signed && int64(e.Value) < 0
		d.Enumerators = append(d.Enumerators, e)
	}
}

// forward is a type that is only declared here. The definition may be elsewhere:
// types of modules are declared in the kernel, and the other way round.
func (x *exprTypes) forward(t *btf.Type, d *cexpr.Def) {
	keyword := "struct"
	if t.Flag {
		keyword = "union"
	}
	name := d.Name
	d.Kind, d.Name = cexpr.KindForward, keyword+" "+name
	d.Elem = cexpr.LazyType(func() (cexpr.Def, error) {
		list, err := x.Named(keyword, name)
		if err != nil {
			return cexpr.Def{}, err
		}
		if len(list) > 1 {
			return cexpr.Def{}, fmt.Errorf("%d different definitions of %s %s: %w", len(list), keyword, name, ErrUnsupported)
		}
		def, err := list[0].Def()
		if err != nil {
			return cexpr.Def{}, err
		}
		return *def, nil
	})
}

// variables are the variables that a section of BTF knows, by name.
func (x *exprTypes) variables(s *btf.Spec) map[string][]exprVar {
	if vars, ok := x.vars[s]; ok {
		return vars
	}
	vars := map[string][]exprVar{}
	for i := range s.Len() {
		t := s.At(i)
		if t.Kind != btf.Datasec {
			continue
		}
		for n := range t.Count {
			v, ok := s.Type(btf.ID(t.U32(12 * n)))
			if !ok || v.Kind != btf.Var {
				continue
			}
			name := cleanText(s.Text(v.Name))
			vars[name] = append(vars[name], exprVar{x.typ(s, btf.ID(v.Ref)), cleanText(s.Text(t.Name))})
		}
	}
	x.vars[s] = vars
	return vars
}

// function is the type of a function by its name; nil if BTF does not know it or
// knows several that differ.
func (x *exprTypes) function(s *btf.Spec, name string) *cexpr.Type {
	found := btf.ID(0)
	for i := range s.Len() {
		t := s.At(i)
		if t.Kind != btf.Func || string(s.Text(t.Name)) != name {
			continue
		}
		proto := x.proto(s, &t)
		if proto == 0 || found != 0 && found != proto {
			return nil
		}
		found = proto
	}
	if found == 0 {
		return nil
	}
	return x.typ(s, found)
}

// noTypes are the types of a kernel whose own cannot be had.
type noTypes struct{ err error }

// whyNoTypes says what would give a kernel types.
func whyNoTypes(err error) error {
	if errors.Is(err, ErrNotFound) {
		return &cexpr.Error{Pos: -1, Err: err,
			Msg: (&MissingError{What: "types (BTF)", Option: optionTypes}).Error()}
	}
	return err
}

// Named implements cexpr.Types.
func (n noTypes) Named(string, string) ([]*cexpr.Type, error) { return nil, n.err }

// Note implements cexpr.Types.
func (n noTypes) Note(string, string) string { return "" }

// Names implements cexpr.Types.
func (n noTypes) Names(string) iter.Seq[string] { return func(func(string) bool) {} }

// Enumerator implements cexpr.Types.
func (n noTypes) Enumerator(name string) (*cexpr.Type, uint64, error) {
	return nil, 0, fmt.Errorf("enumerator %s: %w", name, cexpr.ErrNotFound)
}
