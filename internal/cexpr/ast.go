package cexpr

import (
	"fmt"
	"strings"
)

// Node is a part of an expression.
type Node interface {
	// At is where the part begins, in bytes from the start of the text.
	At() int
	write(b *strings.Builder)
}

type at int

func (a at) At() int { return int(a) }

// The parts of an expression.
type (
	// Name is a variable, a function, an enumerator; with "$", a register.
	Name struct {
		at
		Text string
	}
	// Number is an integer or a character.
	Number struct {
		at
		Value uint64
		Type  *Type
		Text  string
	}
	// String is text between quotes, for helpers that take a name.
	String struct {
		at
		Text string
	}
	// Unary is an operator in front of its operand: - + ! ~ * & or sizeof.
	Unary struct {
		at
		Op string
		X  Node
	}
	// Binary is an operator between its operands, as C has them, or gdb's "@".
	Binary struct {
		at
		Op   string
		X, Y Node
	}
	// Conditional is C ? A : B.
	Conditional struct {
		at
		C, A, B Node
	}
	// Select is a member, of an object or with Arrow through a pointer.
	Select struct {
		at
		X     Node
		Arrow bool
		Name  string
	}
	// Index is an element of an array.
	Index struct {
		at
		X, I Node
	}
	// Cast converts to a type.
	Cast struct {
		at
		Type *TypeExpr
		X    Node
	}
	// SizeOf is the size of a type.
	SizeOf struct {
		at
		Type *TypeExpr
	}
	// OffsetOf is where a member stands in a type: a path of Selects and Indexes whose
	// innermost operand is a Name.
	OffsetOf struct {
		at
		Type *TypeExpr
		Path Node
	}
	// ContainerOf is the object of a type that a member's address belongs to.
	ContainerOf struct {
		at
		X    Node
		Type *TypeExpr
		Path Node
	}
	// Call is a helper of the debugger with its arguments.
	Call struct {
		at
		Fun  string
		Args []Node
	}
)

// TypeExpr is a type as it was written: what it begins with, and from the inside
// out what makes pointers, arrays and functions of it.
type TypeExpr struct {
	Pos     int
	Keyword string // struct, union, enum, or empty
	Name    string // the tag, a typedef, or the words of a basic type
	TypeOf  Node   // instead of both: typeof(expression)
	Derived []Derivation
}

// Derivation makes a pointer to, an array of, a function returning or a qualified
// version of what follows it in the list.
type Derivation struct {
	Kind   Kind // KindPointer, KindArray or KindFunc
	Count  Node // of an array; nil for one without a length
	Params []*TypeExpr
}

// Text writes a tree with all its parentheses, so that it parses to the same tree.
func Text(n Node) string {
	var b strings.Builder
	n.write(&b)
	return b.String()
}

func writeAll(b *strings.Builder, parts ...any) {
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			b.WriteString(p)
		case Node:
			p.write(b)
		case *TypeExpr:
			p.write(b)
		}
	}
}

// quoteName puts a name that is none of C's between quotes.
func quoteName(name string) string {
	if strings.Contains(name, ".") {
		return "'" + name + "'"
	}
	return name
}

func (n *Name) write(b *strings.Builder)   { b.WriteString(quoteName(n.Text)) }
func (n *Number) write(b *strings.Builder) { b.WriteString(n.Text) }
func (n *String) write(b *strings.Builder) {
	b.WriteByte('"')
	for _, c := range []byte(n.Text) {
		if c == '"' || c == '\\' || c < ' ' || c > '~' {
			fmt.Fprintf(b, `\%03o`, c)
			continue
		}
		b.WriteByte(c)
	}
	b.WriteByte('"')
}
func (n *Unary) write(b *strings.Builder) {
	if n.Op == "sizeof" {
		writeAll(b, "sizeof(", n.X, ")")
		return
	}
	writeAll(b, "(", n.Op, " ", n.X, ")")
}
func (n *Binary) write(b *strings.Builder) { writeAll(b, "(", n.X, " ", n.Op, " ", n.Y, ")") }
func (n *Conditional) write(b *strings.Builder) {
	writeAll(b, "(", n.C, " ? ", n.A, " : ", n.B, ")")
}
func (n *Select) write(b *strings.Builder) {
	op := "."
	if n.Arrow {
		op = "->"
	} else if _, number := n.X.(*Number); number {
		op = " ." // "1.x" would be one word
	}
	writeAll(b, n.X, op, quoteName(n.Name))
}
func (n *Index) write(b *strings.Builder)  { writeAll(b, n.X, "[", n.I, "]") }
func (n *Cast) write(b *strings.Builder)   { writeAll(b, "((", n.Type, ")", n.X, ")") }
func (n *SizeOf) write(b *strings.Builder) { writeAll(b, "sizeof(", n.Type, ")") }
func (n *OffsetOf) write(b *strings.Builder) {
	writeAll(b, "offsetof(", n.Type, ", ", n.Path, ")")
}
func (n *ContainerOf) write(b *strings.Builder) {
	writeAll(b, "container_of(", n.X, ", ", n.Type, ", ", n.Path, ")")
}
func (n *Call) write(b *strings.Builder) {
	writeAll(b, quoteName(n.Fun), "(")
	for i, a := range n.Args {
		if i > 0 {
			b.WriteString(", ")
		}
		a.write(b)
	}
	b.WriteByte(')')
}

func (t *TypeExpr) write(b *strings.Builder) {
	switch {
	case t.TypeOf != nil:
		writeAll(b, "typeof(", t.TypeOf, ")")
	case t.Keyword != "":
		writeAll(b, t.Keyword, " ", quoteName(t.Name))
	default:
		b.WriteString(quoteName(t.Name))
	}
	// A declarator is written from the inside out, like a type in Declare.
	inner := ""
	for i, d := range t.Derived {
		switch d.Kind {
		case KindPointer:
			inner = "*" + inner
			if i+1 < len(t.Derived) && t.Derived[i+1].Kind != KindPointer {
				inner = "(" + inner + ")"
			}
		case KindArray:
			inner += "["
			if d.Count != nil {
				inner += Text(d.Count)
			}
			inner += "]"
		case KindFunc:
			var list []string
			for _, p := range d.Params {
				var text strings.Builder
				p.write(&text)
				list = append(list, text.String())
			}
			inner += "(" + strings.Join(list, ", ") + ")"
		}
	}
	if inner != "" {
		writeAll(b, " ", inner)
	}
}
