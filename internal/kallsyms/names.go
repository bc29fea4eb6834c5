package kallsyms

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"math/bits"
	"strings"
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

// names is the list of symbol names. It stays compressed, as in the kernel:
// expanded names take twice the space and most are never asked for.
type names struct {
	tokens *tokens
	data   []byte
	start  []uint32 // in data, of each symbol's length byte

	// A hash table over the names. A number i+1 stands for symbol i, 0 for none.
	// The seed is random, so no guest can choose names that collide.
	seed maphash.Seed
	head []uint32 // by hash: first of a chain of symbols, each with another name
	next []uint32 // by symbol: the chain
	same []uint32 // by symbol: the next symbol with the same name
}

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

// newNames splits and checks the count names at the start of data, which it
// takes over, and indexes them.
func newNames(t *tokens, data []byte, count int) (*names, error) {
	if count <= 0 || count > maxSymbols || count > len(data)/2 {
		return nil, fmt.Errorf("%d symbols in %d bytes of names", count, len(data))
	}
	n := &names{tokens: t, start: make([]uint32, count)}
	at := 0
	for i := range n.start {
		_, end, ok := splitName(data, at)
		if !ok {
			return nil, fmt.Errorf("name of symbol %d has no end", i)
		}
		n.start[i] = uint32(at)
		at = end
	}
	n.data = data[:at:at]
	return n, n.buildIndex()
}

// buildIndex fills the hash table, and checks every name on the way. It runs
// from last to first, so that equal names are chained in ascending order.
func (n *names) buildIndex() error {
	count := len(n.start)
	n.seed = maphash.MakeSeed()
	n.head = make([]uint32, 1<<bits.Len(uint(count)))
	n.next = make([]uint32, count)
	n.same = make([]uint32, count)
	hashes := make([]uint32, count)
	var text []byte
	for i := count - 1; i >= 0; i-- {
		text = n.appendName(text[:0], i)
		if len(text) < 2 || len(text) > maxName || !validType(text[0]) {
			return fmt.Errorf("symbol %d is named %q", i, text[:min(len(text), maxName)])
		}
		hash := maphash.Bytes(n.seed, text[1:])
		hashes[i] = uint32(hash >> 32)
		n.insert(i, &n.head[hash&uint64(len(n.head)-1)], hashes, text[1:])
	}
	return nil
}

// insert puts symbol i into the chain that begins at link, in the place of the
// symbol with the same name if there is one. hashes holds part of the hash of
// every symbol in the table, which saves most comparisons.
func (n *names) insert(i int, link *uint32, hashes []uint32, name []byte) {
	for *link != 0 {
		j := *link - 1
		if hashes[j] == hashes[i] && n.equal(int(j), string(name)) {
			n.same[i], n.next[i] = j+1, n.next[j]
			break
		}
		link = &n.next[j]
	}
	*link = uint32(i + 1)
}

// find returns the first symbol with this name.
func (n *names) find(name string) (int, bool) {
	hash := maphash.String(n.seed, name)
	for link := n.head[hash&uint64(len(n.head)-1)]; link != 0; link = n.next[link-1] {
		if i := int(link - 1); n.equal(i, name) {
			return i, true
		}
	}
	return 0, false
}

// nextSame returns the symbol after i that has the same name.
func (n *names) nextSame(i int) (int, bool) {
	return int(n.same[i]) - 1, n.same[i] != 0
}

// packed returns the token numbers of symbol i's name.
func (n *names) packed(i int) []byte {
	start, end, _ := splitName(n.data, int(n.start[i]))
	return n.data[start:end]
}

// symbolType returns the type letter, the first character of what the tokens
// spell. Empty tokens before it are legal, if never seen.
func (n *names) symbolType(i int) byte {
	for _, c := range n.packed(i) {
		if t := n.tokens[c]; t != "" {
			return t[0]
		}
	}
	return 0
}

// appendName expands symbol i, type letter first. It stops when the name has
// passed maxName: tokens are strings of any length.
func (n *names) appendName(b []byte, i int) []byte {
	for _, c := range n.packed(i) {
		b = append(b, n.tokens[c]...)
		if len(b) > maxName {
			break
		}
	}
	return b
}

// name returns symbol i's name and type.
func (n *names) name(i int) (string, byte) {
	var buf [128]byte
	b := n.appendName(buf[:0], i)
	return string(b[1:]), b[0]
}

// equal reports whether symbol i has this name.
func (n *names) equal(i int, name string) bool {
	kind := true // the type letter is still to come
	for _, c := range n.packed(i) {
		t := n.tokens[c]
		if kind && t != "" {
			t, kind = t[1:], false
		}
		if len(t) > len(name) || name[:len(t)] != t {
			return false
		}
		name = name[len(t):]
	}
	return name == ""
}

// validType reports whether c is a letter that nm(1) prints for a symbol with
// an address, or '?'.
func validType(c byte) bool {
	return strings.IndexByte("AaBbCcDdGgIiNnPpRrSsTtVvWwu?", c) >= 0
}
