package dump

import (
	"fmt"
	"sync"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
)

// unpacker undoes the compression of pages. Its zero value is ready, and safe for
// concurrent use.
type unpacker struct {
	zlibs sync.Pool // of *inflater

	once sync.Once
	zstd *zstd.Decoder // nil if err
	err  error
}

// unpack returns the size bytes that b was made of, by the flags of a descriptor.
func (u *unpacker) unpack(b []byte, flags uint32, size int) (page []byte, err error) {
	const methods = pageZlib | pageLZO | pageSnappy | pageZstd
	switch flags & methods {
	case 0:
		page = b
	case pageZlib:
		page, err = u.inflate(b, size)
	case pageLZO:
		page, err = lzoDecompress(b, size)
	case pageSnappy:
		if n, e := snappy.DecodedLen(b); e != nil || n != size {
			return nil, fmt.Errorf("snappy data of a page of %d bytes, not %d (%v): %w", n, size, e, ErrCorrupt)
		}
		page, err = snappy.Decode(nil, b)
	case pageZstd:
		page, err = u.decode(b, size)
	default:
		return nil, fmt.Errorf("compressed by the method %#x: %w", flags, ErrUnsupported)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if len(page) != size {
		return nil, fmt.Errorf("a page of %d bytes instead of %d: %w", len(page), size, ErrCorrupt)
	}
	return page, nil
}

func (u *unpacker) inflate(b []byte, size int) ([]byte, error) {
	f, _ := u.zlibs.Get().(*inflater)
	if f == nil {
		f = new(inflater)
	}
	defer u.zlibs.Put(f)
	return f.inflatePage(b, size)
}

func (u *unpacker) decode(b []byte, size int) ([]byte, error) {
	u.once.Do(func() {
		const windowLimit = 1 << 20 // pages are small; a header may claim anything
		u.zstd, u.err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(windowLimit))
	})
	if u.err != nil {
		return nil, u.err
	}
	return u.zstd.DecodeAll(b, make([]byte, 0, size))
}
