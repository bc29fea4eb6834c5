package dump

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/adler32"
	"math/bits"
)

// inflatePage undoes zlib (RFC 1950, RFC 1951) for a page at once, with its checksum.
// A reader of streams, as the libraries have it, spends most of its time on a page on
// what only long streams need: a window, copies, calls by the byte.
func (f *inflater) inflatePage(in []byte, size int) ([]byte, error) {
	const head, sum = 2, 4
	if len(in) < head+sum {
		return nil, errInflateEnd
	}
	if h := binary.BigEndian.Uint16(in); in[0]&0xf != 8 || in[0]>>4 > 7 || h%31 != 0 || in[1]&0x20 != 0 {
		return nil, fmt.Errorf("zlib: no header: % x", in[:head])
	}
	f.in, f.at, f.bits, f.count = in, head, 0, 0
	f.out = make([]byte, size)
	n, err := f.run()
	if err != nil {
		return nil, fmt.Errorf("zlib: byte %#x of %#x: %w", f.at, len(in), err)
	}
	if n != size {
		return nil, fmt.Errorf("zlib: %d bytes", n)
	}
	at := f.at - int(f.count/8) // what was read ahead
	if at+sum > len(in) {
		return nil, errInflateEnd
	}
	if got, want := adler32.Checksum(f.out), binary.BigEndian.Uint32(in[at:]); got != want {
		return nil, fmt.Errorf("zlib: checksum %#x, not %#x", got, want)
	}
	page := f.out
	f.in, f.out = nil, nil // they are the caller's
	return page, nil
}

var (
	errInflateEnd  = errors.New("the data ends too early")
	errInflateMore = errors.New("more than a page")
	errInflateBack = errors.New("a copy from before the beginning")
	errInflateCode = errors.New("a code that does not exist")
	errInflateKind = errors.New("a block of no known kind")
)

// inflater is for one goroutine at a time.
type inflater struct {
	in    []byte
	at    int
	bits  uint64 // read and not used, the next one lowest
	count uint   // of them
	out   []byte

	literals, distances codes
	lengths             [maxLiterals + maxDistances]uint8
}

// Sizes of the alphabets (RFC 1951, 3.2.5 and 3.2.7), with the codes that only fixed
// blocks have.
const (
	maxLiterals  = 288
	maxDistances = 32
	endOfBlock   = 256
	longestCode  = 15
)

// fill reads ahead, to 56 bits or all that there is. Above count there may be some of
// the bits that follow.
func (f *inflater) fill() {
	if len(f.in)-f.at >= 8 {
		f.bits |= binary.LittleEndian.Uint64(f.in[f.at:]) << f.count
		f.at += int((63 - f.count) / 8)
		f.count |= 56
		return
	}
	for f.count <= 56 && f.at < len(f.in) {
		f.bits |= uint64(f.in[f.at]) << f.count
		f.at++
		f.count += 8
	}
}

// take takes n bits, at most 32.
func (f *inflater) take(n uint) (uint32, error) {
	if f.count < n {
		if f.fill(); f.count < n {
			return 0, errInflateEnd
		}
	}
	v := uint32(f.bits & (1<<n - 1))
	f.bits >>= n
	f.count -= n
	return v, nil
}

// run goes through the blocks and returns how many bytes they have.
func (f *inflater) run() (n int, err error) {
	for {
		head, err := f.take(3)
		if err != nil {
			return n, err
		}
		switch head >> 1 {
		case 0:
			n, err = f.stored(n)
		case 1:
			if err = f.fixed(); err == nil {
				n, err = f.block(n)
			}
		case 2:
			if err = f.dynamic(); err == nil {
				n, err = f.block(n)
			}
		default:
			err = errInflateKind
		}
		if err != nil || head&1 != 0 {
			return n, err
		}
	}
}

// stored copies bytes as they are.
func (f *inflater) stored(n int) (int, error) {
	f.bits >>= f.count % 8
	f.count -= f.count % 8
	f.at -= int(f.count / 8)
	f.bits, f.count = 0, 0
	if len(f.in)-f.at < 4 {
		return n, errInflateEnd
	}
	size, not := binary.LittleEndian.Uint16(f.in[f.at:]), binary.LittleEndian.Uint16(f.in[f.at+2:])
	f.at += 4
	switch {
	case size != ^not:
		return n, errInflateKind
	case int(size) > len(f.in)-f.at:
		return n, errInflateEnd
	case int(size) > len(f.out)-n:
		return n, errInflateMore
	}
	n += copy(f.out[n:], f.in[f.at:f.at+int(size)])
	f.at += int(size)
	return n, nil
}

// fixed makes the codes that need no description (RFC 1951, 3.2.6).
func (f *inflater) fixed() error {
	for i := range maxLiterals {
		switch {
		case i < 144:
			f.lengths[i] = 8
		case i < 256:
			f.lengths[i] = 9
		case i < 280:
			f.lengths[i] = 7
		default:
			f.lengths[i] = 8
		}
	}
	if err := f.literals.make(f.lengths[:maxLiterals]); err != nil {
		return err
	}
	for i := range maxDistances {
		f.lengths[i] = 5
	}
	return f.distances.make(f.lengths[:maxDistances])
}

// lengthOrder is that of the lengths of the code for lengths (RFC 1951, 3.2.7).
var lengthOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// dynamic reads the codes of a block.
func (f *inflater) dynamic() error {
	head, err := f.take(14)
	if err != nil {
		return err
	}
	literals, distances, count := int(head&31)+257, int(head>>5&31)+1, int(head>>10)+4
	if literals > 286 || distances > 30 {
		return errInflateCode
	}
	clear(f.lengths[:len(lengthOrder)])
	for _, i := range lengthOrder[:count] {
		v, err := f.take(3)
		if err != nil {
			return err
		}
		f.lengths[i] = uint8(v)
	}
	if err := f.literals.make(f.lengths[:len(lengthOrder)]); err != nil {
		return err
	}
	for i := 0; i < literals+distances; {
		symbol, err := f.symbol(&f.literals)
		if err != nil {
			return err
		}
		if symbol < 16 {
			f.lengths[i] = uint8(symbol)
			i++
			continue
		}
		repeat := [3]struct {
			bits, base uint
		}{{2, 3}, {3, 3}, {7, 11}}[symbol-16]
		more, err := f.take(repeat.bits)
		if err != nil {
			return err
		}
		n := int(repeat.base) + int(more)
		if n > literals+distances-i || symbol == 16 && i == 0 {
			return errInflateCode
		}
		last := uint8(0)
		if symbol == 16 {
			last = f.lengths[i-1]
		}
		for range n {
			f.lengths[i] = last
			i++
		}
	}
	if err := f.literals.make(f.lengths[:literals]); err != nil {
		return err
	}
	return f.distances.make(f.lengths[literals : literals+distances])
}

// symbol decodes one symbol.
func (f *inflater) symbol(c *codes) (int, error) {
	if f.count < longestCode {
		f.fill()
	}
	e := c.entry(f.bits)
	n := uint(e & entryBits)
	if n == 0 {
		return 0, errInflateCode
	}
	if n > f.count {
		return 0, errInflateEnd
	}
	f.bits >>= n
	f.count -= n
	return int(e >> entrySymbol), nil
}

// extra is the base of a length or distance and how many bits are added to it.
type extra struct{ base, bits uint16 }

// lengthExtra and distanceExtra are by symbol (RFC 1951, 3.2.5).
var lengthExtra = [29]extra{{3, 0}, {4, 0}, {5, 0}, {6, 0}, {7, 0}, {8, 0}, {9, 0}, {10, 0}, {11, 1}, {13, 1}, {15, 1}, {17, 1},
	{19, 2}, {23, 2}, {27, 2}, {31, 2}, {35, 3}, {43, 3}, {51, 3}, {59, 3}, {67, 4}, {83, 4}, {99, 4}, {115, 4},
	{131, 5}, {163, 5}, {195, 5}, {227, 5}, {258, 0}}

var distanceExtra = [30]extra{{1, 0}, {2, 0}, {3, 0}, {4, 0}, {5, 1}, {7, 1}, {9, 2}, {13, 2}, {17, 3}, {25, 3}, {33, 4}, {49, 4},
	{65, 5}, {97, 5}, {129, 6}, {193, 6}, {257, 7}, {385, 7}, {513, 8}, {769, 8}, {1025, 9}, {1537, 9}, {2049, 10}, {3073, 10},
	{4097, 11}, {6145, 11}, {8193, 12}, {12289, 12}, {16385, 13}, {24577, 13}}

// longestPair is how many bits a length and its distance have at most.
const longestPair = longestCode + 5 + longestCode + 13

// block decodes a block, whose first byte is the n-th of the page.
func (f *inflater) block(n int) (int, error) {
	out, literals := f.out, &f.literals
	for {
		if f.count < longestPair {
			f.fill()
		}
		// Most symbols are bytes: those without a look around.
		stream, count := f.bits, f.count
		e := literals.entry(stream)
		for e>>entrySymbol < endOfBlock && n < len(out) {
			k := uint(e & entryBits)
			if k == 0 || k > count {
				break
			}
			out[n] = byte(e >> entrySymbol)
			n++
			stream >>= k
			count -= k
			e = literals.entry(stream)
		}
		f.bits, f.count = stream, count
		if f.count < longestPair {
			f.fill()
		}
		symbol, err := f.symbol(literals)
		switch {
		case err != nil:
			return n, err
		case symbol < endOfBlock && n == len(out):
			return n, errInflateMore
		case symbol < endOfBlock:
			out[n] = byte(symbol)
			n++
			continue
		case symbol == endOfBlock:
			return n, nil
		}
		if n, err = f.match(symbol-endOfBlock-1, n); err != nil {
			return n, err
		}
	}
}

// match copies what was there before, by the symbol of its length.
func (f *inflater) match(symbol, n int) (int, error) {
	if symbol >= len(lengthExtra) {
		return n, errInflateCode
	}
	length, err := f.extended(lengthExtra[symbol])
	if err != nil {
		return n, err
	}
	if symbol, err = f.symbol(&f.distances); err != nil {
		return n, err
	}
	if symbol >= len(distanceExtra) {
		return n, errInflateCode
	}
	distance, err := f.extended(distanceExtra[symbol])
	switch {
	case err != nil:
		return n, err
	case distance > n:
		return n, errInflateBack
	case length > len(f.out)-n:
		return n, errInflateMore
	}
	// What is copied may be what this copy writes: then it repeats.
	for from, end := n-distance, n+length; n < end; {
		n += copy(f.out[n:end], f.out[from:n])
	}
	return n, nil
}

func (f *inflater) extended(e extra) (int, error) {
	if e.bits == 0 {
		return int(e.base), nil
	}
	v, err := f.take(uint(e.bits))
	return int(e.base) + int(v), err
}

// codes are the symbols by the bits to come: the first ones lead to the symbol, or to a
// table for the rest.
type codes struct {
	first [1 << firstBits]uint32
	long  []uint32
}

// An entry is a symbol and the bits of its code, 0 for none; or with entryLong the
// beginning of a table, and for how many more bits it is.
const (
	firstBits   = 9
	entryBits   = 1<<4 - 1
	entryLong   = 1 << 4
	entrySymbol = 5
)

// entry is that of the code which the lowest bits begin with.
func (c *codes) entry(stream uint64) uint32 {
	e := c.first[stream&(1<<firstBits-1)]
	if e&entryLong != 0 {
		e = c.long[uint64(e>>entrySymbol)+stream>>firstBits&(1<<(e&entryBits)-1)]
	}
	return e
}

// make makes the tables for the lengths of the codes by symbol (RFC 1951, 3.2.2).
func (c *codes) make(lengths []uint8) error {
	var count [longestCode + 2]int
	for _, n := range lengths {
		count[n]++
	}
	used := len(lengths) - count[0]
	count[0] = 0
	left, longest := 1, 0
	var begin [longestCode + 2]int // of the symbols by length
	for n := 1; n <= longestCode; n++ {
		begin[n+1] = begin[n] + count[n]
		if left = left<<1 - count[n]; left < 0 {
			return errInflateCode // more codes than there can be
		}
		if count[n] > 0 {
			longest = n
		}
	}
	if left > 0 && used > 1 {
		return errInflateCode // bits that mean nothing; one code alone is allowed
	}
	var sorted [maxLiterals]uint16
	for symbol, n := range lengths {
		if n > 0 {
			sorted[begin[n]] = uint16(symbol)
			begin[n]++
		}
	}
	c.long = c.long[:0]
	c.first[0] = 0 // what is no code's is a copy of this
	c.fillTables(sorted[:used], &count, longest)
	return nil
}

// fillTables goes through the codes as they ascend, which in the stream are reversed. A
// table of twice the bits is twice the table, until all lengths had their turn.
func (c *codes) fillTables(sorted []uint16, count *[longestCode + 2]int, longest int) {
	code, size, rest := uint32(0), 1, max(longest-firstBits, 0) // size is of the table so far
	for n := 1; n <= longest; n++ {
		if n <= firstBits {
			copy(c.first[size:2*size], c.first[:size])
			size *= 2
		}
		for range count[n] {
			entry := uint32(sorted[0])<<entrySymbol | uint32(n)
			sorted = sorted[1:]
			if n <= firstBits {
				c.first[code] = entry
			} else {
				c.putLong(code, entry, n, rest)
			}
			// The next code: one more, from its highest bit, which is the lowest here.
			end := uint32(1)<<n - 1
			if code == end {
				break // it was the last of all
			}
			bit := uint32(1) << (bits.Len32(code^end) - 1)
			code = code&(bit-1) | bit
		}
	}
	for ; size < len(c.first); size *= 2 {
		copy(c.first[size:2*size], c.first[:size])
	}
}

// putLong puts a code in the table for its first bits.
func (c *codes) putLong(code, entry uint32, n, rest int) {
	head := &c.first[code&(1<<firstBits-1)]
	if *head&entryLong == 0 {
		*head = uint32(len(c.long))<<entrySymbol | entryLong | uint32(rest)
		for range 1 << rest {
			c.long = append(c.long, 0)
		}
	}
	table := c.long[*head>>entrySymbol:]
	for i := code >> firstBits; i < 1<<rest; i += 1 << (n - firstBits) {
		table[i] = entry
	}
}
