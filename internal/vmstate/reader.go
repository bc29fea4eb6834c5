package vmstate

import "encoding/binary"

// reader takes big-endian numbers off a slice. After the end it yields zeros
// and sets short, which whoever uses the values must check first.
type reader struct {
	b     []byte
	at    int
	short bool
}

// bytes returns the next n bytes, or n zero bytes at the end. n is a constant
// of the format at every call, never a number from the stream.
func (r *reader) bytes(n int) []byte {
	if n > len(r.b)-r.at {
		r.short = true
		r.at = len(r.b)
		return make([]byte, n)
	}
	p := r.b[r.at : r.at+n : r.at+n]
	r.at += n
	return p
}

func (r *reader) u8() uint8   { return r.bytes(1)[0] }
func (r *reader) u16() uint16 { return binary.BigEndian.Uint16(r.bytes(2)) }
func (r *reader) u32() uint32 { return binary.BigEndian.Uint32(r.bytes(4)) }
func (r *reader) u64() uint64 { return binary.BigEndian.Uint64(r.bytes(8)) }

// counted returns a string that is preceded by its length in one byte.
func (r *reader) counted() string {
	n := int(r.u8())
	return string(r.bytes(n))
}

// number decodes a big-endian number of 1, 2, 4 or 8 bytes.
func number(b []byte) uint64 {
	var v uint64
	for _, c := range b {
		v = v<<8 | uint64(c)
	}
	return v
}
