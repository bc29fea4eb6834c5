package linux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"nestdbg/internal/mem"
)

// recordMax bounds the span of a structure that is read at once, bytes. The
// largest, struct kvm, has some 50 KB.
const recordMax = 1 << 20

// shape resolves the members of one structure that a piece of code wants, and
// keeps the first error, so that they can be listed without a check each.
type shape struct {
	types *Types
	name  string // of the structure
	first uint32 // span of the members so far, bytes from the start of the structure
	end   uint32
	err   error
}

func newShape(t *Types, name string) *shape { return &shape{types: t, name: name, first: ^uint32(0)} }

// need resolves a member that must exist, by the first of its names that does;
// names change between kernels, the newest comes first.
func (s *shape) need(paths ...string) Field {
	f, ok := s.want(paths...)
	if !ok && s.err == nil {
		_, s.err = s.types.Field(s.name, paths[0])
	}
	return f
}

// want resolves a member that may be missing.
func (s *shape) want(paths ...string) (Field, bool) {
	if s.err != nil {
		return Field{}, false
	}
	for _, p := range paths {
		f, err := s.types.Field(s.name, p)
		switch {
		case err == nil && uint64(f.Offset)+uint64(f.Size) > recordMax:
			s.err = fmt.Errorf("%s.%s ends %d bytes into the structure: %w", s.name, p, f.Offset+f.Size, ErrCorrupt)
			return Field{}, false
		case err == nil:
			s.first, s.end = min(s.first, f.Offset), max(s.end, f.Offset+max(f.Size, 1))
			return f, true
		case !errors.Is(err, ErrNotFound):
			s.err = err
			return Field{}, false
		}
	}
	return Field{}, false
}

// words is need for an array of pointers or words of 8 bytes.
func (s *shape) words(path string) Field {
	f := s.need(path)
	if s.err == nil && (f.Stride != 8 || uint64(f.Count)*8 != uint64(f.Size)) {
		s.err = fmt.Errorf("%s.%s is %s, not an array of words: %w", s.name, path, f.Type, ErrUnsupported)
	}
	return f
}

// record is the span of one structure in memory that a shape covers.
type record struct {
	what  string
	addr  mem.Virt // of the structure
	first uint32   // offset of b in the structure
	b     []byte
}

// read reads the members of the structure at addr.
func (s *shape) read(r mem.VirtReader, addr mem.Virt) (record, error) {
	if s.err != nil {
		return record{}, s.err
	}
	rec := record{what: s.name, addr: addr, first: s.first, b: make([]byte, s.end-s.first)}
	if _, err := r.ReadVirt(rec.b, addr+mem.Virt(s.first)); err != nil {
		return record{}, fmt.Errorf("read %s at %#x: %w", s.name, addr, err)
	}
	return rec, nil
}

// bytes returns a member's bytes. The field must be one the shape resolved, or
// lie within one.
func (r *record) bytes(f Field) []byte {
	return r.b[f.Offset-r.first:][:f.Size]
}

// uint is a member of at most 8 bytes as a number, without sign; bit fields too.
func (r *record) uint(f Field) uint64 {
	var w [8]byte
	copy(w[:], r.bytes(f))
	v := binary.LittleEndian.Uint64(w[:])
	if f.BitSize != 0 {
		v = v >> f.BitOffset & (1<<f.BitSize - 1)
	}
	return v
}

// word is an element of a member that the shape resolved with words; i is below
// its Count.
func (r *record) word(f Field, i uint32) uint64 {
	return r.uint(Field{Offset: f.Offset + 8*i, Size: 8})
}

// int is a member as a number with sign.
func (r *record) int(f Field) int64 {
	shift := 64 - 8*min(f.Size, 8)
	return int64(r.uint(f)<<shift) >> shift
}

// virt is a member that is a pointer.
func (r *record) virt(f Field) mem.Virt { return mem.Virt(r.uint(f)) }

// at is the address of a member in memory.
func (r *record) at(f Field) mem.Virt { return r.addr + mem.Virt(f.Offset) }

// text is a member that is an array of char: up to its NUL, or all of it.
// Bytes that do not print become '?', so that names can be shown.
func (r *record) text(f Field) string { return cleanText(r.bytes(f)) }

// cleanText cuts at NUL and replaces what does not print.
func cleanText(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	out := bytes.Clone(b)
	for i, c := range out {
		if c < ' ' || c > '~' {
			out[i] = '?'
		}
	}
	return string(out)
}

// ring walks a struct list_head ring: the addresses of its nodes, without the
// head. Nodes that were reached are returned also with an error: ErrCorrupt for a
// ring that does not come back to its head within limit nodes.
func ring(r mem.VirtReader, head mem.Virt, limit int) ([]mem.Virt, error) {
	var nodes []mem.Virt
	seen := map[mem.Virt]bool{head: true}
	for at := head; ; {
		next, err := mem.VirtUint64(r, at)
		if err != nil {
			return nodes, fmt.Errorf("list at %#x, node %d: %w", head, len(nodes), err)
		}
		at = mem.Virt(next)
		if at == head {
			return nodes, nil
		}
		if seen[at] || len(nodes) == limit {
			return nodes, fmt.Errorf("list at %#x does not end after %d nodes: %w", head, len(nodes), ErrCorrupt)
		}
		seen[at] = true
		nodes = append(nodes, at)
	}
}
