package dump

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// packer compresses the pages of one window. For one goroutine.
type packer struct {
	method Method
	zlib   *zlib.Writer
	zstd   *zstd.Encoder

	data  []byte // compressed pages, one after the other
	pages []packed
	lost  []uint64 // numbers of pages that could not be read
	left  []uint64 // numbers of pages of zeros that are left out
	zeros uint64   // pages of zeros
}

// packed is a page in data; of a page of zeros the size is 0.
type packed struct{ at, size, flags uint32 }

func newPacker(m Method) (p *packer, err error) {
	p = &packer{method: m}
	switch m {
	case Zlib:
		p.zlib, err = zlib.NewWriterLevel(io.Discard, zlib.BestSpeed)
	case Zstd:
		p.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(pageSize), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true))
	default:
		err = fmt.Errorf("compression by the method %#x: %w", uint32(m), ErrUnsupported)
	}
	return p, err
}

func (p *packer) reset() {
	p.data, p.pages, p.lost, p.left, p.zeros = p.data[:0], p.pages[:0], p.lost[:0], p.left[:0], 0
}

var zeroPage [pageSize]byte

// add packs a page.
func (p *packer) add(number uint64, page []byte, noZero bool) error {
	if bytes.Equal(page, zeroPage[:]) {
		p.zeros++
		if noZero {
			p.left = append(p.left, number)
		} else {
			p.pages = append(p.pages, packed{})
		}
		return nil
	}
	at := len(p.data)
	if err := p.compress(page); err != nil {
		return err
	}
	flags := uint32(p.method)
	if len(p.data)-at >= pageSize { // no gain
		p.data, flags = append(p.data[:at], page...), 0
	}
	p.pages = append(p.pages, packed{uint32(at), uint32(len(p.data) - at), flags})
	return nil
}

// compress appends a page to data.
func (p *packer) compress(page []byte) error {
	if p.zstd != nil {
		p.data = p.zstd.EncodeAll(page, p.data)
		return nil
	}
	out := bytes.NewBuffer(p.data)
	p.zlib.Reset(out)
	if _, err := p.zlib.Write(page); err != nil {
		return err
	}
	err := p.zlib.Close()
	p.data = out.Bytes()
	return err
}

// descriptors are those of the pages, whose data begins at an offset of the file.
func (p *packer) descriptors(data, zero uint64) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, len(p.pages)*pageDescriptor)
	for _, g := range p.pages {
		if g.size == 0 {
			g = packed{size: pageSize}
			b = le.AppendUint64(b, zero)
		} else {
			b = le.AppendUint64(b, data+uint64(g.at))
		}
		b = le.AppendUint32(b, g.size)
		b = le.AppendUint32(b, g.flags)
		b = le.AppendUint64(b, 0) // page flags, which nobody sets
	}
	return b
}
