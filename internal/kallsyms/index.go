package kallsyms

import (
	"hash/maphash"
	"math/bits"
	"strings"
)

// scansMax is how many names are looked for one by one before there is an index. A
// look at the compressed names takes some 0.3 ms for Linux 6.1, the index 15 ms and
// 2 MB: who wants ten symbols and ends should not pay for it.
const scansMax = 24

// find returns the first symbol with this name.
func (n *names) find(name string) (int, bool) {
	if x := n.nameIndex(); x != nil {
		return x.find(n, name)
	}
	return n.scan(0, name)
}

// nextSame returns the symbol after i that has the same name, which it is told.
func (n *names) nextSame(i int, name string) (int, bool) {
	if x := n.index.made.Load(); x != nil {
		return int(x.same[i]) - 1, x.same[i] != 0
	}
	return n.scan(i+1, name)
}

// nameIndex returns the index if it is worth while to have one.
func (n *names) nameIndex() *nameIndex {
	if x := n.index.made.Load(); x != nil {
		return x
	}
	if n.lookups.Add(1) <= scansMax {
		return nil
	}
	n.index.once.Do(func() { n.index.made.Store(newNameIndex(n)) })
	return n.index.made.Load()
}

// scan finds the first symbol from number first on with this name, without an index.
func (n *names) scan(first int, name string) (int, bool) {
	if first >= n.count || len(name) > maxName {
		return 0, false
	}
	// Most names are told apart by their first token.
	var may [tokenCount]bool
	for c, token := range n.tokens {
		may[c] = token == "" || strings.HasPrefix(name, token[1:])
	}
	at := int(n.start[first/startStep])
	for i := first &^ (startStep - 1); i < n.count; i++ {
		start, end := span(n.data, at)
		if start < end && may[n.data[start]] && i >= first && n.tokens.spells(n.data[start:end], name) {
			return i, true
		}
		at = end
	}
	return 0, false
}

// nameIndex is a hash table over the names. A number i+1 stands for symbol i, 0
// for none.
type nameIndex struct {
	seed maphash.Seed // random, so no guest can choose names that collide
	head []uint32     // by hash: first of a chain of symbols, each with another name
	next []uint32     // by symbol: the chain
	same []uint32     // by symbol: the next symbol with the same name
}

// newNameIndex runs from last to first, so that equal names are chained in
// ascending order.
func newNameIndex(n *names) *nameIndex {
	x := &nameIndex{seed: maphash.MakeSeed(), head: make([]uint32, 1<<bits.Len(uint(n.count))),
		next: make([]uint32, n.count), same: make([]uint32, n.count)}
	hashes := make([]uint32, n.count)
	var text []byte
	for block := len(n.start) - 1; block >= 0; block-- {
		var ends [startStep + 1]int
		first := block * startStep
		count := min(startStep, n.count-first)
		ends[0] = int(n.start[block])
		for k := range count {
			_, ends[k+1] = span(n.data, ends[k])
		}
		for k := count - 1; k >= 0; k-- {
			start, end := span(n.data, ends[k])
			if start == end {
				continue
			}
			text = n.tokens.appendName(text[:0], n.data[start:end])
			hash := maphash.Bytes(x.seed, text[1:])
			hashes[first+k] = uint32(hash >> 32)
			x.insert(n, first+k, &x.head[hash&uint64(len(x.head)-1)], hashes, text[1:])
		}
	}
	return x
}

// insert puts symbol i into the chain that begins at link, in the place of the
// symbol with the same name if there is one. hashes holds part of the hash of
// every symbol in the table, which saves most comparisons.
func (x *nameIndex) insert(n *names, i int, link *uint32, hashes []uint32, name []byte) {
	for *link != 0 {
		j := *link - 1
		if hashes[j] == hashes[i] && n.tokens.spells(n.packed(int(j)), string(name)) {
			x.same[i], x.next[i] = j+1, x.next[j]
			break
		}
		link = &x.next[j]
	}
	*link = uint32(i + 1)
}

func (x *nameIndex) find(n *names, name string) (int, bool) {
	hash := maphash.String(x.seed, name)
	for link := x.head[hash&uint64(len(x.head)-1)]; link != 0; link = x.next[link-1] {
		if i := int(link - 1); n.tokens.spells(n.packed(i), name) {
			return i, true
		}
	}
	return 0, false
}
