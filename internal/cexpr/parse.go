package cexpr

import (
	"fmt"
	"slices"
)

// Parse makes a tree of an expression. isType says whether a name is a typedef,
// which decides in C what "(x) * y" and "(x)(y)" mean; nil if there are none.
func Parse(text string, isType func(name string) bool) (n Node, err error) {
	p, err := newParser(text, isType)
	if err != nil {
		return nil, err
	}
	defer p.recovered(&err)
	n = p.expression()
	p.end()
	return n, nil
}

// ParseType makes a tree of a type's name, such as "struct list_head *[4]".
func ParseType(text string, isType func(name string) bool) (t *TypeExpr, err error) {
	p, err := newParser(text, isType)
	if err != nil {
		return nil, err
	}
	defer p.recovered(&err)
	t = p.typeName()
	p.end()
	return t, nil
}

// parser goes through the words of a text. An error leaves it by a panic with an
// *Error, which recovered turns back.
type parser struct {
	list   []token
	next   int
	isType func(name string) bool
	depth  int
}

func newParser(text string, isType func(string) bool) (*parser, error) {
	list, err := tokens(text)
	if err != nil {
		return nil, err
	}
	if isType == nil {
		isType = func(string) bool { return false }
	}
	return &parser{list: list, isType: isType}, nil
}

func (p *parser) recovered(err *error) {
	if r := recover(); r != nil {
		e, ok := r.(*Error)
		if !ok {
			panic(r)
		}
		*err = e
	}
}

func (p *parser) fail(t token, format string, args ...any) {
	panic(errorAt(t.pos, format, args...))
}

// enter bounds the nesting; the function it returns leaves again.
func (p *parser) enter() func() {
	if p.depth++; p.depth > maxDepth {
		p.fail(p.peek(), "the expression is nested more than %d deep", maxDepth)
	}
	return func() { p.depth-- }
}

func (p *parser) peek() token { return p.list[p.next] }

// after is the word behind the next one.
func (p *parser) after() token { return p.list[min(p.next+1, len(p.list)-1)] }

func (p *parser) take() token {
	t := p.list[p.next]
	if t.kind != tokenEnd {
		p.next++
	}
	return t
}

// op takes an operator if it is next.
func (p *parser) op(ops ...string) (token, bool) {
	if t := p.peek(); t.kind == tokenOp && slices.Contains(ops, t.text) {
		return p.take(), true
	}
	return token{}, false
}

func (p *parser) want(op, where string) {
	if _, ok := p.op(op); !ok {
		p.fail(p.peek(), "%s expected %s, not %s", op, where, p.peek().describe())
	}
}

func (p *parser) end() {
	t := p.peek()
	if t.kind == tokenEnd {
		return
	}
	if t.kind == tokenOp && slices.Contains([]string{"=", "++", "--", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "<<=", ">>="}, t.text) {
		p.fail(t, "%s changes memory, and an expression only reads it; see the command write", t.text)
	}
	p.fail(t, "%s does not continue the expression", t.describe())
}

// precedence lists the operators between two operands, from the weakest on. gdb's
// "@" binds like it does there: stronger than comparison, weaker than a sum.
var precedence = [][]string{
	{"||"}, {"&&"}, {"|"}, {"^"}, {"&"}, {"==", "!="}, {"<", "<=", ">", ">="}, {"<<", ">>"}, {"@"},
	{"+", "-"}, {"*", "/", "%"},
}

func (p *parser) expression() Node {
	defer p.enter()()
	c := p.binary(0)
	q, ok := p.op("?")
	if !ok {
		return c
	}
	a := p.expression()
	p.want(":", "after ? and its value")
	return &Conditional{at(q.pos), c, a, p.expression()}
}

func (p *parser) binary(level int) Node {
	if level == len(precedence) {
		return p.unary()
	}
	x := p.binary(level + 1)
	for {
		t, ok := p.op(precedence[level]...)
		if !ok {
			return x
		}
		if name, ok := x.(*Name); ok && t.text == "*" && p.castEnds() {
			p.failType(name)
		}
		x = &Binary{at(t.pos), t.text, x, p.binary(level + 1)}
	}
}

// castEnds reports whether only the end of a cast can follow "NAME *": more stars and a
// parenthesis.
func (p *parser) castEnds() bool {
	for _, t := range p.list[p.next:] {
		if t.kind != tokenOp || t.text != "*" {
			return t.kind == tokenOp && t.text == ")"
		}
	}
	return false
}

// failType fails because a name is no type.
func (p *parser) failType(n *Name) {
	panic(&Error{Pos: n.At(), Msg: fmt.Sprintf("%q is no type here", n.Text), Err: ErrNotFound, notType: n.Text})
}

func (p *parser) unary() Node {
	defer p.enter()()
	if t, ok := p.op("-", "+", "!", "~", "*", "&"); ok {
		return &Unary{at(t.pos), t.text, p.unary()}
	}
	// "&&" in front is the address of a label, or two times "&"; both are nonsense.
	t := p.peek()
	switch {
	case t.kind == tokenOp && (t.text == "++" || t.text == "--"):
		p.fail(t, "%s changes memory, and an expression only reads it", t.text)
	case t.kind == tokenName && t.text == "sizeof":
		return p.sizeof()
	case t.kind == tokenOp && t.text == "(" && p.startsType(p.after()):
		p.take()
		typ := p.typeName()
		p.want(")", "after the type")
		return &Cast{at(t.pos), typ, p.unary()}
	}
	return p.postfix(p.primary())
}

func (p *parser) sizeof() Node {
	t := p.take()
	if p.peek().text == "(" && p.peek().kind == tokenOp && p.startsType(p.after()) {
		p.take()
		typ := p.typeName()
		p.want(")", "after the type")
		return &SizeOf{at(t.pos), typ}
	}
	return &Unary{at(t.pos), "sizeof", p.unary()}
}

// postfix reads what follows an operand: members and indexes.
func (p *parser) postfix(x Node) Node {
	for {
		t, ok := p.op(".", "->", "[", "++", "--")
		switch {
		case !ok:
			return x
		case t.text == "[":
			i := p.expression()
			p.want("]", "after an index")
			x = &Index{at(t.pos), x, i}
		case t.text == "++" || t.text == "--":
			p.fail(t, "%s changes memory, and an expression only reads it", t.text)
		default:
			x = &Select{at(t.pos), x, t.text == "->", p.member(t.text)}
		}
	}
}

func (p *parser) member(after string) string {
	t := p.take()
	if t.kind != tokenName {
		p.fail(t, "the name of a member expected after %s, not %s", after, t.describe())
	}
	return t.text
}

func (p *parser) primary() Node {
	t := p.take()
	switch {
	case t.kind == tokenNumber:
		return &Number{at(t.pos), t.value, t.typ, t.spelling}
	case t.kind == tokenChar:
		// In gdb, other than in C, 'a' is a char, and prints as one.
		return &Number{at(t.pos), t.value, Char, t.spelling}
	case t.kind == tokenString:
		return &String{at(t.pos), t.text}
	case t.kind == tokenName:
		return p.named(t)
	case t.kind == tokenOp && t.text == "(":
		n := p.expression()
		p.want(")", "after the expression that ( begins")
		if name, ok := n.(*Name); ok && p.startsOperand() {
			p.failType(name)
		}
		return n
	case t.kind == tokenEnd:
		p.fail(t, "the expression ends too early")
	}
	p.fail(t, "a value expected, not %s", t.describe())
	return nil
}

// startsOperand reports whether a value follows, where an operator should.
func (p *parser) startsOperand() bool {
	switch t := p.peek(); t.kind {
	case tokenName, tokenNumber, tokenChar, tokenString:
		return true
	case tokenOp:
		return t.text == "(" || t.text == "~" || t.text == "!"
	}
	return false
}

// named reads a name, or the call of a helper.
func (p *parser) named(t token) Node {
	if next := p.peek(); next.kind != tokenOp || next.text != "(" {
		if slices.Contains([]string{"struct", "union", "enum"}, t.text) || basicWords[t.text] {
			p.fail(t, "%s begins a type, where a value is expected; a cast has its type in parentheses", t.text)
		}
		return &Name{at(t.pos), t.text}
	}
	p.take()
	switch t.text {
	case "offsetof":
		typ := p.typeName()
		p.want(",", "after the type of offsetof")
		path := p.path()
		p.want(")", "after the member of offsetof")
		return &OffsetOf{at(t.pos), typ, path}
	case "container_of":
		x := p.expression()
		p.want(",", "after the pointer of container_of")
		typ := p.typeName()
		p.want(",", "after the type of container_of")
		path := p.path()
		p.want(")", "after the member of container_of")
		return &ContainerOf{at(t.pos), x, typ, path}
	}
	call := &Call{at: at(t.pos), Fun: t.text}
	if _, ok := p.op(")"); ok {
		return call
	}
	for {
		call.Args = append(call.Args, p.expression())
		if _, ok := p.op(","); !ok {
			break
		}
	}
	p.want(")", "after the arguments of "+t.text)
	return call
}

// path reads a member, its members and elements: "a.b[2].c".
func (p *parser) path() Node {
	t := p.take()
	if t.kind != tokenName {
		p.fail(t, "the name of a member expected, not %s", t.describe())
	}
	x := Node(&Name{at(t.pos), t.text})
	for {
		op, ok := p.op(".", "[")
		switch {
		case !ok:
			return x
		case op.text == "[":
			i := p.expression()
			p.want("]", "after an index")
			x = &Index{at(op.pos), x, i}
		default:
			x = &Select{at(op.pos), x, false, p.member(".")}
		}
	}
}
