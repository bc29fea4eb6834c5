package report

import (
	"fmt"
	"io"
	"math/bits"
	"strconv"
	"strings"

	"nestdbg/internal/cexpr"
)

// withSymbol is a pointer with the symbol it points to.
func withSymbol(addr uint64, symbol string) string {
	text := fmt.Sprintf("%#x", addr)
	if symbol != "" {
		text += " <" + symbol + ">"
	}
	return text
}

func boolText(v uint64) string {
	switch v {
	case 0:
		return "false"
	case 1:
		return "true"
	}
	return strconv.FormatUint(v, 10) + " (neither true nor false)"
}

// enumText is a value by its name. Values that names have to be combined for are
// shown so if the enumeration is one of flags, as gdb decides it: each name stands
// for bits of its own.
func enumText(d *cexpr.Def, v uint64) string {
	for _, e := range d.Enumerators {
		if e.Value == v {
			return e.Name
		}
	}
	number := Number{v, d.Signed}.String()
	var taken uint64
	for _, e := range d.Enumerators {
		if e.Value&taken != 0 || d.Signed {
			return number
		}
		// Bits that belong together stand together.
		if run := e.Value >> uint(bits.TrailingZeros64(e.Value)); run&(run+1) != 0 {
			return number
		}
		taken |= e.Value
	}
	var parts []string
	rest := v
	for _, e := range d.Enumerators {
		if e.Value != 0 && v&e.Value == e.Value {
			parts = append(parts, e.Name)
			rest &^= e.Value
		}
	}
	if len(parts) == 0 {
		return number
	}
	if rest != 0 {
		parts = append(parts, fmt.Sprintf("unknown: %#x", rest))
	}
	return "(" + strings.Join(parts, " | ") + ")"
}

// formatted is a number in one of gdb's formats.
func formatted(format byte, v, width uint64, signed bool, symbol func(uint64) string) string {
	if width < 64 && format != 'd' && format != 'c' {
		v &= 1<<width - 1
	}
	switch format {
	case 'd':
		if !signed && width < 64 {
			v = uint64(int64(v<<(64-width)) >> (64 - width))
		}
		return strconv.FormatInt(int64(v), 10)
	case 'u':
		return strconv.FormatUint(v, 10)
	case 'o':
		if v == 0 {
			return "0"
		}
		return fmt.Sprintf("0%o", v)
	case 't':
		return strconv.FormatUint(v, 2)
	case 'z':
		return fmt.Sprintf("0x%0*x", int(width+3)/4, v)
	case 'c':
		return strconv.FormatInt(int64(int8(v)), 10) + " " + quoteChar(byte(v))
	case 'a':
		return withSymbol(v, symbol(v))
	}
	return fmt.Sprintf("%#x", v)
}

// charEscapes are the characters that C writes with a letter.
var charEscapes = map[byte]string{'\n': `\n`, '\t': `\t`, '\r': `\r`, '\a': `\a`, '\b': `\b`, '\f': `\f`, '\v': `\v`,
	27: `\033`, '\\': `\\`}

func escapeC(c, quote byte) string {
	switch {
	case c == quote:
		return `\` + string(rune(c))
	case charEscapes[c] != "":
		return charEscapes[c]
	case c < ' ' || c > '~':
		return fmt.Sprintf(`\%03o`, c)
	}
	return string(rune(c))
}

func quoteChar(c byte) string { return "'" + escapeC(c, '\'') + "'" }

// quoteC is bytes as a string of C, with runs of one byte that does not print
// collapsed as gdb does.
func quoteC(b []byte) string {
	var out []string
	var text strings.Builder
	flush := func() {
		if text.Len() > 0 {
			out = append(out, `"`+text.String()+`"`)
			text.Reset()
		}
	}
	for i := 0; i < len(b); {
		n := 1
		for i+n < len(b) && b[i+n] == b[i] {
			n++
		}
		if n >= repeatThreshold {
			flush()
			out = append(out, fmt.Sprintf("%s <repeats %d times>", quoteChar(b[i]), n))
		} else {
			text.WriteString(strings.Repeat(escapeC(b[i], '"'), n))
		}
		i += n
	}
	flush()
	if len(out) == 0 {
		return `""`
	}
	return strings.Join(out, ", ")
}

// write renders a value as gdb does with "set print pretty on".
func (v *Value) write(w io.Writer, indent string) {
	switch {
	case !v.composite:
		io.WriteString(w, v.line())
		return
	case v.isArray:
		v.writeArray(w, indent)
		return
	}
	io.WriteString(w, "{\n")
	inner := indent + "  "
	for _, f := range v.Fields {
		io.WriteString(w, inner)
		if f.Name != "" {
			fmt.Fprintf(w, "%s = ", f.Name)
		}
		f.write(w, inner)
		io.WriteString(w, ",\n")
	}
	v.writeEnd(w, inner)
	fmt.Fprintf(w, "%s}", indent)
}

// writeEnd says what is missing of a structure or array.
func (v *Value) writeEnd(w io.Writer, inner string) {
	if v.Cut != "" {
		fmt.Fprintf(w, "%s... (%s)\n", inner, v.Cut)
	}
	if v.Fault != "" {
		fmt.Fprintf(w, "%s<%s>\n", inner, v.Fault)
	}
}

// writeArray puts the numbers of an array on one line, and structures below each
// other.
func (v *Value) writeArray(w io.Writer, indent string) {
	tall := false
	for _, e := range v.Array {
		tall = tall || e.composite
	}
	if tall {
		io.WriteString(w, "{\n")
		inner := indent + "  "
		for _, e := range v.Array {
			io.WriteString(w, inner)
			e.write(w, inner)
			fmt.Fprintf(w, "%s,\n", e.repeats())
		}
		v.writeEnd(w, inner)
		fmt.Fprintf(w, "%s}", indent)
		return
	}
	var parts []string
	for _, e := range v.Array {
		parts = append(parts, e.line()+e.repeats())
	}
	if v.Cut != "" {
		parts = append(parts, "... ("+v.Cut+")")
	}
	if v.Fault != "" {
		parts = append(parts, "<"+v.Fault+">")
	}
	fmt.Fprintf(w, "{%s}", strings.Join(parts, ", "))
}

func (v *Value) repeats() string {
	if v.Repeat == 0 {
		return ""
	}
	return fmt.Sprintf(" <repeats %d times>", v.Repeat)
}

// line is a value that has no members.
func (v *Value) line() string {
	var parts []string
	if v.Text != "" {
		parts = append(parts, v.Text)
	}
	if v.Cut != "" {
		parts = append(parts, "... ("+v.Cut+")")
	}
	if v.Fault != "" {
		parts = append(parts, "<"+v.Fault+">")
	}
	return strings.Join(parts, " ")
}
