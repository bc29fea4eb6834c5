// Package kallsymstest packs symbol tables the way the kernel's build does, in
// every layout there has been, so that tests need no kernel. It shares nothing
// with package kallsyms.
package kallsymstest

import (
	"encoding/binary"
	"sort"
)

// Symbol is a symbol to pack. A type 'A' symbol is absolute.
type Symbol struct {
	Name string
	Addr uint64
	Type byte
}

// Encoding is how addresses are stored.
type Encoding int

// The encodings, by the names of package kallsyms.
const (
	Absolute Encoding = iota
	BaseRelative
	AbsolutePercpu
	PlaceRelative
)

// Config chooses a layout.
type Config struct {
	Name     string
	Encoding Encoding
	Late     bool // addresses behind token_index: v6.4 and later
	Wide     bool // 8-byte num_syms and markers: before v4.20
	Align    int  // of every table; 8, in v7.0 4
	Seqs     bool // with seqs_of_names: v6.2 and later
	Pad      int  // bytes of other data before the tables
}

// Configs lists every layout that kernels have had.
func Configs() []Config {
	return []Config{
		{Name: "4.5", Encoding: Absolute, Wide: true, Align: 8, Pad: 0x3000},
		{Name: "4.19", Encoding: AbsolutePercpu, Wide: true, Align: 8, Pad: 0x2468},
		{Name: "5.10 absolute", Encoding: Absolute, Align: 8, Pad: 0x1008},
		{Name: "5.10 arm64", Encoding: BaseRelative, Align: 8, Pad: 0x1010},
		{Name: "5.10 x86-64", Encoding: AbsolutePercpu, Align: 8, Pad: 0x1ff8},
		{Name: "6.2", Encoding: AbsolutePercpu, Align: 8, Seqs: true, Pad: 0x1230},
		{Name: "6.4 absolute", Encoding: Absolute, Late: true, Align: 8, Seqs: true, Pad: 0x800},
		{Name: "6.4 arm64", Encoding: BaseRelative, Late: true, Align: 8, Seqs: true, Pad: 0x808},
		{Name: "6.4 x86-64", Encoding: AbsolutePercpu, Late: true, Align: 8, Seqs: true, Pad: 0x810},
		{Name: "7.0", Encoding: PlaceRelative, Late: true, Align: 4, Seqs: true, Pad: 0x814},
	}
}

// Image is a packed kernel image.
type Image struct {
	Bytes []byte
	Base  uint64 // runtime address of Bytes[0]
	// Runtime addresses of the tables, 0 if absent.
	NumSyms, Names, Markers, TokenTable, TokenIndex uint64
	Offsets, RelativeBase, Addresses                uint64
}

type builder struct {
	Config
	Image
	symbols []Symbol
}

// Build packs symbols, which must ascend by address, into an image at base.
func Build(symbols []Symbol, base uint64, c Config) *Image {
	b := &builder{Config: c, symbols: symbols}
	b.Base = base
	b.Bytes = noise(c.Pad)
	if !c.Late {
		b.addresses()
	}
	b.NumSyms = b.label()
	b.word(uint64(len(symbols)))
	b.names()
	if !c.Late {
		b.seqs()
	}
	b.tokens()
	if c.Late {
		b.addresses()
		b.seqs()
	}
	b.Bytes = append(b.Bytes, noise(300)...)
	return &b.Image
}

// noise is bytes that look like nothing, never zero.
func noise(n int) []byte {
	out := make([]byte, n)
	x := uint32(12345)
	for i := range out {
		x = x*1664525 + 1013904223
		out[i] = byte(x>>24) | 0x81
	}
	return out
}

// label aligns and returns the address reached.
func (b *builder) label() uint64 {
	for (b.Base+uint64(len(b.Bytes)))%uint64(b.Align) != 0 {
		b.Bytes = append(b.Bytes, 0)
	}
	return b.Base + uint64(len(b.Bytes))
}

func (b *builder) word(v uint64) {
	if b.Wide {
		b.Bytes = binary.LittleEndian.AppendUint64(b.Bytes, v)
	} else {
		b.Bytes = binary.LittleEndian.AppendUint32(b.Bytes, uint32(v))
	}
}

func (b *builder) addresses() {
	at := b.label()
	if b.Encoding == Absolute {
		b.Addresses = at
		for _, s := range b.symbols {
			b.Bytes = binary.LittleEndian.AppendUint64(b.Bytes, s.Addr)
		}
		return
	}
	b.Offsets = at
	relative := b.relativeBase()
	for i, s := range b.symbols {
		v := uint32(s.Addr - relative)
		switch {
		case b.Encoding == PlaceRelative:
			v = uint32(s.Addr - at - uint64(4*i))
		case b.Encoding == AbsolutePercpu && s.Type == 'A':
			v = uint32(s.Addr)
		case b.Encoding == AbsolutePercpu:
			v = uint32(relative - 1 - s.Addr)
		}
		b.Bytes = binary.LittleEndian.AppendUint32(b.Bytes, v)
	}
	if b.Encoding != PlaceRelative {
		b.RelativeBase = b.label()
		b.Bytes = binary.LittleEndian.AppendUint64(b.Bytes, relative)
	}
}

// relativeBase is the lowest address that is not absolute.
func (b *builder) relativeBase() uint64 {
	for _, s := range b.symbols {
		if s.Type != 'A' {
			return s.Addr
		}
	}
	return b.Base
}

func (b *builder) seqs() {
	if !b.Seqs {
		return
	}
	order := make([]int, len(b.symbols))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(i, j int) bool {
		return b.symbols[order[i]].Name < b.symbols[order[j]].Name
	})
	b.label()
	for _, i := range order {
		b.Bytes = append(b.Bytes, byte(i>>16), byte(i>>8), byte(i))
	}
}

func (b *builder) names() {
	pairs := b.pairs()
	b.Names = b.label()
	start := len(b.Bytes)
	var markers []int
	for i, s := range b.symbols {
		if i%256 == 0 {
			markers = append(markers, len(b.Bytes)-start)
		}
		packed := pack(string(s.Type)+s.Name, pairs)
		if len(packed) > 127 {
			b.Bytes = append(b.Bytes, byte(len(packed))|0x80, byte(len(packed)>>7))
		} else {
			b.Bytes = append(b.Bytes, byte(len(packed)))
		}
		b.Bytes = append(b.Bytes, packed...)
	}
	b.Markers = b.label()
	for _, m := range markers {
		b.word(uint64(m))
	}
}

func (b *builder) tokens() {
	table := b.tokenStrings()
	b.TokenTable = b.label()
	start := len(b.Bytes)
	var index []int
	for _, t := range table {
		index = append(index, len(b.Bytes)-start)
		b.Bytes = append(append(b.Bytes, t...), 0)
	}
	b.TokenIndex = b.label()
	for _, i := range index {
		b.Bytes = binary.LittleEndian.AppendUint16(b.Bytes, uint16(i))
	}
}
