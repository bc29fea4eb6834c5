package cexpr

import (
	"fmt"
	"slices"
	"strings"
)

// Kind says what a type is.
type Kind int

// The kinds of types. A Forward is a structure, union or enumeration of which only
// the name is known.
const (
	KindVoid Kind = iota
	KindInt
	KindBool
	KindFloat
	KindPointer
	KindArray
	KindStruct
	KindUnion
	KindEnum
	KindFunc
	KindTypedef
	KindConst
	KindVolatile
	KindForward
)

// Def is what a type is made of.
type Def struct {
	Kind Kind

	// Name is a tag, the name of a typedef or of a basic type; empty if it has none.
	// Of a Forward it is with its keyword: "struct foo".
	Name string

	Size   uint64 // bytes; of an array it follows from Count and Elem
	Signed bool   // of integers and enumerations

	// Elem is what a pointer points to, an array's element, what a function returns,
	// what a typedef or qualifier is about; of a Forward the definition elsewhere, if
	// there may be one.
	Elem  *Type
	Count uint64 // of an array; 0 for a flexible one

	Members     []Member
	Enumerators []Enumerator
	Params      []Param
	Variadic    bool // a function takes more than Params
}

// Member is a member of a structure or union. Offsets are in bits from its start,
// little-endian; BitSize is 0 for what is no bit field.
type Member struct {
	Name      string // empty for an anonymous structure or union
	Type      *Type
	BitOffset uint64
	BitSize   uint64
}

// Enumerator is a name of an enumeration and its value, sign-extended if the
// enumeration is signed.
type Enumerator struct {
	Name  string
	Value uint64
}

// Param is a parameter of a function; its name may be empty.
type Param struct {
	Name string
	Type *Type
}

// Type is a type whose definition may be read when it is first needed, because a
// kernel's types all hang together. A Type belongs to one goroutine.
type Type struct {
	fill func() (Def, error)
	def  Def
	err  error
}

// NewType is the type with this definition.
func NewType(d Def) *Type { return &Type{def: d} }

// LazyType is a type whose definition fill gives, once.
func LazyType(fill func() (Def, error)) *Type { return &Type{fill: fill} }

// Def is the type's definition.
func (t *Type) Def() (*Def, error) {
	if t.fill != nil {
		fill := t.fill
		t.fill = nil
		t.def, t.err = fill()
	}
	if t.err != nil {
		return nil, t.err
	}
	return &t.def, nil
}

// The basic types in the LP64 model.
var (
	Void         = NewType(Def{Kind: KindVoid, Name: "void"})
	Bool         = NewType(Def{Kind: KindBool, Name: "_Bool", Size: 1})
	Char         = NewType(Def{Kind: KindInt, Name: "char", Size: 1, Signed: true})
	Int          = NewType(Def{Kind: KindInt, Name: "int", Size: 4, Signed: true})
	UnsignedInt  = NewType(Def{Kind: KindInt, Name: "unsigned int", Size: 4})
	Long         = NewType(Def{Kind: KindInt, Name: "long", Size: 8, Signed: true})
	UnsignedLong = NewType(Def{Kind: KindInt, Name: "unsigned long", Size: 8})
)

// PointerTo is the type of pointers to t.
func PointerTo(t *Type) *Type { return NewType(Def{Kind: KindPointer, Size: 8, Elem: t}) }

// ArrayOf is the type of arrays of count elements.
func ArrayOf(t *Type, count uint64) *Type {
	return NewType(Def{Kind: KindArray, Elem: t, Count: count})
}

// maxChain bounds typedefs of typedefs and arrays of arrays.
const maxChain = 64

// Under is the definition behind typedefs and qualifiers.
func (t *Type) Under() (*Def, error) {
	for range maxChain {
		d, err := t.Def()
		if err != nil {
			return nil, err
		}
		switch d.Kind {
		case KindTypedef, KindConst, KindVolatile:
			t = d.Elem
			continue
		case KindForward:
			if d.Elem != nil {
				if full, err := d.Elem.Def(); err == nil {
					return full, nil
				}
			}
		}
		return d, nil
	}
	return nil, fmt.Errorf("typedefs without an end: %w", ErrCorrupt)
}

// maxSize bounds the size of a type, in bytes.
const maxSize = 1 << 40

// Size is a type's size in bytes. ErrNotFound for what has none: functions, and
// what is only declared.
func (t *Type) Size() (uint64, error) {
	count := uint64(1)
	for range maxChain {
		d, err := t.Under()
		if err != nil {
			return 0, err
		}
		switch d.Kind {
		case KindArray:
			if d.Count > maxSize || d.Count*count > maxSize {
				return 0, fmt.Errorf("%s: array of %d elements: %w", TypeName(t), d.Count, ErrCorrupt)
			}
			count *= d.Count
			t = d.Elem
			continue
		case KindVoid:
			return count, nil // as GNU C has it, so that pointers to void can be added to
		case KindFunc:
			return 0, fmt.Errorf("a function has no size: %w", ErrNotFound)
		case KindForward:
			return 0, fmt.Errorf("%s is only declared, its members are not in these types: %w", d.Name, ErrNotFound)
		}
		if d.Size > maxSize || d.Size*count > maxSize {
			return 0, fmt.Errorf("%s has %d bytes: %w", TypeName(t), d.Size, ErrCorrupt)
		}
		return d.Size * count, nil
	}
	return 0, fmt.Errorf("arrays of arrays without an end: %w", ErrCorrupt)
}

// IsChar reports whether a type is that of characters: char with or without sign.
// plain excludes unsigned char, which is more often a number of 8 bits.
func (t *Type) IsChar() (char, plain bool) {
	d, err := t.Under()
	if err != nil || d.Kind != KindInt || d.Size != 1 {
		return false, false
	}
	return true, d.Name == "char" || d.Name == "signed char"
}

// TypeName is a type as C writes it without a name: "struct task_struct *".
func TypeName(t *Type) string { return Declare(t, "") }

// Declare is the declaration of a name with a type: "char comm[16]".
func Declare(t *Type, name string) string {
	n := namer{left: maxNamed}
	return strings.TrimSpace(n.declare(t, name, 0))
}

// maxNamed bounds the types that one declaration mentions: functions that take
// functions that take functions would otherwise have no end.
const maxNamed = 200

// namer writes one declaration.
type namer struct{ left int }

// declare wraps inner, what is written so far, in t, from the inside out.
func (n *namer) declare(t *Type, inner string, depth int) string {
	d, err := t.Def()
	n.left--
	switch {
	case err != nil:
		return strings.TrimSpace("? " + inner)
	case depth > maxChain || n.left < 0:
		return "... " + inner
	}
	switch d.Kind {
	case KindPointer:
		inner = "*" + inner
		if e, err := d.Elem.Def(); err == nil && (e.Kind == KindArray || e.Kind == KindFunc) {
			inner = "(" + inner + ")"
		}
		return n.declare(d.Elem, inner, depth+1)
	case KindArray:
		if d.Count == 0 {
			return n.declare(d.Elem, inner+"[]", depth+1)
		}
		return n.declare(d.Elem, fmt.Sprintf("%s[%d]", inner, d.Count), depth+1)
	case KindFunc:
		return n.declare(d.Elem, inner+"("+n.params(d, depth)+")", depth+1)
	case KindConst, KindVolatile:
		word := "const"
		if d.Kind == KindVolatile {
			word = "volatile"
		}
		if e, err := d.Elem.Def(); err == nil && e.Kind == KindPointer {
			return n.declare(d.Elem, strings.TrimSpace(" "+word+" "+inner), depth+1)
		}
		rest := n.declare(d.Elem, inner, depth+1)
		if strings.HasPrefix(rest, word+" ") { // const arrays of what is const itself
			return rest
		}
		return word + " " + rest
	}
	return strings.TrimSuffix(baseName(d)+" "+inner, " ")
}

// params are the parameters of a function, without their names.
func (n *namer) params(d *Def, depth int) string {
	var out []string
	for _, p := range d.Params {
		if n.left <= 0 {
			break
		}
		out = append(out, strings.TrimSpace(n.declare(p.Type, "", depth+1)))
	}
	if d.Variadic || len(out) < len(d.Params) {
		out = append(out, "...")
	}
	if len(out) == 0 {
		return "void"
	}
	return strings.Join(out, ", ")
}

// Keyword is what stands in front of a tag: "struct", "union", "enum", or nothing.
func (k Kind) Keyword() string {
	switch k {
	case KindStruct:
		return "struct"
	case KindUnion:
		return "union"
	case KindEnum:
		return "enum"
	}
	return ""
}

func baseName(d *Def) string {
	if d.Kind == KindVoid {
		return "void"
	}
	if word := d.Kind.Keyword(); word != "" {
		if d.Name == "" {
			return word + " {...}"
		}
		return word + " " + d.Name
	}
	return d.Name
}

// basicTypes are C's spellings of the basic types, their words sorted, and what
// compilers call them in their output.
var basicTypes = map[string]Def{
	"void":               {Kind: KindVoid, Name: "void"},
	"char":               {Kind: KindInt, Name: "char", Size: 1, Signed: true},
	"char signed":        {Kind: KindInt, Name: "signed char", Size: 1, Signed: true},
	"char unsigned":      {Kind: KindInt, Name: "unsigned char", Size: 1},
	"short":              {Kind: KindInt, Name: "short", Size: 2, Signed: true},
	"short unsigned":     {Kind: KindInt, Name: "unsigned short", Size: 2},
	"int":                {Kind: KindInt, Name: "int", Size: 4, Signed: true},
	"unsigned":           {Kind: KindInt, Name: "unsigned int", Size: 4},
	"long":               {Kind: KindInt, Name: "long", Size: 8, Signed: true},
	"long unsigned":      {Kind: KindInt, Name: "unsigned long", Size: 8},
	"long long":          {Kind: KindInt, Name: "long long", Size: 8, Signed: true},
	"long long unsigned": {Kind: KindInt, Name: "unsigned long long", Size: 8},
	"__int128":           {Kind: KindInt, Name: "__int128", Size: 16, Signed: true},
	"__int128 unsigned":  {Kind: KindInt, Name: "unsigned __int128", Size: 16},
	"_Bool":              {Kind: KindBool, Name: "_Bool", Size: 1},
	"bool":               {Kind: KindBool, Name: "bool", Size: 1},
	"float":              {Kind: KindFloat, Name: "float", Size: 4},
	"double":             {Kind: KindFloat, Name: "double", Size: 8},
}

// basicWords are the words that spell basic types.
var basicWords = map[string]bool{"void": true, "char": true, "short": true, "int": true, "long": true, "signed": true,
	"unsigned": true, "_Bool": true, "bool": true, "__int128": true, "float": true, "double": true}

// Basic is the basic type that words spell in any order, as in "long unsigned int".
func Basic(words string) (Def, bool) {
	list := strings.Fields(words)
	slices.Sort(list)
	if d, ok := basicTypes[strings.Join(list, " ")]; ok {
		return d, true
	}
	// "int" goes without saying, and "signed" but with char.
	list = slices.DeleteFunc(list, func(w string) bool { return w == "int" || w == "signed" })
	if len(list) == 0 && words != "" {
		list = []string{"int"}
	}
	d, ok := basicTypes[strings.Join(list, " ")]
	return d, ok
}
