package vmstate

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Flags in the low bits of a record of the RAM section (QEMU 7.2 migration/ram.c,
// RAM_SAVE_FLAG_*). What else there is (XBZRLE, compression, RDMA) is sent only
// when someone asked for it.
const (
	ramZero       = 0x02  // one byte follows, the page is filled with it
	ramSize       = 0x04  // the list of blocks follows
	ramPage       = 0x08  // the page follows
	ramEOS        = 0x10  // end of this section
	ramContinue   = 0x20  // same block as before; otherwise its name follows
	ramMultifd    = 0x200 // no data
	ramFlags      = 0x3ff // below the smallest page
	ramVersion    = 4
	ramMaxSection = 1 << 20 // sections we accept before the devices; QEMU sends a few
)

// ramSections reads the pieces that precede the devices in a stream of migrate:
// Start, any number of Part, End of "ram". Their payload has a known form, so
// their ends are certain; nothing in RAM can be mistaken for the end of one.
// rest is the offset of what follows.
//
// Ahead of a piece there may be sections of devices that say what of RAM there is (QEMU
// 8.0 include/migration/vmstate.h: early_setup, which virtio-mem has).
//
// index, if not nil, is told where each page is, as far as the stream goes.
func ramSections(b []byte, c configuration, index *RAM) (sections []Section, rest int, err error) {
	var ram header
	var early []Section
	rest = c.next
	for p := c.next; len(sections) < ramMaxSection; {
		if p, err = skipCommands(b, p); err != nil {
			return nil, 0, err
		}
		h, ok := parseSectionHeader(b, p)
		if ok && h.kind == Full && ram.kind != End && c.machine != "" {
			if end := earlyEnd(b, h, ram.id); end >= 0 && len(early) < maxEarly {
				early = append(early, h.section(b, end))
				p = end + footerSize
				continue
			}
		}
		if !ok || h.kind == Full {
			return sections, rest, nil // what no piece of RAM followed is devices
		}
		switch {
		case h.kind == Start && ram.kind != 0, h.kind != Start && (ram.kind == 0 || h.id != ram.id):
			return nil, 0, fmt.Errorf("%w: piece of section %d at offset %#x, only ram is known to come in pieces",
				ErrUnsupported, h.id, p)
		case h.kind == Start && !h.startsRAM():
			return nil, 0, fmt.Errorf("%w: section %q version %d in pieces at offset %#x",
				ErrUnsupported, h.name, h.version, p)
		case h.kind != Start:
			h.name, h.instance, h.version = ram.name, ram.instance, ram.version
		}
		ram = h
		end, err := ramPayload(b, h.payload, c, index)
		if err != nil {
			return nil, 0, err
		}
		if !footerAt(b, end, h.id) {
			return nil, 0, fmt.Errorf("%w: no end of section %q at offset %#x", ErrCorrupt, h.name, end)
		}
		sections, early = append(append(sections, early...), h.section(b, end)), nil
		p = end + footerSize
		rest = p
	}
	return nil, 0, fmt.Errorf("%w: more than %d pieces of RAM", ErrUnsupported, ramMaxSection)
}

// Bounds of what devices say ahead of RAM: virtio-mem has a bit for each block, so
// this is 256 TiB in blocks of 2 MiB.
const (
	maxEarly     = 64
	maxEarlySize = 16 << 20
)

// earlyEnd is the offset of the footer of a section ahead of RAM, -1 without one: the
// first that is followed by such a section again or by a piece of RAM, whose number is
// known once it has started.
func earlyEnd(b []byte, h header, ram uint32) int {
	b = b[:min(len(b), h.payload+maxEarlySize)]
	for p := h.payload; ; p++ {
		n := bytes.IndexByte(b[p:], recordFooter)
		if n < 0 {
			return -1
		}
		if p += n; !footerAt(b, p, h.id) {
			continue
		}
		at, err := skipCommands(b, p+footerSize)
		next, ok := parseSectionHeader(b, at)
		if err != nil || !ok {
			continue
		}
		if next.startsRAM() || next.kind == Full && next.id != h.id || (next.kind == Part || next.kind == End) && next.id == ram {
			return p
		}
	}
}

func (h header) startsRAM() bool {
	return h.kind == Start && h.name == "ram" && h.version == ramVersion
}

// Commands to whoever loads the stream that change nothing of its state (QEMU 10.0
// migration/savevm.c: enum qemu_vm_cmd; a machine of 10.0 sends the last one). Others
// belong to migrations that no file can have, such as postcopy.
const (
	commandOpenReturnPath  = 1
	commandPing            = 2
	commandSwitchoverStart = 11
)

// skipCommands passes over commands: be16 command, be16 length, and as many bytes.
func skipCommands(b []byte, p int) (int, error) {
	for p < len(b) && b[p] == recordCommand {
		r := reader{b: b, at: p + 1}
		command, size := r.u16(), int(r.u16())
		switch {
		case r.short || size > len(b)-r.at:
			return 0, fmt.Errorf("%w: command at offset %#x passes the end", ErrCorrupt, p)
		case command != commandOpenReturnPath && command != commandPing && command != commandSwitchoverStart:
			return 0, fmt.Errorf("%w: command %d at offset %#x", ErrUnsupported, command, p)
		}
		p = r.at + size
	}
	return p, nil
}

// ramPayload passes over the records from p on and returns the offset behind
// the one that ends the section.
func ramPayload(b []byte, p int, c configuration, index *RAM) (int, error) {
	r := reader{b: b, at: p}
	for {
		at := r.at
		record := r.u64()
		if r.short {
			return 0, fmt.Errorf("%w: RAM record at offset %#x passes the end", ErrCorrupt, at)
		}
		flags := record & ramFlags
		switch flags &^ ramContinue {
		case ramEOS, ramEOS | ramMultifd:
			return r.at, nil
		case ramMultifd:
			continue
		case ramSize:
			if err := ramBlocks(&r, record&^ramFlags, c, index); err != nil {
				return 0, err
			}
		case ramZero, ramPage:
			if flags&ramContinue == 0 {
				index.enter(r.counted())
			}
			ref := pageRef(r.at)
			if flags&ramZero != 0 {
				ref = filled(r.u8())
			} else {
				r.bytes(1 << c.pageBits)
			}
			if r.short {
				continue // and end there
			}
			if err := index.put(record&^ramFlags, ref); err != nil {
				return 0, fmt.Errorf("RAM record at offset %#x: %w", at, err)
			}
		default:
			return 0, fmt.Errorf("%w: RAM record %#x at offset %#x", ErrUnsupported, record, at)
		}
	}
}

// ramBlocks reads the list of RAM blocks whose lengths add up to total: name, be64
// length, be64 address if shared blocks are not sent, and where pages have places of
// their own, what says so. The list ends with the total or with the stream.
func ramBlocks(r *reader, total uint64, c configuration, index *RAM) error {
	for total > 0 && !r.short {
		name := r.counted()
		size := r.u64()
		if c.ignoreShared {
			r.u64()
		}
		if r.short {
			break
		}
		total -= min(size, total)
		if err := index.add(name, size, c); err != nil {
			return fmt.Errorf("RAM block at offset %#x: %w", r.at, err)
		}
		if c.mappedRAM {
			if err := mappedBlock(r, size, index); err != nil {
				return err
			}
		}
	}
	return nil
}

const footerSize = 5

// footerAt reports whether the footer of section id is at p.
func footerAt(b []byte, p int, id uint32) bool {
	return p+footerSize <= len(b) && b[p] == recordFooter && binary.BigEndian.Uint32(b[p+1:]) == id
}
