package cexpr

import (
	"fmt"
	"strconv"
	"strings"
)

type tokenKind int

const (
	tokenEnd tokenKind = iota
	tokenName
	tokenNumber
	tokenChar
	tokenString
	tokenOp
)

// token is one word of an expression.
type token struct {
	kind tokenKind
	pos  int
	text string // as written; of a string or character its value

	value    uint64 // of a number or a character
	typ      *Type  // of a number
	spelling string // of a number: as it was written
}

// describe names a token for a message.
func (t token) describe() string {
	switch t.kind {
	case tokenEnd:
		return "the end"
	case tokenString:
		return strconv.Quote(t.text)
	case tokenNumber, tokenChar:
		return t.spelling
	}
	return strconv.Quote(t.text)
}

// operators are longest first.
var operators = strings.Fields("<<= >>= ... -> ++ -- << >> <= >= == != && || += -= *= /= %= &= |= ^= " +
	"+ - * / % & | ^ ~ ! < > = ? : ( ) [ ] . , @")

// tokens cuts a text into words; the last is tokenEnd.
func tokens(text string) ([]token, error) {
	if len(text) > maxText {
		return nil, errorAt(-1, "the expression has %d bytes, at most %d", len(text), maxText)
	}
	var out []token
	for pos := 0; ; {
		for pos < len(text) && strings.IndexByte(" \t\n\r\v\f", text[pos]) >= 0 {
			pos++
		}
		if pos == len(text) {
			return append(out, token{kind: tokenEnd, pos: pos}), nil
		}
		t, size, err := oneToken(text[pos:])
		if err != nil {
			return nil, errorAt(pos, "%v", err)
		}
		t.pos = pos
		out = append(out, t)
		pos += size
	}
}

// oneToken reads the word that s starts with.
func oneToken(s string) (t token, size int, err error) {
	switch c := s[0]; {
	case isNameStart(c):
		n := 1
		// Names of compilers have dots in front of numbers: "count.7", "foo.isra.0".
		// They are symbols, and no C expression has a member that begins with a digit;
		// "isra", "part", "constprop", "cold" and "llvm" stay members to write in quotes.
		for n < len(s) && (isNamePart(s[n]) || s[n] == '.' && n+1 < len(s) && isDigit(s[n+1])) {
			n++
		}
		// "kvm_amd::foo" is the foo of that part of the program.
		if scope := strings.HasPrefix(s[n:], "::") && n+2 < len(s) && isNameStart(s[n+2]); scope {
			for n += 2; n < len(s) && isNamePart(s[n]); n++ {
			}
		}
		if n > maxName {
			return t, 0, fmt.Errorf("a name of %d bytes, at most %d", n, maxName)
		}
		return token{kind: tokenName, text: s[:n]}, n, nil
	case isDigit(c):
		return number(s)
	case c == '\'':
		return character(s)
	case c == '"':
		return quoted(s)
	}
	for _, op := range operators {
		if strings.HasPrefix(s, op) {
			return token{kind: tokenOp, text: op}, len(op), nil
		}
	}
	return t, 0, fmt.Errorf("%q does not belong into an expression", firstRune(s))
}

func firstRune(s string) string {
	for _, r := range s {
		return string(r)
	}
	return s
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// isNameStart admits "$" for registers and helpers, as gdb writes them.
func isNameStart(c byte) bool {
	return c == '_' || c == '$' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

func isNamePart(c byte) bool { return isNameStart(c) || isDigit(c) }

// number reads an integer with C's prefixes and suffixes.
func number(s string) (token, int, error) {
	n := 0
	for n < len(s) && (isNamePart(s[n]) || s[n] == '.') {
		n++
	}
	word := s[:n]
	digits := strings.TrimRight(word, "uUlL")
	suffix := strings.ToLower(word[len(digits):])
	v, err := strconv.ParseUint(digits, 0, 64)
	if err != nil || strings.Contains(digits, "_") || strings.HasPrefix(digits, "0o") || strings.HasPrefix(digits, "0O") {
		if strings.Contains(word, ".") {
			return token{}, 0, fmt.Errorf("%s: there are no floating-point numbers here", word)
		}
		return token{}, 0, fmt.Errorf("%s is no number of C's, or has more than 64 bits", word)
	}
	decimal := digits[0] != '0' || digits == "0"
	typ, ok := numberType(v, suffix, decimal)
	if !ok {
		return token{}, 0, fmt.Errorf("%s: no suffix of C's, or too large for a signed number", word)
	}
	return token{kind: tokenNumber, text: digits, value: v, typ: typ, spelling: word}, n, nil
}

// numberType is the type of an integer constant: the first of C's list that has
// room (C17 6.4.4.1).
func numberType(v uint64, suffix string, decimal bool) (*Type, bool) {
	unsigned := strings.Contains(suffix, "u")
	long := false
	switch strings.Replace(suffix, "u", "", 1) {
	case "":
	case "l", "ll":
		long = true
	default:
		return nil, false
	}
	if strings.Contains(suffix, "lul") {
		return nil, false
	}
	switch {
	case !long && !unsigned && v <= 1<<31-1:
		return Int, true
	case !long && (unsigned || !decimal) && v <= 1<<32-1:
		return UnsignedInt, true
	case !unsigned && v <= 1<<63-1:
		return Long, true
	case unsigned || !decimal:
		return UnsignedLong, true
	}
	// gdb takes 18446744073709551615 as unsigned long, and so do people.
	return UnsignedLong, true
}

// simpleEscapes are the escapes of C of one letter.
var simpleEscapes = map[byte]byte{'n': '\n', 't': '\t', 'r': '\r', 'a': 7, 'b': 8, 'f': 12, 'v': 11, 'e': 27,
	'\\': '\\', '\'': '\'', '"': '"', '?': '?'}

// escaped reads one character of a literal.
func escaped(s string) (c byte, size int, err error) {
	if s[0] != '\\' {
		return s[0], 1, nil
	}
	if len(s) < 2 {
		return 0, 0, fmt.Errorf("a backslash at the end")
	}
	if c, ok := simpleEscapes[s[1]]; ok {
		return c, 2, nil
	}
	base, from := 8, 1
	if s[1] == 'x' {
		base, from = 16, 2
	}
	n := from
	for n < len(s) && n < from+3 && digitValue(s[n]) < base {
		n++
	}
	v, err := strconv.ParseUint(s[from:n], base, 8)
	if err != nil {
		return 0, 0, fmt.Errorf("no escape of C's: %q", s[:min(n+1, len(s))])
	}
	return byte(v), n, nil
}

func digitValue(c byte) int {
	switch {
	case isDigit(c):
		return int(c - '0')
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return int(c|0x20-'a') + 10
	}
	return 99
}

// character reads 'x'. A name in such quotes is a symbol that is no name of C's, as
// in gdb: 'foo.part.0'.
func character(s string) (token, int, error) {
	end := strings.IndexByte(s[1:], '\'')
	if end > 1 && isNameStart(s[1]) {
		if end > maxName {
			return token{}, 0, fmt.Errorf("a name of %d bytes, at most %d", end, maxName)
		}
		name := s[1 : 1+end]
		if strings.Trim(name, nameBytes) != "" {
			return token{}, 0, fmt.Errorf("%q is neither a character nor a symbol", name)
		}
		return token{kind: tokenName, text: name}, end + 2, nil
	}
	if len(s) < 3 || s[1] == '\'' {
		return token{}, 0, fmt.Errorf("a character has to stand between two quotes")
	}
	c, n, err := escaped(s[1:])
	if err != nil {
		return token{}, 0, err
	}
	if 1+n >= len(s) || s[1+n] != '\'' {
		return token{}, 0, fmt.Errorf("a character has to stand between two quotes")
	}
	return token{kind: tokenChar, value: uint64(int64(int8(c))), spelling: s[:n+2]}, n + 2, nil
}

// nameBytes are what names of symbols are made of.
const nameBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_$."

// quoted reads a string.
func quoted(s string) (token, int, error) {
	var b []byte
	for n := 1; n < len(s); {
		if s[n] == '"' {
			return token{kind: tokenString, text: string(b)}, n + 1, nil
		}
		c, size, err := escaped(s[n:])
		if err != nil {
			return token{}, 0, err
		}
		b, n = append(b, c), n+size
	}
	return token{}, 0, fmt.Errorf("a string without its end")
}
