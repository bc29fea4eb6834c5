// Package rsp is the framing of the GDB remote serial protocol, for both ends
// of a connection: packets, acknowledgements, escapes, run lengths, hex, thread
// ids. It does no I/O and knows no packet by name.
//
// Source: GDB manual, "Overview" and "Packets" of appendix "GDB Remote Serial Protocol".
package rsp

import "errors"

// MaxPacket is the largest payload the Decoder accepts, in bytes after escapes
// and run lengths are undone. QEMU's stub sends at most 4 KiB; our own server
// offers packets far smaller than this.
const MaxPacket = 1 << 20

// Errors of a frame that was received and dropped. The Decoder stands behind
// the frame and can go on.
var (
	// ErrChecksum means the line garbled a frame: worth a Nak.
	ErrChecksum = errors.New("packet has a wrong checksum")
	// ErrTooLong means the payload is larger than MaxPacket. A Nak would only
	// bring it again.
	ErrTooLong = errors.New("packet is longer than this side accepts")
	// ErrCorrupt is a peer's mistake that no retransmission cures: an impossible
	// run length, an escape with nothing behind it, bad hex, a bad thread id.
	ErrCorrupt = errors.New("malformed packet")
)

// Bytes with a meaning in a frame.
const (
	startPacket       = '$'
	startNotification = '%'
	endPayload        = '#'
	escape            = '}'
	repeat            = '*'

	escapeXor = 0x20
	// A run is "previous byte, '*', repeatBase + how many more of it".
	repeatBase = 29
	repeatMin  = 3  // the fewest that are worth it, and the first printable count
	repeatMax  = 97 // repeatBase + 97 is '~', the last printable byte
)

// The bytes that stand alone between frames.
const (
	AckByte       = '+'
	NakByte       = '-'
	InterruptByte = 0x03
)
