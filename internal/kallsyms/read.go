package kallsyms

import (
	"fmt"
	"slices"

	"nestdbg/internal/mem"
)

// Hints are the runtime addresses of the tables, as VMCOREINFO lists them since
// v6.0 in lines SYMBOL(kallsyms_...). Zero means that there is no such line.
type Hints struct {
	Names, NumSyms, TokenTable, TokenIndex uint64

	Offsets      uint64
	RelativeBase uint64 // gone in v7.0
	Addresses    uint64 // instead of Offsets, in kernels with absolute addresses

	// Stext is SYMBOL(_stext). If set, the result must agree with it.
	Stext uint64
}

// maxNames bounds the bytes from names to token_table.
const maxNames = 64 << 20

// Read reads the tables from where h says they are. Errors are ErrCorrupt, or
// carry the reader's mem.ErrFault.
func Read(r mem.VirtReader, h Hints) (*Table, error) {
	n, err := readNames(r, h)
	if err != nil {
		return nil, err
	}
	a, err := readAddresses(r, h, n.count)
	if err != nil {
		return nil, err
	}
	addrs, lost, err := a.decode(n.count)
	if err != nil {
		return nil, fmt.Errorf("%w: %v: %w", ErrCorrupt, a.encoding, err)
	}
	if i, ok := n.find("_stext"); ok && h.Stext != 0 && addrs[i] != h.Stext && !lost[i] {
		return nil, fmt.Errorf("%w: _stext is %#x, not %#x", ErrCorrupt, addrs[i], h.Stext)
	}
	start := h.Stext
	if anchor, ok := n.anchor(); ok && !lost[anchor] {
		start = addrs[anchor]
	} else if _, ok := slices.BinarySearch(addrs, start); !ok || len(n.lost)+len(lost) == 0 {
		return nil, fmt.Errorf("%w: no _text or _stext among %d symbols", ErrCorrupt, n.count)
	}
	return newTable(n, addrs, lost, start, a.encoding.String()), nil
}

// readNames reads everything but the addresses.
func readNames(r mem.VirtReader, h Hints) (*names, error) {
	count, err := mem.VirtUint32(r, mem.Virt(h.NumSyms))
	if err != nil {
		return nil, fmt.Errorf("read kallsyms_num_syms: %w", err)
	}
	if count > maxSymbols {
		return nil, fmt.Errorf("%w: %d symbols", ErrCorrupt, count)
	}
	t, err := readTokens(r, h)
	if err != nil {
		return nil, err
	}
	// In every layout markers and perhaps more stand between names and token_table.
	data, err := readBetween(r, h.Names, h.TokenTable, maxNames, "kallsyms_names")
	if err != nil {
		return nil, err
	}
	n, err := checkedNames(t, data, int(count))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return n, nil
}

// checkedNames splits the names at the start of data, with the markers behind them as
// the test and the mend.
func checkedNames(t *tokens, data []byte, count int) (*names, error) {
	n, err := newNames(t, data, count)
	if count <= 0 || count > len(data)/2 {
		return nil, err
	}
	at, markers, ok := markersIn(data, count)
	switch {
	case ok && err == nil && n.agree(markers):
		return wholeNames(t, data[:at], n)
	case ok:
		return markedNames(t, data[:at], count, markers)
	}
	if mended, ok := roughNames(t, data, count); ok {
		return mended, nil
	}
	return n, err
}

// wholeNames is n if its names fill data. If they do not, num_syms is too low, and the
// names themselves say how many there are.
func wholeNames(t *tokens, data []byte, n *names) (*names, error) {
	check, end, count := newNameChecker(t), len(n.data), n.count
	for ; end < len(data) && !isPadding(data[end:]); count++ {
		var err error
		if end, err = check.name(data, end); err != nil {
			return nil, fmt.Errorf("there are more than %d symbols, and the next %w", count, err)
		}
	}
	if count == n.count {
		return n, nil
	}
	return newNames(t, data, count)
}

// readTokens reads token_table and requires that token_index agrees with it, but for
// what fit allows.
func readTokens(r mem.VirtReader, h Hints) (*tokens, error) {
	table, err := readBetween(r, h.TokenTable, h.TokenIndex, maxTokenTable+256, "kallsyms_token_table")
	if err != nil {
		return nil, err
	}
	var index [tokenCount]uint16
	t, size, err := parseTokens(table, &index)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	stored, err := readBytes(r, h.TokenIndex, 2*tokenCount, "kallsyms_token_index")
	if err != nil {
		return nil, err
	}
	if !fit(&index, stored) || !isPadding(table[size:]) {
		return nil, fmt.Errorf("%w: token_index is not that of the %d bytes of tokens", ErrCorrupt, size)
	}
	return t, nil
}

// readAddresses reads the encoded addresses. Which tables exist tells two of
// the encodings; the other two differ in that per-CPU kernels store the image's
// symbols, which are most, as negative numbers, and no image is 2 GiB long.
func readAddresses(r mem.VirtReader, h Hints, count int) (addresses, error) {
	a := addresses{encoding: placeRelative, base: h.Offsets}
	at := h.Offsets
	switch {
	case h.Addresses != 0:
		a.encoding, at = absolute, h.Addresses
	case h.Offsets == 0:
		return a, fmt.Errorf("%w: neither kallsyms_offsets nor kallsyms_addresses", ErrNotFound)
	case h.RelativeBase != 0:
		base, err := mem.VirtUint64(r, mem.Virt(h.RelativeBase))
		if err != nil {
			return a, fmt.Errorf("read kallsyms_relative_base: %w", err)
		}
		a.encoding, a.base = baseRelative, base
	}
	data, err := readBytes(r, at, count*a.encoding.size(), "symbol addresses")
	if err != nil {
		return a, err
	}
	a.data = data
	if a.encoding == baseRelative {
		negative := 0
		for i := range count {
			negative += int(data[4*i+3] >> 7)
		}
		if negative > count/2 {
			a.encoding = absolutePercpu
		}
	}
	return a, nil
}

// readBetween reads from first up to but not including end.
func readBetween(r mem.VirtReader, first, end, limit uint64, what string) ([]byte, error) {
	if end <= first || end-first > limit {
		return nil, fmt.Errorf("%w: %s from %#x to %#x", ErrCorrupt, what, first, end)
	}
	return readBytes(r, first, int(end-first), what)
}

func readBytes(r mem.VirtReader, at uint64, size int, what string) ([]byte, error) {
	b := make([]byte, size)
	if _, err := r.ReadVirt(b, mem.Virt(at)); err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	return b, nil
}
