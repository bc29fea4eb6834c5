package kallsyms

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// maxTextGap is how far behind the start of the image _stext may be: 64 KiB on
// arm64, a page on riscv, nothing on x86-64.
const maxTextGap = 1 << 20

// withAddresses tries every place and encoding that the addresses of n may have
// and returns a table for each that fits. indexEnd is the end of token_index.
func (f *finder) withAddresses(n *names, r nameRegion, indexEnd int) ([]*Table, error) {
	all := f.addressCandidates(r, indexEnd)
	fitting := f.anchored(n, all)
	if len(fitting) == 0 && len(n.lost) > 0 {
		fitting = f.based(all, r.count)
	}
	if _, ok := n.anchor(); !ok && len(fitting) == 0 {
		return nil, errors.New("no _text or _stext among them")
	}
	var tables, damaged []*Table
	var problems []error
	for _, c := range fitting {
		addrs, lost, err := c.decode(r.count)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", c.layout, err))
			continue
		}
		t := newTable(n, addrs, lost, c.start, c.layout)
		if lost != nil {
			damaged = append(damaged, t)
		} else {
			tables = append(tables, t)
		}
	}
	if len(tables) == 0 {
		tables = damaged // a reading without damage is the better one
	}
	if len(tables) == 0 {
		problems = append(problems, fmt.Errorf("no address table puts the kernel's start at %#x", f.base))
		return nil, errors.Join(problems...)
	}
	return tables, nil
}

// anchored are the candidates that put _text where the image begins, or, where there is
// none, _stext close behind it.
func (f *finder) anchored(n *names, all []candidate) (out []candidate) {
	anchor, ok := n.anchor()
	if !ok {
		return nil
	}
	_, exact := n.find("_text")
	for _, c := range all {
		c.start = c.at(anchor)
		if c.start == f.base || !exact && c.start-f.base <= maxTextGap {
			out = append(out, c)
		}
	}
	return out
}

// based are the candidates that put any symbol where the image begins: _text can be one
// whose name is lost.
func (f *finder) based(all []candidate, count int) (out []candidate) {
	for _, c := range all {
		c.start = f.base
		for i := range count {
			if c.at(i) == f.base {
				out = append(out, c)
				break
			}
		}
	}
	return out
}

// candidate is a place and an encoding for the addresses.
type candidate struct {
	addresses
	layout string
	start  uint64 // the address of _text or _stext by these
}

// addressCandidates lists the readings that the image has room for.
func (f *finder) addressCandidates(r nameRegion, indexEnd int) []candidate {
	var out []candidate
	add := func(e encoding, at int, base uint64, layout string) {
		size := r.count * e.size()
		if at < 0 || at+size > len(f.image) {
			return
		}
		out = append(out, candidate{addresses: addresses{e, f.image[at : at+size], base}, layout: layout + e.String()})
	}
	relative := func(at, baseAt int, layout string) {
		if baseAt < 0 || baseAt+8 > len(f.image) {
			return
		}
		base := binary.LittleEndian.Uint64(f.image[baseAt:])
		add(baseRelative, at, base, layout)
		add(absolutePercpu, at, base, layout)
	}

	const before, after = "before the names, ", "after the token index, "
	add(absolute, r.numSyms-8*r.count, 0, before)
	relative(r.numSyms-8-(4*r.count+7)&^7, r.numSyms-8, before)

	start := f.alignUp(indexEnd, 8)
	add(absolute, start, 0, after)
	relative(start, f.alignUp(start+4*r.count, 8), after)

	start = f.alignUp(indexEnd, 4)
	add(placeRelative, start, f.base+uint64(start), after)
	return out
}

// anchor is the index of the symbol that marks the start of the kernel.
func (n *names) anchor() (int, bool) {
	if i, ok := n.find("_text"); ok {
		return i, true
	}
	return n.find("_stext")
}
