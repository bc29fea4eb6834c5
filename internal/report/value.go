package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"nestdbg/internal/cexpr"
	"nestdbg/internal/mem"
)

// Value is a C object as a person sees it: a number, or members, or elements.
// Exactly one of Text, Members, Elements and Fault says what it is.
type Value struct {
	Name string `json:"name,omitempty"` // of a member; empty for an anonymous one
	Type string `json:"type"`
	Addr *Hex   `json:"addr,omitempty"` // null for what was computed
	Bits uint64 `json:"bits,omitempty"` // how many a bit field has

	Text   string   `json:"text,omitempty"`   // as it is shown
	Number *Number  `json:"number,omitempty"` // its number, where it is one
	Symbol string   `json:"symbol,omitempty"` // what the number points to or into
	String *string  `json:"string,omitempty"` // of an array of or a pointer to char, up to its NUL
	Fault  string   `json:"fault,omitempty"`  // why it, or what it points to, could not be read
	Cut    string   `json:"cut,omitempty"`    // what is left out, and why
	Repeat uint64   `json:"repeat,omitempty"` // so many elements in a row are like this one
	Fields []*Value `json:"members,omitempty"`
	Array  []*Value `json:"elements,omitempty"`

	composite bool // Fields or Array is what it is, also when that is empty
	isArray   bool
}

// Number is an integer of up to 64 bits for JSON: exact, with its sign.
type Number struct {
	Bits   uint64
	Signed bool
}

// MarshalJSON implements json.Marshaler.
func (n Number) MarshalJSON() ([]byte, error) { return json.RawMessage(n.String()), nil }

func (n Number) String() string {
	if n.Signed {
		return strconv.FormatInt(int64(n.Bits), 10)
	}
	return strconv.FormatUint(n.Bits, 10)
}

// ValueLimits bound what is shown of one value. Zero means the default.
type ValueLimits struct {
	Depth    int // structures within each other
	Elements int // of an array, and characters of a string
	Total    int // numbers, members and elements altogether
}

// The defaults are gdb's where gdb has one.
const (
	defaultDepth    = 20
	defaultElements = 200
	defaultTotal    = 50000

	repeatThreshold = 10 // equal elements in a row that are shown as one
)

func (l ValueLimits) orDefault() ValueLimits {
	if l.Depth <= 0 {
		l.Depth = defaultDepth
	}
	if l.Elements <= 0 {
		l.Elements = defaultElements
	}
	if l.Total <= 0 {
		l.Total = defaultTotal
	}
	return l
}

// valueReader makes Values.
type valueReader struct {
	format byte // x d u o t c a s z, or 0 for what the type suggests
	limits ValueLimits
	left   int // of limits.Total
	bytes  int // that comparing elements may still read
	symbol func(addr uint64) string
}

func newValueReader(format byte, limits ValueLimits, symbol func(uint64) string) *valueReader {
	limits = limits.orDefault()
	if symbol == nil {
		symbol = func(uint64) string { return "" }
	}
	return &valueReader{format: format, limits: limits, left: limits.Total, bytes: comparedMax, symbol: symbol}
}

// read reads a value with all its members and elements.
func (r *valueReader) read(v cexpr.Value, name string, depth int) *Value {
	out := &Value{Name: name, Type: cexpr.TypeName(v.Type), Bits: v.BitSize}
	if v.InMemory {
		out.Addr = hexPointer(v.Addr, true)
	}
	if r.left--; r.left < 0 {
		out.Cut = fmt.Sprintf("more than %d values", r.limits.Total)
		return out
	}
	d, err := v.Type.Under()
	if err != nil {
		out.Fault = err.Error()
		return out
	}
	switch d.Kind {
	case cexpr.KindStruct, cexpr.KindUnion:
		r.fields(out, v, d, depth)
	case cexpr.KindArray:
		r.array(out, v, d, depth)
	case cexpr.KindFunc:
		out.Number, out.Symbol = &Number{Bits: v.Addr}, r.symbol(v.Addr)
		out.Text = "{" + out.Type + "} " + withSymbol(v.Addr, out.Symbol)
	case cexpr.KindForward, cexpr.KindVoid:
		out.Cut = "of " + out.Type + " only the name is known"
	case cexpr.KindFloat:
		r.opaque(out, v, d)
	default:
		if d.Size > 8 {
			r.opaque(out, v, d)
			break
		}
		r.scalar(out, v, d)
	}
	return out
}

// fields reads a structure or union.
func (r *valueReader) fields(out *Value, v cexpr.Value, d *cexpr.Def, depth int) {
	out.composite = true
	if depth >= r.limits.Depth {
		out.Cut = fmt.Sprintf("structures more than %d deep", r.limits.Depth)
		return
	}
	for i := range d.Members {
		m, err := v.Member(i)
		if err != nil {
			out.Fault = err.Error()
			return
		}
		if r.left <= 0 {
			out.Cut = fmt.Sprintf("more than %d values", r.limits.Total)
			return
		}
		out.Fields = append(out.Fields, r.read(m, d.Members[i].Name, depth+1))
	}
}

// array reads an array: characters as a string, otherwise elements, of which equal
// ones in a row are read but shown once.
func (r *valueReader) array(out *Value, v cexpr.Value, d *cexpr.Def, depth int) {
	if r.isString(v, d) {
		r.chars(out, v, d)
		return
	}
	out.composite, out.isArray = true, true
	each, err := d.Elem.Size()
	if err != nil {
		out.Fault = err.Error()
		return
	}
	if d.Count == 0 {
		out.Cut = "its length is not part of the type"
		return
	}
	for i := uint64(0); i < d.Count; {
		if len(out.Array) >= r.limits.Elements || r.left <= 0 {
			out.Cut = fmt.Sprintf("%d more elements", d.Count-i)
			return
		}
		e, err := v.Element(i)
		if err != nil {
			out.Fault = err.Error()
			return
		}
		n := r.alike(v, i, d.Count, each)
		one := r.read(e, "", depth)
		if n < repeatThreshold {
			n = 1
		} else {
			one.Repeat = n
		}
		out.Array = append(out.Array, one)
		i += n
	}
}

// comparedMax bounds the bytes that are compared to find equal elements.
const comparedMax = 16 << 20

// alike is how many elements from i on have the same bytes. Elements that cannot be
// read are alike if they are so for the same reason.
func (r *valueReader) alike(v cexpr.Value, i, count, each uint64) uint64 {
	if each == 0 || each > 1<<16 {
		return 1
	}
	first, firstErr := elementBytes(v, i, each)
	n := uint64(1)
	for i+n < count && r.bytes > 0 {
		r.bytes -= int(each)
		b, err := elementBytes(v, i+n, each)
		if (err == nil) != (firstErr == nil) || !bytes.Equal(b, first) {
			break
		}
		n++
	}
	return n
}

func elementBytes(v cexpr.Value, i, each uint64) ([]byte, error) {
	e, err := v.Element(i)
	if err != nil {
		return nil, err
	}
	return e.Bytes(each)
}

// isString reports whether an array is shown as text: char is, unsigned char if it
// has some that prints up to a NUL, and u8 is a number.
func (r *valueReader) isString(v cexpr.Value, d *cexpr.Def) bool {
	char, plain := d.Elem.IsChar()
	switch {
	case !char || r.format != 0 && r.format != 's':
		return false
	case plain || r.format == 's':
		return true
	case isNumberType(d.Elem):
		return false
	}
	b, _ := v.Bytes(min(d.Count, uint64(r.limits.Elements)))
	return printsToNUL(b)
}

// printsToNUL reports whether bytes begin with text that ends with a NUL.
func printsToNUL(b []byte) bool {
	end := bytes.IndexByte(b, 0)
	if end <= 0 {
		return false
	}
	for _, c := range b[:end] {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// charsMax bounds the characters of one array that are read.
const charsMax = 1 << 16

// chars reads an array of char. What follows a first NUL is shown unless it is only
// more NULs; what a pointer points to ends with the first.
func (r *valueReader) chars(out *Value, v cexpr.Value, d *cexpr.Def) {
	limit, count := uint64(r.limits.Elements), d.Count
	open := count == 0
	if open {
		count = limit
	}
	b, err := v.Bytes(min(count, charsMax))
	whole := err == nil && count <= charsMax
	if end := bytes.IndexByte(b, 0); end >= 0 && (open || whole && len(bytes.Trim(b[end:], "\x00")) == 0) {
		b, err, count = b[:end], nil, uint64(end)
	} else if whole && end >= 0 {
		b = bytes.TrimRight(b, "\x00")
		count = uint64(len(b))
	} else if open && err == nil {
		out.Cut = "no end within " + strconv.FormatUint(limit, 10) + " characters"
	}
	if uint64(len(b)) > limit {
		b = b[:limit]
		out.Cut = fmt.Sprintf("%d more characters", count-limit)
	}
	if err != nil {
		out.Fault = faultText(err)
		if len(b) == 0 {
			return
		}
	}
	out.Text = quoteC(b)
	if end := bytes.IndexByte(b, 0); end >= 0 {
		b = b[:end] // what was there before a shorter text
	}
	text := string(b)
	out.String = &text
}

// scalar reads a number, enumeration, boolean or pointer.
func (r *valueReader) scalar(out *Value, v cexpr.Value, d *cexpr.Def) {
	bits, err := v.Bits()
	if err != nil {
		out.Fault = faultText(err)
		return
	}
	out.Number = &Number{bits, d.Signed}
	width := 8 * d.Size
	if v.BitSize != 0 {
		width = v.BitSize
	}
	if r.format != 0 && r.format != 's' {
		out.Text = formatted(r.format, bits, width, d.Signed, r.symbol)
		if r.format == 'a' {
			out.Symbol = r.symbol(bits)
		}
		return
	}
	switch d.Kind {
	case cexpr.KindBool:
		out.Text = boolText(bits)
	case cexpr.KindEnum:
		out.Text = enumText(d, bits)
	case cexpr.KindPointer:
		r.pointer(out, v, d, bits)
	default:
		out.Text = out.Number.String()
		if char, _ := v.Type.IsChar(); char && v.BitSize == 0 && !isNumberType(v.Type) {
			out.Text += " " + quoteChar(byte(bits))
		}
	}
}

// isNumberType reports whether a type of one byte is named as a number: u8, __u8,
// uint8_t and their like.
func isNumberType(t *cexpr.Type) bool {
	name := cexpr.TypeName(t)
	return strings.Contains(name, "8")
}

// pointer shows a pointer: what it points into, and the text behind a char *.
func (r *valueReader) pointer(out *Value, v cexpr.Value, d *cexpr.Def, bits uint64) {
	out.Symbol = r.symbol(bits)
	out.Text = withSymbol(bits, out.Symbol)
	char, plain := d.Elem.IsChar()
	if !char || bits == 0 || !plain && isNumberType(d.Elem) {
		return
	}
	target, err := v.Deref()
	if err != nil {
		return
	}
	if !plain {
		if b, _ := target.Bytes(uint64(r.limits.Elements)); !printsToNUL(b) {
			return
		}
	}
	var text Value
	r.chars(&text, retyped(target, cexpr.ArrayOf(d.Elem, 0)), &cexpr.Def{Kind: cexpr.KindArray, Elem: d.Elem})
	out.String, out.Cut = text.String, text.Cut
	if text.Text != "" {
		out.Text += " " + text.Text
	}
	if text.Fault != "" {
		out.Fault = text.Fault
	}
}

func retyped(v cexpr.Value, t *cexpr.Type) cexpr.Value {
	v.Type = t
	return v
}

// opaque shows bytes that are no number here: floating point, 128 bits.
func (r *valueReader) opaque(out *Value, v cexpr.Value, d *cexpr.Def) {
	b, err := v.Bytes(min(d.Size, 64))
	if err != nil {
		out.Fault = faultText(err)
		return
	}
	var text strings.Builder
	text.WriteString("0x")
	for i := len(b) - 1; i >= 0; i-- {
		fmt.Fprintf(&text, "%02x", b[i])
	}
	out.Text = text.String()
}

// faultText is why memory could not be read, short enough to stand for a member.
func faultText(err error) string {
	var fault *mem.FaultError
	if errors.As(err, &fault) {
		return fmt.Sprintf("cannot read %#x", fault.Addr)
	}
	return err.Error()
}
