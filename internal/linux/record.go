package linux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

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

// untilNUL is what is in front of a NUL, or all of it.
func untilNUL(b []byte) []byte {
	before, _, _ := bytes.Cut(b, []byte{0})
	return before
}

// cleanText cuts at NUL and replaces what does not print.
func cleanText(b []byte) string {
	out := bytes.Clone(untilNUL(b))
	for i, c := range out {
		if c < ' ' || c > '~' {
			out[i] = '?'
		}
	}
	return string(out)
}

// ringTries is how often a ring is walked that seems broken: it may be changing.
const ringTries = 3

// ring walks a struct list_head ring: the addresses of its nodes, without the
// head. Nodes that were reached are returned also with an error: ErrCorrupt for a
// ring that does not come back to its head within limit nodes, or whose nodes do not
// point back at each other. Of such a ring both ends are walked, so that one bad
// pointer hides nothing.
func ring(r mem.VirtReader, head mem.Virt, limit int) ([]mem.Virt, error) {
	for try := 1; ; try++ {
		nodes, err := halfRing(r, head, limit, 0)
		if err == nil {
			return nodes, nil
		}
		if try < ringTries {
			continue
		}
		behind, _ := halfRing(r, head, limit, 1)
		seen := make(map[mem.Virt]bool, len(nodes))
		for _, at := range nodes {
			seen[at] = true
		}
		for _, at := range slices.Backward(behind) {
			if !seen[at] {
				nodes = append(nodes, at)
			}
		}
		return nodes, err
	}
}

// halfRing walks a ring by one of the two pointers of its nodes, 0 or 1, for as long
// as the other points back.
func halfRing(r mem.VirtReader, head mem.Virt, limit, pointer int) ([]mem.Virt, error) {
	var nodes []mem.Virt
	seen := map[mem.Virt]bool{head: true}
	var b [16]byte
	link := func(pointer int) mem.Virt { return mem.Virt(binary.LittleEndian.Uint64(b[8*pointer:])) }
	if _, err := r.ReadVirt(b[:], head); err != nil {
		return nil, fmt.Errorf("list at %#x: %w", head, err)
	}
	for last := head; ; {
		at := link(pointer)
		if _, err := r.ReadVirt(b[:], at); err != nil {
			return nodes, fmt.Errorf("list at %#x, node %d: %w", head, len(nodes), err)
		}
		switch {
		case link(1-pointer) != last:
			return nodes, fmt.Errorf("list at %#x is broken: %#x behind node %d, %#x, does not point back: %w",
				head, at, len(nodes), last, ErrCorrupt)
		case at == head:
			return nodes, nil
		case seen[at] || len(nodes) == limit:
			return nodes, fmt.Errorf("list at %#x does not end after %d nodes: %w", head, len(nodes), ErrCorrupt)
		}
		seen[at] = true
		nodes = append(nodes, at)
		last = at
	}
}
