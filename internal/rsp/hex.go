package rsp

import (
	"encoding/hex"
	"fmt"
)

// AppendHex appends two lower-case digits for each byte.
func AppendHex(dst, src []byte) []byte { return hex.AppendEncode(dst, src) }

// DecodeHex appends the bytes that s spells. It returns dst unchanged and
// ErrCorrupt if s is not an even number of hex digits.
func DecodeHex[S []byte | string](dst []byte, s S) ([]byte, error) {
	if len(s)%2 != 0 {
		return dst, fmt.Errorf("%w: odd number of hex digits", ErrCorrupt)
	}
	start := len(dst)
	for i := 0; i < len(s); i += 2 {
		hi, ok1 := hexValue(s[i])
		lo, ok2 := hexValue(s[i+1])
		if !ok1 || !ok2 {
			return dst[:start], fmt.Errorf("%w: bad hex digit", ErrCorrupt)
		}
		dst = append(dst, hi<<4|lo)
	}
	return dst, nil
}

// ParseHex parses a number of 1 to 16 hex digits; leading zeros beyond that are
// accepted.
func ParseHex[S []byte | string](s S) (uint64, error) {
	if len(s) == 0 {
		return 0, fmt.Errorf("%w: number missing", ErrCorrupt)
	}
	var v uint64
	for i := range len(s) {
		d, ok := hexValue(s[i])
		if !ok || v>>60 != 0 {
			return 0, fmt.Errorf("%w: bad number", ErrCorrupt)
		}
		v = v<<4 | uint64(d)
	}
	return v, nil
}

// ParseRegisters decodes the registers of a 'g' or 'p' reply. known[i] tells
// whether byte i has a value; the peer writes "xx" for those that have none.
func ParseRegisters(s []byte) (value []byte, known []bool, err error) {
	if len(s)%2 != 0 {
		return nil, nil, fmt.Errorf("%w: odd number of register digits", ErrCorrupt)
	}
	value, known = make([]byte, len(s)/2), make([]bool, len(s)/2)
	for i := range value {
		a, b := s[2*i], s[2*i+1]
		if a == 'x' && b == 'x' {
			continue
		}
		hi, ok1 := hexValue(a)
		lo, ok2 := hexValue(b)
		if !ok1 || !ok2 {
			return nil, nil, fmt.Errorf("%w: bad register digit", ErrCorrupt)
		}
		value[i], known[i] = hi<<4|lo, true
	}
	return value, known, nil
}

func hexValue(c byte) (v byte, ok bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}
