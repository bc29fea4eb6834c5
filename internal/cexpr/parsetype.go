package cexpr

import (
	"slices"
	"strings"
)

var qualifiers = []string{"const", "volatile", "restrict", "__restrict", "__user", "__percpu", "__rcu", "__iomem"}

// startsType reports whether a type begins with this word.
func (p *parser) startsType(t token) bool {
	if t.kind != tokenName {
		return false
	}
	switch t.text {
	case "struct", "union", "enum", "typeof", "__typeof__":
		return true
	case "sizeof", "offsetof", "container_of":
		return false
	}
	return basicWords[t.text] || slices.Contains(qualifiers, t.text) || p.isType(t.text)
}

// skipQualifiers passes const and its like: they change nothing about a value.
func (p *parser) skipQualifiers() {
	for t := p.peek(); t.kind == tokenName && slices.Contains(qualifiers, t.text); t = p.peek() {
		p.take()
	}
}

// typeName reads a type without a name: specifiers, then an abstract declarator.
func (p *parser) typeName() *TypeExpr {
	defer p.enter()()
	p.skipQualifiers()
	t := p.take()
	out := &TypeExpr{Pos: t.pos}
	if t.kind != tokenName {
		p.fail(t, "a type expected, not %s", t.describe())
	}
	switch {
	case t.text == "struct" || t.text == "union" || t.text == "enum":
		tag := p.take()
		if tag.kind != tokenName {
			p.fail(tag, "a name expected after %s, not %s", t.text, tag.describe())
		}
		out.Keyword, out.Name = t.text, tag.text
	case t.text == "typeof" || t.text == "__typeof__":
		p.want("(", "after "+t.text)
		out.TypeOf = p.expression()
		p.want(")", "after the expression of "+t.text)
	case basicWords[t.text]:
		out.Name = p.basic(t)
	default:
		// Whether there is such a type is for Evaluate to say: it knows near names.
		out.Name = t.text
	}
	p.skipQualifiers()
	out.Derived = p.declarator()
	return out
}

// basic reads the words of a basic type.
func (p *parser) basic(first token) string {
	words := []string{first.text}
	for {
		p.skipQualifiers()
		t := p.peek()
		if t.kind != tokenName || !basicWords[t.text] {
			break
		}
		words = append(words, p.take().text)
		if len(words) > 8 {
			p.fail(t, "no type has that many words")
		}
	}
	name := strings.Join(words, " ")
	d, ok := Basic(name)
	if !ok {
		p.fail(first, "%q is no type of C's", name)
	}
	return d.Name
}

// declarator reads "*", "[4]", "(*)(int)" and their combinations, from the inside
// out.
func (p *parser) declarator() []Derivation {
	defer p.enter()()
	stars := 0
	for {
		p.skipQualifiers()
		if _, ok := p.op("*"); !ok {
			break
		}
		if stars++; stars > maxChain {
			p.fail(p.peek(), "pointers to pointers more than %d deep", maxChain)
		}
	}
	var inner []Derivation
	if next := p.after(); p.peek().kind == tokenOp && p.peek().text == "(" && next.kind == tokenOp && (next.text == "*" || next.text == "(") {
		p.take()
		inner = p.declarator()
		p.want(")", "after the declarator that ( begins")
	}
	for {
		t, ok := p.op("[", "(")
		if !ok {
			break
		}
		d := Derivation{Kind: KindArray}
		if t.text == "(" {
			d = Derivation{Kind: KindFunc, Params: p.paramTypes()}
		} else if _, empty := p.op("]"); !empty {
			d.Count = p.expression()
			p.want("]", "after the length of an array")
		}
		if inner = append(inner, d); len(inner) > maxChain {
			p.fail(t, "more than %d derivations of a type", maxChain)
		}
	}
	for range stars {
		inner = append(inner, Derivation{Kind: KindPointer})
	}
	return inner
}

// paramTypes reads the types of parameters up to the closing parenthesis.
func (p *parser) paramTypes() []*TypeExpr {
	var out []*TypeExpr
	if _, ok := p.op(")"); ok {
		return nil
	}
	for {
		if t := p.peek(); !p.startsType(t) {
			p.fail(t, "the type of a parameter expected, not %s", t.describe())
		}
		out = append(out, p.typeName())
		if _, ok := p.op(","); !ok {
			break
		}
	}
	p.want(")", "after the parameters")
	return out
}
