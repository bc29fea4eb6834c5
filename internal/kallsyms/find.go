package kallsyms

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// digits is what Find looks for: every kernel has all digits in symbol names,
// and a character in use stands for itself in token_table.
var digits = []byte("0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00")

const (
	// maxHits bounds how many places that look like a token table are tried.
	maxHits = 1024
	// maxBack bounds the search for markers before token_table: with the largest
	// seqs_of_names between them.
	maxBack = 3*maxSymbols + 1<<16
	// maxWork bounds the candidates for names that one Find looks at, in symbols.
	// A real kernel needs a few million.
	maxWork = 200 << 20
	// maxGroup is the largest step from one marker to the next, minGroup the
	// smallest: a length and one token per symbol.
	maxGroup = markerStep * (maxName + 2)
	minGroup = markerStep * 2
)

// finder is the state of one Find.
type finder struct {
	image []byte
	base  uint64
	work  int
	rough []int // what roughMarkers read
}

// Find searches a kernel image for the tables. image is the kernel's memory
// from _text on, contiguous, and base the runtime address of its first byte.
// The image is not kept.
//
// What is found must hold together: the token index, every marker, every name
// and type letter, the order of the addresses, and _text must be base (or, in
// kernels that list only functions, _stext close behind it). If nothing does, what
// does but for a part that was overwritten is taken; see Table.Damage. Nothing of the
// kind is ErrNotFound, tables that contradict themselves are ErrCorrupt, and more
// than one set or reading that passes is ErrAmbiguous.
//
// The idea of the search, from the token table outwards, is that of
// vmlinux-to-elf.
func Find(image []byte, base uint64) (*Table, error) {
	f := &finder{image: image, base: base, work: maxWork}
	var found []*Table
	var problems []error
	at := 0
	for range maxHits {
		hit := bytes.Index(image[at:], digits)
		if hit < 0 {
			break
		}
		at += hit + 1
		tables, err := f.tablesAround(at - 1)
		found = append(found, tables...)
		if err != nil && !errors.Is(err, ErrNotFound) {
			problems = append(problems, err)
		}
	}
	if whole := slices.DeleteFunc(slices.Clone(found), func(t *Table) bool { return t.Damage() != "" }); len(whole) > 0 {
		found = whole // a reading without damage is the better one
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, ambiguous(found)
	case len(problems) > 0:
		return nil, errors.Join(problems...)
	}
	return nil, fmt.Errorf("%w in %#x bytes from %#x", ErrNotFound, len(image), base)
}

// ambiguous lists the contenders, but not thousands of them.
func ambiguous(found []*Table) error {
	var layouts []string
	for _, t := range found[:min(len(found), 8)] {
		layouts = append(layouts, fmt.Sprintf("%d symbols, %s", t.Len(), t.layout))
	}
	return fmt.Errorf("%w: %d readings: %s", ErrAmbiguous, len(found), strings.Join(layouts, "; "))
}

// tablesAround reads all tables around a token table whose digits are at hit,
// in every way that holds together.
func (f *finder) tablesAround(hit int) ([]*Table, error) {
	tt, ok := f.tokenTable(hit)
	if !ok {
		return nil, ErrNotFound
	}
	where := fmt.Sprintf("token table at %#x", f.base+uint64(tt.start))
	region, ok := f.namesBefore(tt.start)
	if !ok {
		region, ok = f.damagedNamesBefore(&tt)
	}
	if !ok {
		return nil, fmt.Errorf("%w: %s: no names before it", ErrCorrupt, where)
	}
	n, err := newNames(tt.tokens, bytes.Clone(f.image[region.names:region.namesEnd]), region.count)
	if err != nil {
		if mended, markErr := markedNames(tt.tokens, f.image[region.names:region.namesEnd], region.count, region.markers); markErr == nil {
			n, err = mended, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, where, err)
	}
	tables, err := f.withAddresses(n, region, tt.end)
	if err != nil {
		return nil, fmt.Errorf("%w: %s, %d symbols: %w", ErrCorrupt, where, region.count, err)
	}
	return tables, nil
}

// tokenTable is a token_table with its token_index, as offsets in the image.
type tokenTable struct {
	tokens *tokens
	start  int // of token_table
	end    int // of token_index
}

// tokenTable finds the token table whose token '0' is at hit. Token 1 starts at
// a definite place; where token 0 does is not certain, since padding before it
// and an empty string look alike, so every aligned start is tried.
func (f *finder) tokenTable(hit int) (tokenTable, bool) {
	second := hit
	for range int('0') - 1 {
		var ok bool
		if second, ok = f.stringBefore(second); !ok {
			return tokenTable{}, false
		}
	}
	for start := second - 1; start >= 0 && start >= second-1-maxName; start-- {
		if start < second-1 && f.image[start] == 0 {
			break
		}
		if f.alignUp(start, 4) != start {
			continue
		}
		if tt, ok := f.tokenTableAt(start); ok {
			return tt, true
		}
	}
	return tokenTable{}, false
}

// stringBefore returns the start of the string that ends before offset at.
func (f *finder) stringBefore(at int) (int, bool) {
	end := at - 1
	if end < 0 || f.image[end] != 0 {
		return 0, false
	}
	low := max(0, end-maxName)
	nul := bytes.LastIndexByte(f.image[low:end], 0)
	return low + nul + 1, nul >= 0
}

// tokenTableAt checks for a token table with its index at start.
func (f *finder) tokenTableAt(start int) (tokenTable, bool) {
	var index [tokenCount]uint16
	t, size, err := parseTokens(f.image[start:], &index)
	if err != nil {
		return tokenTable{}, false
	}
	var want [2 * tokenCount]byte
	for i, v := range index {
		binary.LittleEndian.PutUint16(want[2*i:], v)
	}
	// Padding to 8 is what kernels have; 256 leaves room for other linkers.
	after := f.image[start+size:]
	at := bytes.Index(after[:min(len(after), len(want)+256)], want[:])
	if at < 0 {
		at = damagedIndex(after, &index)
	}
	if at < 0 {
		return tokenTable{}, false
	}
	return tokenTable{tokens: t, start: start, end: start + size + at + len(want)}, true
}

// damagedIndex is where behind a token table its index is, overwritten in part, -1 if
// there is none.
func damagedIndex(after []byte, index *[tokenCount]uint16) int {
	for at := 0; at < 8 && at+2*tokenCount <= len(after); at++ {
		if isPadding(after[:at]) && fit(index, after[at:]) {
			return at
		}
	}
	return -1
}

// alignUp rounds an offset in the image up so that its address is aligned.
func (f *finder) alignUp(offset, align int) int {
	low := int(f.base) & (align - 1)
	return (offset+low+align-1)&^(align-1) - low
}
