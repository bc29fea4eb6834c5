package vmstate

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sort"
)

// A section of a device says where it starts but not how long it is. QEMU knows
// the length because it knows the device; a reader that does not knows only this:
//
//	header   0x04, id be32, name length u8, name, instance be32, version be32
//	payload  of unknown length
//	footer   0x7e, id be32
//	next     another header, or the end: 0x00, and nothing or the description
//
// So a section can end wherever its own footer is followed by a header or by
// the end. One such place alone may be a chance (or a guest that plants bytes
// in a device), but from there a chain of sections must reach the end exactly.
// split counts the chains: one is the answer, several are an error.
//
// QEMU writes sections by priority and only within one priority by ascending id
// (savevm.c:savevm_state_handler_insert), so order says nothing; ids and
// (name, instance) are unique, and that is checked at the end.

// candidate is a place where a section may end.
type candidate struct {
	at    int // of the footer
	id    uint32
	final bool   // the end of the stream follows
	next  header // otherwise this
	ways  int    // chains from here to the end: 0, 1, or 2 for more
}

// split finds the sections of devices in b from offset start to the end.
func split(b []byte, start int) ([]Section, error) {
	if isEnd(b, start) {
		return nil, nil
	}
	first, ok := parseSectionHeader(b, start)
	if !ok || first.kind != Full {
		return nil, fmt.Errorf("%w: no section at offset %#x", ErrCorrupt, start)
	}
	cands, furthest := reachable(b, first)
	byID := countWays(cands)
	switch byID.ways(first) {
	case 0:
		return nil, fmt.Errorf("%w: no end of section %q (payload at offset %#x) leads to the end of the stream",
			ErrCorrupt, furthest.name, furthest.payload)
	case 1:
		return follow(b, byID, first)
	}
	return nil, ambiguity(byID, first)
}

// isEnd reports whether the stream ends at p: 0x00 is its last byte, or is
// followed by a description that ends with the stream.
func isEnd(b []byte, p int) bool {
	if p >= len(b) || b[p] != recordEOF {
		return false
	}
	return p == len(b)-1 || descriptionAt(b, p+1) != nil
}

// reachable lists, in ascending order, the places where some chain of sections
// that begins with first could have got to. furthest is the last header on any
// such chain. One pass: b is looked at once, however many candidates there are.
func reachable(b []byte, first header) (cands []candidate, furthest header) {
	payloads := map[uint32]int{first.id: first.payload} // lowest payload offset by id
	furthest = first
	for p := first.payload; p < len(b); p++ {
		n := bytes.IndexByte(b[p:], recordFooter)
		if n < 0 || p+n+footerSize > len(b) {
			break
		}
		p += n
		c := candidate{at: p, id: binary.BigEndian.Uint32(b[p+1:])}
		if from, open := payloads[c.id]; !open || p < from {
			continue
		}
		next := p + footerSize
		if c.final = isEnd(b, next); !c.final {
			var ok bool
			if c.next, ok = parseSectionHeader(b, next); !ok || c.next.kind != Full {
				continue
			}
			if _, seen := payloads[c.next.id]; !seen {
				payloads[c.next.id] = c.next.payload
			}
			furthest = c.next
		}
		cands = append(cands, c)
	}
	return cands, furthest
}

// ends are the candidates with one id, in descending order; sum[i] is the
// number of chains from the first i+1 of them, at most 2.
type ends struct {
	cands []*candidate
	sum   []int
}

type endsByID map[uint32]*ends

// countWays fills in ways, last candidate first.
func countWays(cands []candidate) endsByID {
	byID := endsByID{}
	for i := len(cands) - 1; i >= 0; i-- {
		c := &cands[i]
		if c.ways = 1; !c.final {
			c.ways = byID.ways(c.next)
		}
		e := byID[c.id]
		if e == nil {
			e = &ends{}
			byID[c.id] = e
		}
		sum := c.ways
		if n := len(e.sum); n > 0 {
			sum += e.sum[n-1]
		}
		e.cands = append(e.cands, c)
		e.sum = append(e.sum, min(sum, 2))
	}
	return byID
}

// choices returns how many of the ends with h's id are behind its header: the
// first so many of byID[h.id].
func (byID endsByID) choices(h header) int {
	e := byID[h.id]
	if e == nil {
		return 0
	}
	return sort.Search(len(e.cands), func(i int) bool { return e.cands[i].at < h.payload })
}

// ways is the number of chains from the section of h to the end, at most 2.
func (byID endsByID) ways(h header) int {
	n := byID.choices(h)
	if n == 0 {
		return 0
	}
	return byID[h.id].sum[n-1]
}

// last returns the last place where the section of h can end so that a chain
// reaches the end. Precondition: ways(h) > 0.
func (byID endsByID) last(h header) *candidate {
	e := byID[h.id]
	return e.cands[sort.SearchInts(e.sum, 1)]
}

// ambiguity names the section behind which the chains part. Precondition:
// ways(h) == 2.
func ambiguity(byID endsByID, h header) error {
	last := byID.last(h)
	for last.ways > 1 {
		h = last.next
		last = byID.last(h)
	}
	e := byID[h.id]
	other := e.cands[sort.SearchInts(e.sum, 2)]
	return fmt.Errorf("%w: section %q (payload at offset %#x) can end at %#x or at %#x",
		ErrCorrupt, h.name, h.payload, other.at, last.at)
}

// follow makes sections of the only chain.
func follow(b []byte, byID endsByID, h header) ([]Section, error) {
	type key struct {
		name     string
		instance uint32
	}
	var out []Section
	ids := map[uint32]bool{}
	names := map[key]bool{}
	for {
		k := key{h.name, h.instance}
		if ids[h.id] || names[k] {
			return nil, fmt.Errorf("%w: section %q, instance %d, id %d at offset %#x is there twice",
				ErrCorrupt, h.name, h.instance, h.id, h.payload)
		}
		ids[h.id], names[k] = true, true
		end := byID.last(h)
		out = append(out, h.section(b, end.at))
		if end.final {
			return out, nil
		}
		h = end.next
	}
}
