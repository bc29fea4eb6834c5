package btf

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func readerAt(b []byte) io.ReaderAt { return bytes.NewReader(b) }

func TestHostile(t *testing.T) {
	// A chain of pointers that is longer than any stack, and one of names.
	chain := func(k Kind) []byte {
		words := []uint32{1, word(Int, 0), 4, 32}
		for i := range uint32(400000) {
			words = append(words, 0, word(k, 0), i+1)
		}
		return records("\x00int\x00", words...)
	}
	tests := []struct {
		name string
		raw  []byte
		id   ID
		size uint64
		err  error
	}{
		{"pointers", chain(Ptr), 400001, 8, nil},
		{"names", chain(Typedef), 400001, 0, ErrCorrupt},
		{"a name for itself", records("\x00", 0, word(Typedef, 0), 1), 1, 0, ErrCorrupt},
		{"an array of itself", records("\x00", 0, word(Array, 0), 0, 1, 1, 2), 1, 0, ErrCorrupt},
		{"an endless array", records("\x00", 0, word(Array, 0), 0, 2, 2, 1<<31, 0, word(Array, 0), 0, 3, 3, 1<<31,
			0, word(Struct, 0), 8), 1, 0, ErrCorrupt},
		{"no such type", records("\x00", 0, word(Const, 0), 7), 1, 0, ErrCorrupt},
		{"a function", records("\x00", 0, word(FuncProto, 0), 0), 1, 0, ErrUnsupported},
		{"void", records("\x00"), 0, 0, nil},
	}
	for _, tt := range tests {
		s, err := Parse(tt.raw, nil)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if n, err := s.Size(tt.id); n != tt.size || !errors.Is(err, tt.err) {
			t.Errorf("%s: size %d, %v; want %d, %v", tt.name, n, err, tt.size, tt.err)
		}
	}
}

func TestParseErrors(t *testing.T) {
	good := records("\x00int\x00", 1, word(Int, 0), 4, 32)
	cut := func(at int, with byte) []byte {
		b := slices.Clone(good)
		b[at] = with
		return b
	}
	tests := []struct {
		name string
		raw  []byte
		left int // types that can be used; -1 for none
		err  error
	}{
		{"nothing", nil, -1, ErrCorrupt},
		{"magic", cut(0, 0), -1, ErrUnsupported},
		{"version", cut(2, 9), -1, ErrUnsupported},
		{"short header", cut(4, 8), -1, ErrCorrupt},
		{"types past the end", cut(13, 1), -1, ErrCorrupt},
		{"strings past the end", cut(16, 200), -1, ErrCorrupt},
		{"kind to come", records("\x00int\x00", 1, word(Int, 0), 4, 32, 0, word(25, 0), 0), 1, ErrUnsupported},
		{"record past the end", records("\x00", 0, word(Struct, 1), 8), 0, ErrCorrupt},
		{"half a record", records("\x00", 0), 0, ErrCorrupt},
	}
	for _, tt := range tests {
		s, err := Parse(tt.raw, nil)
		left := -1
		if s != nil {
			left = s.Len()
		}
		if left != tt.left || !errors.Is(err, tt.err) {
			t.Errorf("%s: %d types, %v; want %d, %v", tt.name, left, err, tt.left, tt.err)
		}
	}
	// Names: past the end, without an end, too long.
	s, err := Parse(records("\x00"+strings.Repeat("x", maxName)+"\x00open", 1, word(Int, 0), 4, 32), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []uint32{1, maxName + 2, 1 << 30} {
		if name := s.Text(at); name != nil {
			t.Errorf("name at %d: %q", at, name)
		}
	}
	if ids := s.Named(strings.Repeat("x", maxName)); ids != nil {
		t.Errorf("a name that is too long: %v", ids)
	}
}

// TestChanges flips bytes of what was parsed, as a guest may that runs on.
func TestChanges(t *testing.T) {
	whole := sample(t)
	r := rand.New(rand.NewPCG(1, 1))
	for range 3000 {
		raw := slices.Clone(whole)
		s, err := Parse(raw, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.Named("task")
		for range 1 + r.IntN(20) {
			raw[headerSize+r.IntN(len(raw)-headerSize)] = byte(r.Uint32())
		}
		useAll(s)
	}
}

// useAll asks for everything there is.
func useAll(s *Spec) {
	for i := range s.Len() {
		r := s.At(i)
		s.Size(s.First() + ID(i))
		if r.IsComposite() {
			for k := range r.Count {
				s.Text(s.Member(&r, k).Name)
			}
		}
		s.Named(string(s.Text(r.Name)))
	}
}

func FuzzParse(f *testing.F) {
	whole := sample(f)
	base, err := Parse(whole, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(records("\x00s\x00m\x00", 1, word(Struct, 1), 8, 3, 1, 0))
	f.Add(records("\x00", 0, word(Array, 0), 0, 1, 1, 2))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, on := range []*Spec{nil, base} {
			s, err := Parse(raw, on)
			if s == nil && err == nil {
				t.Fatal("neither types nor an error")
			}
			if s == nil {
				continue
			}
			useAll(s)
			for i := range s.Len() {
				r, id := s.At(i), s.First()+ID(i)
				if name := s.Text(r.Name); isNamed(r.Kind) && len(name) > 0 && !slices.Contains(s.Named(string(name)), id) {
					t.Fatalf("type %d is not found by its name %q", id, name)
				}
			}
		}
	})
}
