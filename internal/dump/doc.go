// Package dump reads the files in which QEMU, the kernel's crash dump and
// makedumpfile leave a machine: ELF cores with physical memory, and
// kdump-compressed files, flattened or not. It reads headers and tells where the
// memory is; who wants the bytes asks for them, page by page where they are
// compressed.
//
// Sources: QEMU 7.2 dump/dump.c, include/sysemu/dump.h and target/i386/arch_dump.c;
// ELF gABI "Program Header"; makedumpfile's description of the format,
// IMPLEMENTATION, and its diskdump_mod.h.
package dump

import (
	"errors"
	"fmt"
	"io"
)

// Classes of errors. ErrForeign is that of files that are of another kind.
var (
	ErrForeign     = errors.New("not a file of this kind")
	ErrCorrupt     = errors.New("damaged dump")
	ErrUnsupported = errors.New("not supported")
)

// pageSize is the granule of physical memory that everything here counts in.
const pageSize = 4096

// corrupt is an ErrCorrupt at an offset of the file.
func corrupt(offset uint64, format string, args ...any) error {
	return fmt.Errorf("at %#x: %s: %w", offset, fmt.Sprintf(format, args...), ErrCorrupt)
}

// readAt reads n bytes at an offset. A file that ends before is an ErrCorrupt, and
// n is checked by the caller.
func readAt(r io.ReaderAt, offset, n uint64, what string) ([]byte, error) {
	if offset > 1<<62 {
		return nil, corrupt(offset, "%s: no file is that long", what)
	}
	b := make([]byte, n)
	got, err := r.ReadAt(b, int64(offset))
	if uint64(got) == n {
		return b, nil
	}
	if errors.Is(err, io.EOF) || err == nil {
		return nil, corrupt(offset+uint64(got), "%s: the file ends here, %d bytes early", what, n-uint64(got))
	}
	return nil, fmt.Errorf("%s at %#x: %w", what, offset, err)
}

// within reports whether n bytes at offset are in a file of this size.
func within(offset, n, size uint64) bool { return offset <= size && n <= size-offset }
