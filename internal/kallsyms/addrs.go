package kallsyms

import (
	"encoding/binary"
	"fmt"
)

// encoding is one way to store the symbols' addresses.
type encoding int

const (
	// absolute: u64 per symbol. The only one until v4.6, an option until v6.10.
	absolute encoding = iota
	// baseRelative: relative_base + u32.
	baseRelative
	// absolutePercpu, CONFIG_KALLSYMS_ABSOLUTE_PERCPU, v4.6 to v6.14: an s32 >= 0
	// is the value of an absolute symbol, one < 0 means relative_base - 1 - s32.
	absolutePercpu
	// placeRelative, since v7.0: s32 relative to the place of the s32 itself.
	placeRelative
)

func (e encoding) String() string {
	switch e {
	case absolute:
		return "absolute addresses"
	case baseRelative:
		return "offsets from a base"
	case absolutePercpu:
		return "offsets from a base, per-CPU symbols absolute"
	case placeRelative:
		return "offsets from their own place"
	}
	return fmt.Sprintf("encoding %d", int(e))
}

// size is the number of bytes per symbol.
func (e encoding) size() int {
	if e == absolute {
		return 8
	}
	return 4
}

// addresses is the still encoded address table.
type addresses struct {
	encoding encoding
	data     []byte // size() bytes per symbol
	// base is relative_base; for placeRelative it is the runtime address of data.
	base uint64
}

// at decodes the address of symbol i.
func (a addresses) at(i int) uint64 {
	if a.encoding == absolute {
		return binary.LittleEndian.Uint64(a.data[8*i:])
	}
	word := binary.LittleEndian.Uint32(a.data[4*i:])
	signed := int64(int32(word))
	switch {
	case a.encoding == placeRelative:
		return a.base + uint64(4*i) + uint64(signed)
	case a.encoding == absolutePercpu && signed >= 0:
		return uint64(signed)
	case a.encoding == absolutePercpu:
		return a.base - 1 - uint64(signed)
	}
	return a.base + uint64(word)
}

// decode decodes count addresses, which ascend: every kernel sorts them, per-CPU
// symbols first, and binary search relies on it. Those that do not are damaged.
func (a addresses) decode(count int) (addrs []uint64, lost map[int]bool, err error) {
	if len(a.data) < count*a.encoding.size() {
		return nil, nil, fmt.Errorf("%d bytes for %d addresses", len(a.data), count)
	}
	out, sorted := make([]uint64, count), true
	for i := range out {
		out[i] = a.at(i)
		sorted = sorted && (i == 0 || out[i] >= out[i-1])
	}
	if !sorted {
		lost, err = keepOrder(out)
	}
	return out, lost, err
}
