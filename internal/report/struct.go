package report

import (
	"fmt"
	"io"
	"strings"

	"nestdbg/internal/cexpr"
)

// Layouts are the types of one name; more than one if parts of a kernel use the name
// differently.
type Layouts struct {
	Machine string    `json:"machine"`
	Types   []*Layout `json:"types"`
	Notes   []string  `json:"notes,omitempty"`
}

// Layout is how a type is made.
type Layout struct {
	Name        string            `json:"name"`              // as C writes it: "struct list_head"
	Typedef     string            `json:"typedef,omitempty"` // the name that stands for it, if asked by that
	Size        *uint64           `json:"size"`              // bytes; null if it has none
	Members     []*LayoutMember   `json:"members,omitempty"` // of a structure or union
	Padding     uint64            `json:"padding,omitempty"` // bits behind the last member
	Enumerators []EnumeratorValue `json:"enumerators,omitempty"`
	Cut         string            `json:"cut,omitempty"` // what is left out, and why

	kind        cexpr.Kind
	declaration string
}

// LayoutMember is one member. Offset is in bytes from the start of the outermost
// structure. A bit field begins Bit bits into that byte and has Bits bits; Bits is
// 0 for what is no bit field.
type LayoutMember struct {
	Name    string          `json:"name"` // empty for an anonymous one
	Type    string          `json:"type"`
	Offset  uint64          `json:"offset"`
	Bit     uint64          `json:"bit,omitempty"`
	Bits    uint64          `json:"bits,omitempty"`
	Size    *uint64         `json:"size"`              // bytes; of a bit field, of its type
	Hole    uint64          `json:"hole,omitempty"`    // bits that nothing uses in front of it
	Members []*LayoutMember `json:"members,omitempty"` // of an anonymous structure or union
	Padding uint64          `json:"padding,omitempty"` // bits behind the last of those

	declaration string
	keyword     string // of an anonymous structure or union
}

// EnumeratorValue is a name of an enumeration.
type EnumeratorValue struct {
	Name  string `json:"name"`
	Value Number `json:"value"`
}

// layoutMax bounds the members of one answer, with those of anonymous ones.
const layoutMax = 20000

// Layout describes the types of a name, or only the members of a path.
func (p *Printer) Layout(name string, paths []string) (*Layouts, error) {
	list, note, err := p.Env.FindType(name)
	if err != nil {
		return nil, err
	}
	r := &Layouts{Machine: p.Machine}
	if note != "" {
		r.Notes = []string{note}
	}
	left := layoutMax
	for i, t := range list {
		l, err := p.layout(t, paths, &left)
		if err != nil {
			if i+1 < len(list) || len(r.Types) > 0 {
				continue // another of the name may have the member
			}
			return nil, err
		}
		r.Types = append(r.Types, l)
	}
	return r, nil
}

func (p *Printer) layout(t *cexpr.Type, paths []string, left *int) (*Layout, error) {
	top, err := t.Def()
	if err != nil {
		return nil, err
	}
	d, err := t.Under()
	if err != nil {
		return nil, err
	}
	l := &Layout{Name: cexpr.TypeName(t), kind: d.Kind, Size: typeSize(t)}
	if top.Kind == cexpr.KindTypedef {
		l.Typedef, l.Name = top.Name, cexpr.TypeName(top.Elem)
		l.declaration = "typedef " + cexpr.Declare(top.Elem, top.Name)
	}
	switch {
	case len(paths) > 0:
		for _, path := range paths {
			m, err := p.pathMember(t, path)
			if err != nil {
				return nil, err
			}
			l.Members = append(l.Members, m)
		}
	case d.Kind == cexpr.KindStruct || d.Kind == cexpr.KindUnion:
		l.Members, l.Padding = layoutMembers(d, 0, 0, left)
	case d.Kind == cexpr.KindEnum:
		for _, e := range d.Enumerators {
			if *left--; *left < 0 {
				break
			}
			l.Enumerators = append(l.Enumerators, EnumeratorValue{e.Name, Number{e.Value, d.Signed}})
		}
	}
	if *left < 0 {
		l.Cut = fmt.Sprintf("more than %d members and enumerators", layoutMax)
	}
	return l, nil
}

// pathMember is the member that a path leads to.
func (p *Printer) pathMember(t *cexpr.Type, path string) (*LayoutMember, error) {
	v, _, err := p.Env.Walk(p.Env.Object(t, 0), path)
	if err != nil {
		return nil, err
	}
	return &LayoutMember{Name: path, Type: cexpr.TypeName(v.Type), Offset: v.Addr, Bit: v.BitOffset, Bits: v.BitSize,
		Size: typeSize(v.Type), declaration: cexpr.Declare(v.Type, path)}, nil
}

func typeSize(t *cexpr.Type) *uint64 {
	n, err := t.Size()
	if err != nil {
		return nil
	}
	return &n
}

// layoutMembers describes members; from is where what holds them begins, in bits.
func layoutMembers(d *cexpr.Def, from uint64, depth int, left *int) (list []*LayoutMember, padding uint64) {
	end := uint64(0) // of the members so far, bits from the start of d
	for i := range d.Members {
		m := &d.Members[i]
		if depth > defaultDepth {
			*left = 0 // an anonymous member of itself
		}
		if *left--; *left < 0 {
			break
		}
		at := from + m.BitOffset
		out := &LayoutMember{Name: m.Name, Type: cexpr.TypeName(m.Type), Offset: at / 8, Bits: m.BitSize,
			Size: typeSize(m.Type), declaration: cexpr.Declare(m.Type, m.Name)}
		bits := m.BitSize
		if bits != 0 {
			out.Bit = at % 8
			out.declaration += fmt.Sprintf(":%d", bits)
		} else if out.Size != nil {
			bits = 8 * *out.Size
		}
		if d.Kind == cexpr.KindStruct && m.BitOffset > end {
			out.Hole = m.BitOffset - end
		}
		end = max(end, m.BitOffset+bits)
		if inner, err := m.Type.Under(); err == nil && m.Name == "" && (inner.Kind == cexpr.KindStruct || inner.Kind == cexpr.KindUnion) {
			out.keyword = inner.Kind.Keyword()
			if inner.Name != "" {
				out.keyword += " " + inner.Name
			}
			out.Members, out.Padding = layoutMembers(inner, at, depth+1, left)
		}
		list = append(list, out)
	}
	if size := 8 * d.Size; size > end && len(list) > 0 {
		padding = size - end
	}
	return list, padding
}

// Text implements Report.
func (r *Layouts) Text(w io.Writer) {
	for i, l := range r.Types {
		if i > 0 {
			fmt.Fprintln(w)
		}
		l.text(w)
	}
	if len(r.Types) > 1 {
		fmt.Fprintf(w, "note: %d different types have this name\n", len(r.Types))
	}
	writeNotes(w, r.Notes)
}

func (l *Layout) text(w io.Writer) {
	size := "unknown"
	if l.Size != nil {
		size = fmt.Sprint(*l.Size)
	}
	open, after := l.Name+" {", "};"
	if l.declaration != "" && (len(l.Members) > 0 || len(l.Enumerators) > 0) {
		// What a typedef stands for is shown, with the name behind it as C has it.
		open, after = "typedef "+strings.Replace(l.Name, " {...}", "", 1)+" {", "} "+l.Typedef+";"
	}
	switch {
	case len(l.Enumerators) > 0:
		fmt.Fprintln(w, open)
		for _, e := range l.Enumerators {
			fmt.Fprintf(w, "\t%s = %s,\n", e.Name, e.Value)
		}
		l.writeCut(w)
		fmt.Fprintf(w, "%s\t/* size: %s */\n", after, size)
	case len(l.Members) > 0:
		fmt.Fprintln(w, open)
		holes, unused := writeMembers(w, l.Members, l.Padding, "\t")
		l.writeCut(w)
		fmt.Fprintf(w, "\n\t/* size: %s, members: %d", size, len(l.Members))
		if holes > 0 {
			fmt.Fprintf(w, ", holes: %d, unused: %s", holes, bitsText(unused))
		}
		fmt.Fprintf(w, " */\n%s\n", after)
	case l.declaration != "":
		fmt.Fprintf(w, "%s;\t/* size: %s */\n", l.declaration, size)
	case l.kind == cexpr.KindStruct || l.kind == cexpr.KindUnion:
		fmt.Fprintf(w, "%s\n\t/* size: %s, no members */\n};\n", open, size)
	default:
		fmt.Fprintf(w, "%s;\t/* size: %s */\n", l.Name, size)
	}
}

func (l *Layout) writeCut(w io.Writer) {
	if l.Cut != "" {
		fmt.Fprintf(w, "\t... (%s)\n", l.Cut)
	}
}

// bitsText is a number of bits, in bytes where that is whole.
func bitsText(n uint64) string {
	if n%8 == 0 {
		return fmt.Sprintf("%d bytes", n/8)
	}
	return fmt.Sprintf("%d bits", n)
}

// writeMembers writes members with their places, and what is between them. Offsets
// are bytes, of bit fields byte:bit, from the start of the outermost structure.
func writeMembers(w io.Writer, list []*LayoutMember, padding uint64, indent string) (holes int, unused uint64) {
	for _, m := range list {
		if m.Hole > 0 {
			fmt.Fprintf(w, "%s/* %s hole */\n", indent, bitsText(m.Hole))
			holes, unused = holes+1, unused+m.Hole
		}
		size := "?"
		if m.Size != nil {
			size = fmt.Sprint(*m.Size)
		}
		place := fmt.Sprintf("/* %7d %6s */", m.Offset, size)
		if m.Bits != 0 {
			place = fmt.Sprintf("/* %5d:%d %6s */", m.Offset, m.Bit, size)
		}
		declaration := m.declaration + ";"
		if m.keyword != "" {
			fmt.Fprintf(w, "%s%s {\n", indent, m.keyword)
			h, u := writeMembers(w, m.Members, m.Padding, indent+"\t")
			holes, unused = holes+h, unused+u
			declaration = "};"
		}
		fmt.Fprintf(w, "%s%-*s %s\n", indent, max(60-8*len(indent), 1), declaration, place)
	}
	if padding > 0 {
		fmt.Fprintf(w, "%s/* %s padding */\n", indent, bitsText(padding))
		holes, unused = holes+1, unused+padding
	}
	return holes, unused
}

// Object is a structure in memory, or some of its members.
type Object struct {
	Machine string   `json:"machine"`
	Type    string   `json:"type"`
	Addr    Hex      `json:"addr"`
	Symbol  string   `json:"symbol,omitempty"`
	Value   *Value   `json:"value,omitempty"`   // all of it, or
	Members []*Value `json:"members,omitempty"` // those that were asked for, named by their paths
	Notes   []string `json:"notes,omitempty"`
}

// Object reads the object of a named type at an address, or the members of paths.
func (p *Printer) Object(name string, paths []string, addr uint64) (*Object, error) {
	list, note, err := p.Env.FindType(name)
	if err != nil {
		return nil, err
	}
	r := &Object{Machine: p.Machine, Addr: Hex(addr)}
	if p.Symbol != nil {
		r.Symbol = p.Symbol(addr)
	}
	for i, t := range list {
		if err = p.object(r, t, paths); err == nil {
			if len(list) > 1 {
				r.Notes = append(r.Notes, fmt.Sprintf("there are %d different types of this name; this is number %d", len(list), i+1))
			}
			if note != "" {
				r.Notes = append(r.Notes, note)
			}
			return r, nil
		}
	}
	return nil, err
}

func (p *Printer) object(r *Object, t *cexpr.Type, paths []string) error {
	r.Type = cexpr.TypeName(t)
	v := p.Env.Object(t, uint64(r.Addr))
	if len(paths) == 0 {
		if _, err := t.Size(); err != nil {
			return err
		}
		r.Value = p.read(v, "")
		return nil
	}
	r.Members = nil
	for _, path := range paths {
		m, notes, err := p.Env.Walk(v, path)
		if err != nil {
			return err
		}
		r.Notes = append(r.Notes, notes...)
		r.Members = append(r.Members, p.read(m, path))
	}
	return nil
}

// Unread reports whether nothing of the object could be read.
func (r *Object) Unread() bool {
	if r.Value != nil {
		return r.Value.unread()
	}
	for _, m := range r.Members {
		if !m.unread() {
			return false
		}
	}
	return true
}

// Text implements Report.
func (r *Object) Text(w io.Writer) {
	fmt.Fprintf(w, "%s at %s", r.Type, withSymbol(uint64(r.Addr), r.Symbol))
	if r.Value != nil {
		io.WriteString(w, " = ")
		r.Value.write(w, "")
	}
	fmt.Fprintln(w)
	for _, m := range r.Members {
		fmt.Fprintf(w, "  %s = ", m.Name)
		m.write(w, "  ")
		fmt.Fprintln(w)
	}
	writeNotes(w, r.Notes)
}
