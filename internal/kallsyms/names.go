package kallsyms

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

const (
	tokenCount = 256
	// maxTokenTable bounds token_table: token_index entries are u16.
	maxTokenTable = 1 << 16
	// maxName is KSYM_NAME_LEN since v6.1, with the type letter.
	maxName = 512
	// maxSymbols bounds num_syms. The largest distribution kernels have
	// 200 000, builds with every driver linked in half a million.
	maxSymbols = 1 << 22
	// markerStep is the number of symbols from one marker to the next.
	markerStep = 256
)

// tokens is what each token number stands for.
type tokens [tokenCount]string

// parseTokens splits the 256 strings at the start of b, and returns how many
// bytes they take. index receives where each of them starts.
func parseTokens(b []byte, index *[tokenCount]uint16) (*tokens, int, error) {
	b = b[:min(len(b), maxTokenTable)]
	t, at := &tokens{}, 0
	for i := range t {
		n := bytes.IndexByte(b[at:], 0)
		if n < 0 {
			return nil, 0, fmt.Errorf("token %d has no end", i)
		}
		for _, c := range b[at : at+n] {
			if c <= ' ' || c == 0x7f {
				return nil, 0, fmt.Errorf("token %d holds byte %#x", i, c)
			}
		}
		t[i], index[i] = string(b[at:at+n]), uint16(at)
		at += n + 1
	}
	return t, at, nil
}

// fit reports whether stored is the token_index of a token_table that was split at
// index. The table is what is needed, and the index can be made from it, so numbers that
// were overwritten do not matter. But if it is the table that was overwritten, a string
// more or less makes every number behind it wrong: then they are still where strings
// begin, and the last is one of them.
func fit(index *[tokenCount]uint16, stored []byte) bool {
	wrong := func(i int) bool { return binary.LittleEndian.Uint16(stored[2*i:]) != index[i] }
	count := 0
	for i := range index {
		if !wrong(i) {
			continue
		}
		if count++; count > tokenCount/maxDamage || i == tokenCount-1 {
			return false
		}
		if alone := (i == 0 || !wrong(i-1)) && !wrong(i+1); alone {
			continue
		}
		if _, begins := slices.BinarySearch(index[:], binary.LittleEndian.Uint16(stored[2*i:])); begins {
			return false
		}
	}
	return true
}

// names is the list of symbol names. It stays compressed, as in the kernel:
// expanded names take twice the space and most are never asked for.
type names struct {
	tokens *tokens
	data   []byte
	count  int
	start  []uint32     // in data, of the length byte of every startStep-th symbol
	lost   map[int]bool // names that are damaged; nil if none is
	added  int          // by add

	lookups atomic.Int32 // that had no index
	index   struct {
		once sync.Once
		made atomic.Pointer[nameIndex]
	}
}

// startStep is the number of symbols from one remembered start to the next: walking
// half as many costs less than the memory to remember each.
const startStep = 16

// splitName finds the tokens of the name at offset at, data[start:end]. Its
// length is one byte, or since v6.1 two bytes of ULEB128. Lengths that need the
// second form did not exist before, so one rule reads both.
func splitName(data []byte, at int) (start, end int, ok bool) {
	if at >= len(data) {
		return 0, 0, false
	}
	length := int(data[at])
	at++
	if length >= 0x80 {
		if at >= len(data) || data[at] >= 0x80 {
			return 0, 0, false
		}
		length = length&0x7f | int(data[at])<<7
		at++
	}
	if length == 0 || length > maxName || length > len(data)-at {
		return 0, 0, false
	}
	return at, at + length, true
}

// span is splitName in names that were checked.
func span(data []byte, at int) (start, end int) {
	if data[at] == lostName {
		return at + 1, at + 1
	}
	start, end, _ = splitName(data, at)
	return start, end
}

// nameChecker checks names made of some tokens.
type nameChecker struct {
	tokens *tokens
	size   [tokenCount]int
}

func newNameChecker(t *tokens) *nameChecker {
	c := &nameChecker{tokens: t}
	for i, token := range t {
		c.size[i] = len(token)
	}
	return c
}

// name checks the name at offset at, and returns its end.
func (c *nameChecker) name(data []byte, at int) (int, error) {
	start, end, ok := splitName(data, at)
	if !ok {
		return 0, errors.New("has a name without an end")
	}
	total := 0
	for _, b := range data[start:end] {
		total += c.size[b]
	}
	if total < 2 || total > maxName || !validType(c.tokens.first(data[start:end])) {
		return 0, fmt.Errorf("is named %q", c.tokens.appendName(nil, data[start:end]))
	}
	return end, nil
}

// names checks as many names from offset at on as ends has room for, which it fills.
func (c *nameChecker) names(data []byte, at int, ends []int) error {
	for i := range ends {
		end, err := c.name(data, at)
		if err != nil {
			return fmt.Errorf("symbol %d %w", i, err)
		}
		ends[i], at = end, end
	}
	return nil
}

// newNames splits and checks the count names at the start of data, which it
// takes over. What is behind them is left alone.
func newNames(t *tokens, data []byte, count int) (*names, error) {
	if count <= 0 || count > maxSymbols || count > len(data)/2 {
		return nil, fmt.Errorf("%d symbols in %d bytes of names", count, len(data))
	}
	n := &names{tokens: t, count: count, start: make([]uint32, 0, count/startStep+1)}
	check, at := newNameChecker(t), 0
	for i := range count {
		end, err := check.name(data, at)
		if err != nil {
			return nil, fmt.Errorf("symbol %d %w", i, err)
		}
		if i%startStep == 0 {
			n.start = append(n.start, uint32(at))
		}
		at = end
	}
	n.data = data[:at:at]
	return n, nil
}

// packed returns the token numbers of symbol i's name.
func (n *names) packed(i int) []byte {
	at := int(n.start[i/startStep])
	for range i % startStep {
		_, at = span(n.data, at)
	}
	start, end := span(n.data, at)
	return n.data[start:end]
}

// symbolType returns the type letter.
func (n *names) symbolType(i int) byte { return n.tokens.first(n.packed(i)) }

// first is the first character of what tokens spell. Empty tokens before it are
// legal, if never seen.
func (t *tokens) first(packed []byte) byte {
	for _, c := range packed {
		if token := t[c]; token != "" {
			return token[0]
		}
	}
	return 0
}

// appendName expands a name, type letter first. It stops when the name has passed
// maxName: tokens are strings of any length.
func (t *tokens) appendName(b []byte, packed []byte) []byte {
	for _, c := range packed {
		b = append(b, t[c]...)
		if len(b) > maxName {
			break
		}
	}
	return b
}

// name returns symbol i's name and type; both are zero if they are lost.
func (n *names) name(i int) (string, byte) {
	var buf [128]byte
	b := n.tokens.appendName(buf[:0], n.packed(i))
	if len(b) == 0 {
		return "", 0
	}
	return string(b[1:]), b[0]
}

// spells reports whether tokens spell a type letter and this name.
func (t *tokens) spells(packed []byte, name string) bool {
	kind := true // the type letter is still to come
	for _, c := range packed {
		token := t[c]
		if kind && token != "" {
			token, kind = token[1:], false
		}
		if len(token) > len(name) || name[:len(token)] != token {
			return false
		}
		name = name[len(token):]
	}
	return name == ""
}

// validType reports whether c is a letter that nm(1) prints for a symbol with
// an address, or '?'.
func validType(c byte) bool {
	return strings.IndexByte("AaBbCcDdGgIiNnPpRrSsTtVvWwu?", c) >= 0
}
