// Package report holds what a person sees: plain values, rendered as text or as
// JSON. Building a report reads memory; rendering one does not.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"unicode/utf8"
)

// Report is one answer. The value itself is its JSON.
type Report interface {
	// Text writes the report for people.
	Text(w io.Writer)
}

// Hex is a number that people and scripts see in hexadecimal: "0x1f".
type Hex uint64

func (h Hex) String() string { return fmt.Sprintf("%#x", uint64(h)) }

// MarshalJSON implements json.Marshaler.
func (h Hex) MarshalJSON() ([]byte, error) { return json.Marshal(h.String()) }

// Raw is text as a program of a guest left it, which need not be UTF-8. In JSON a byte
// that is none is a lone surrogate from U+DC80, by which Python's os.fsencode restores it
// (PEP 383); others show that something is there.
type Raw string

// MarshalJSON implements json.Marshaler.
func (r Raw) MarshalJSON() ([]byte, error) {
	out := []byte{'"'}
	for s := string(r); s != ""; {
		c, n := utf8.DecodeRuneInString(s)
		if c == utf8.RuneError && n == 1 {
			out = fmt.Appendf(out, `\udc%02x`, s[0])
		} else {
			quoted, err := json.Marshal(s[:n])
			if err != nil {
				return nil, err
			}
			out = append(out, quoted[1:len(quoted)-1]...)
		}
		s = s[n:]
	}
	return append(out, '"'), nil
}

// hexPointer is v as an optional Hex: absent where it is not known.
func hexPointer(v uint64, known bool) *Hex {
	if !known {
		return nil
	}
	h := Hex(v)
	return &h
}

// orUnknown renders an optional number; what is not known is never zero.
func orUnknown(h *Hex) string {
	if h == nil {
		return "unknown"
	}
	return h.String()
}

// JSON writes a report for scripts, indented, with a final newline. A list of nothing
// is [], which a script can go through, and not null.
func JSON(w io.Writer, r Report) error {
	fillLists(reflect.ValueOf(r))
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// fillLists makes empty lists of those that are nil, but for fields with the tag
// nil:"unknown".
func fillLists(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			fillLists(v.Elem())
		}
	case reflect.Slice:
		if v.IsNil() && v.CanSet() {
			v.Set(reflect.MakeSlice(v.Type(), 0, 0))
		}
		for i := range v.Len() {
			fillLists(v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() && f.Tag.Get("nil") != "unknown" {
				fillLists(v.Field(i))
			}
		}
	}
}

// size renders a number of bytes the way people name memory sizes.
func size(n uint64) string {
	switch {
	case n >= 1<<30 && n%(1<<30) == 0:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 1<<20:
		return fmt.Sprintf("%.5g MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.4g KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d bytes", n)
}
