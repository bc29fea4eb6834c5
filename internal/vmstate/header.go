package vmstate

import (
	"encoding/binary"
	"fmt"
)

// Bytes that introduce a record of the stream (QEMU 7.2 migration/savevm.h:
// QEMU_VM_*). Sections have theirs in Kind.
const (
	recordEOF           = 0x00
	recordSubsection    = 0x05
	recordDescription   = 0x06
	recordConfiguration = 0x07
	recordCommand       = 0x08
	recordFooter        = 0x7e
)

const (
	streamMagic   = 0x5145564d // "QEVM"
	streamVersion = 3
	headerSize    = 8
)

// configuration is what migrate records ahead of the first section. A stream of
// xen-save-devices-state has none.
type configuration struct {
	machine      string
	ignoreShared bool // capability x-ignore-shared: shared RAM is listed, not sent
	mappedRAM    bool // capability mapped-ram: each page has its place in the file
	pageBits     uint // log2 of the size of a RAM page
	next         int  // offset of the first section
}

// IsStream reports whether a file that begins like this is a stream of QEMU's.
func IsStream(head []byte) bool {
	return len(head) >= 4 && binary.BigEndian.Uint32(head) == streamMagic
}

// parseHeader reads the beginning of a stream up to its first section:
//
//	0  be32 magic "QEVM"
//	4  be32 version, 3
//	8  optionally 0x07, be32 length, machine type, subsections
func parseHeader(b []byte) (c configuration, err error) {
	c.pageBits = 12
	r := reader{b: b}
	magic, version := r.u32(), r.u32()
	switch {
	case r.short || magic != streamMagic:
		return c, fmt.Errorf("%w: at offset 0x0: no stream of QEMU, it begins with % x", ErrCorrupt, b[:min(4, len(b))])
	case version != streamVersion:
		return c, fmt.Errorf("%w: at offset 0x4: stream version %d, known is %d", ErrUnsupported, version, streamVersion)
	case len(b) == headerSize:
		return c, fmt.Errorf("%w: ends at offset %#x, behind its header", ErrCorrupt, headerSize)
	case b[headerSize] != recordConfiguration:
		c.next = headerSize
		return c, nil
	}
	r.u8()
	size := r.u32()
	if r.short || int64(size) > int64(len(b)-r.at) {
		return c, fmt.Errorf("%w: machine type at offset %#x passes the end", ErrCorrupt, r.at)
	}
	c.machine = string(b[r.at : r.at+int(size)])
	r.at += int(size)
	if c.machine == "" || !printable(c.machine) {
		return c, fmt.Errorf("%w: machine type %.40q at offset %#x", ErrCorrupt, c.machine, r.at-int(size))
	}
	for r.at < len(b) && b[r.at] == recordSubsection {
		if err := c.subsection(&r); err != nil {
			return c, err
		}
	}
	c.next = r.at
	return c, nil
}

// subsection reads one subsection of the configuration (QEMU 7.2
// migration/savevm.c: vmstate_target_page_bits, vmstate_capabilites, vmstate_uuid).
func (c *configuration) subsection(r *reader) error {
	at := r.at
	r.u8()
	name := r.counted()
	r.u32() // version
	switch name {
	case "configuration/target-page-bits":
		c.pageBits = uint(r.u32())
		if !r.short && (c.pageBits < 10 || c.pageBits > 16) {
			return fmt.Errorf("%w: RAM pages of 2^%d bytes at offset %#x", ErrUnsupported, c.pageBits, at)
		}
	case "configuration/uuid":
		r.bytes(16)
	case "configuration/capabilities":
		for n := r.u32(); n > 0 && !r.short; n-- {
			switch r.counted() {
			case "x-ignore-shared":
				c.ignoreShared = true
			case "mapped-ram":
				c.mappedRAM = true
			}
		}
	default:
		if !r.short {
			return fmt.Errorf("%w: subsection %q of the configuration at offset %#x", ErrUnsupported, name, at)
		}
	}
	if r.short {
		return fmt.Errorf("%w: configuration at offset %#x passes the end", ErrCorrupt, at)
	}
	return nil
}

// header is a section's header. payload is the offset behind it.
type header struct {
	kind     Kind
	id       uint32
	name     string
	instance uint32
	version  uint32
	payload  int
}

// parseSectionHeader reads the header at p. ok is false if none can be there.
// Part and End have no name of their own.
func parseSectionHeader(b []byte, p int) (h header, ok bool) {
	if p >= len(b) {
		return h, false
	}
	r := reader{b: b, at: p}
	h.kind, h.id = Kind(r.u8()), r.u32()
	switch h.kind {
	case Part, End:
	case Start, Full:
		h.name = r.counted()
		h.instance, h.version = r.u32(), r.u32()
		if h.name == "" || !printable(h.name) {
			return h, false
		}
	default:
		return h, false
	}
	h.payload = r.at
	return h, !r.short
}

// section makes a Section of the payload that ends at end.
func (h header) section(b []byte, end int) Section {
	return Section{
		Kind: h.kind, Name: h.name, ID: h.id, Instance: h.instance, Version: h.version,
		Offset: h.payload, Payload: b[h.payload:end:end],
	}
}

// printable reports whether s looks like a name that QEMU gives.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}
