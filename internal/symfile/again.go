package symfile

import (
	"bytes"
	"encoding/binary"
	"io"
	"slices"

	"nestdbg/internal/mem"
)

// Copy is a file that was written, to be written again for another machine that runs
// the same kernel: KASLR has only moved it. That takes a tenth of the time.
type Copy struct {
	file     *File
	parts    [][]byte // of the file, one after the other
	moves    []uint32 // see buffer
	entries  []codeEntry
	problems []Problem
	base     *Base
}

// Base is the kernel's types for the files of its modules, nil if modules cannot continue
// them.
func (c *Copy) Base() *Base { return c.base }

// codeEntry is a function whose arguments are known in its first bytes; see entrySize.
type codeEntry struct{ addr, size uint64 }

// WriteCopy is Write, and returns a copy. Nothing that f refers to may change from then on.
func (f *File) WriteCopy(w io.Writer) (*Copy, []Problem, error) {
	out, err := f.write(w, true)
	if err != nil {
		return nil, nil, err
	}
	c := &Copy{file: f, parts: out.written, moves: out.moves, entries: out.entries, problems: out.notes.problems}
	if out.kernel != nil {
		c.base = &Base{table: *out.kernel}
		c.base.table.die = nil // is of this file
	}
	return c, c.problems, nil
}

// Again writes what f.Write would write, if f is the same kernel elsewhere; otherwise
// it reports false and writes nothing. Everything is compared but the unwind table, which
// is part of the same build.
func (c *Copy) Again(f *File, w io.Writer) (same bool, problems []Problem, err error) {
	delta, ok := c.delta(f)
	if !ok {
		return false, nil, nil
	}
	code := codeWindow{code: f.Code}
	for _, e := range c.entries { // a tracer may have changed them in one machine
		if entrySize(&code, e.addr+delta) != e.size {
			return false, nil, nil
		}
	}
	start, moves := 0, c.moves
	for _, p := range c.parts {
		p = bytes.Clone(p)
		for ; len(moves) > 0 && int(moves[0])-start < len(p); moves = moves[1:] {
			b := p[int(moves[0])-start:]
			binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)+delta)
		}
		start += len(p)
		if _, err := w.Write(p); err != nil {
			return true, c.problems, err
		}
	}
	return true, c.problems, nil
}

// delta is how far f is from the file that was written; ok is false if it differs in
// anything else.
func (c *Copy) delta(f *File) (delta uint64, ok bool) {
	was := c.file
	if was.Arch != f.Arch || len(f.BuildID) == 0 || !bytes.Equal(was.BuildID, f.BuildID) || len(was.Sections) != len(f.Sections) ||
		len(f.Sections) == 0 || was.Base != nil || f.Base != nil || len(was.Units) != 1 || len(f.Units) != 1 || !slices.Equal(was.Ends, f.Ends) {
		return 0, false
	}
	delta = f.Sections[0].First - was.Sections[0].First
	for i, s := range was.Sections {
		if s.First += delta; s != f.Sections[i] {
			return 0, false
		}
	}
	image := was.image()
	moved := func(a uint64) uint64 {
		if image.Contains(a) {
			return a + delta
		}
		return a
	}
	u, v := &was.Units[0], &f.Units[0]
	if u.Name != v.Name || (u.Unwind == nil) != (v.Unwind == nil) || len(u.Symbols) != len(v.Symbols) || len(u.Variables) != len(v.Variables) ||
		!u.samePerCPU(v, moved) || !bytes.Equal(u.BTF, v.BTF) {
		return 0, false
	}
	for i, s := range u.Symbols {
		if s.Addr = moved(s.Addr); s != v.Symbols[i] {
			return 0, false
		}
	}
	for i, x := range u.Variables {
		if x.Addr = moved(x.Addr); x != v.Variables[i] {
			return 0, false
		}
	}
	return delta, true
}

func (u *Unit) samePerCPU(v *Unit, moved func(uint64) uint64) bool {
	if u.PerCPU == nil || v.PerCPU == nil {
		return u.PerCPU == v.PerCPU
	}
	return moved(u.PerCPU.First) == v.PerCPU.First && u.PerCPU.Size() == v.PerCPU.Size()
}

// image is where addresses move with the kernel: from its first section on, for there are
// symbols behind its last one, too. What is not part of it is told by comparing symbols.
func (f *File) image() mem.Range {
	r := mem.Range{First: ^uint64(0), Last: ^uint64(0)}
	for _, s := range f.Sections {
		r.First = min(r.First, s.First)
	}
	return r
}
