package qmp

import "fmt"

// Parser turns a byte stream into messages: Feed it what was read, then call
// Next until it has no more. The zero value is ready. Messages are told apart by
// their braces, not by lines, since "-qmp-pretty" spreads them over several. It
// holds at most what was fed and not yet taken.
type Parser struct {
	in   []byte // in[:pos] is looked at and belongs to one unfinished message
	pos  int
	err  error // once broken, always broken
	scan scanner
}

// scanner is where in a message the parser is.
type scanner struct {
	depth    int // of braces and brackets
	inString bool
	escaped  bool // the previous byte was a backslash in a string
}

// Feed appends bytes that came over the line; they are copied.
func (p *Parser) Feed(b []byte) { p.in = append(p.in, b...) }

// Next returns the next message. ok is false, without an error, when more bytes
// are needed. Every error is an ErrCorrupt and is final.
func (p *Parser) Next() (m Message, ok bool, err error) {
	if p.err != nil {
		return Message{}, false, p.err
	}
	end, err := p.findEnd()
	if err == nil && end == 0 {
		return Message{}, false, nil
	}
	if err == nil {
		m, err = Parse(p.in[:end])
	}
	if err != nil {
		p.err, p.in = err, nil
		return Message{}, false, err
	}
	p.in = p.in[:copy(p.in, p.in[end:])]
	p.pos = 0
	return m, true, nil
}

// findEnd returns the length of the message that p.in starts with, blanks before
// it included, or 0 if it is not complete.
func (p *Parser) findEnd() (int, error) {
	for p.pos < len(p.in) {
		if p.pos >= MaxMessage {
			return 0, fmt.Errorf("%w: longer than %d bytes", ErrCorrupt, MaxMessage)
		}
		c := p.in[p.pos]
		if p.scan.depth == 0 && blank(c) {
			p.in = p.in[1:] // pos is 0 here: nothing of a message was seen yet
			continue
		}
		if p.scan.depth == 0 && c != '{' {
			return 0, fmt.Errorf("%w: starts with byte %#02x", ErrCorrupt, c)
		}
		p.pos++
		if p.scan.step(c); p.scan.depth == 0 {
			return p.pos, nil
		}
	}
	return 0, nil
}

func (s *scanner) step(c byte) {
	switch {
	case s.escaped:
		s.escaped = false
	case s.inString:
		s.escaped = c == '\\'
		s.inString = c != '"'
	case c == '"':
		s.inString = true
	case c == '{' || c == '[':
		s.depth++
	case c == '}' || c == ']':
		s.depth--
	}
}

func blank(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }
