package rsp

import "fmt"

// Kind says what came over the line.
type Kind int

// The kinds of event.
const (
	Packet       Kind = iota // $...#xx
	Ack                      // +
	Nak                      // -
	Interrupt                // byte 0x03 between frames
	Notification             // %...#xx
)

func (k Kind) String() string {
	names := [...]string{"packet", "ack", "nak", "interrupt", "notification"}
	if k < 0 || int(k) >= len(names) {
		return fmt.Sprintf("Kind(%d)", int(k))
	}
	return names[k]
}

// Event is one thing that came over the line. Payload is set for packets and
// notifications, with escapes and run lengths undone; it is valid until the next
// call of the Decoder that made it.
type Event struct {
	Kind    Kind
	Payload []byte
}

// Decoder turns a byte stream into events: Feed it what was read, then call Next
// until it has no more. The zero value is ready. It holds at most what was fed
// and not yet taken, plus one packet of MaxPacket bytes.
type Decoder struct {
	in  []byte // fed; in[pos:] is not looked at yet
	pos int

	state   decodeState
	kind    Kind
	payload []byte
	last    byte // previous byte on the wire, for run lengths
	hasLast bool
	escaped bool // the previous byte was the escape
	sum     byte
	want    byte
	err     error // why the frame being read will be dropped
}

type decodeState int

const (
	between   decodeState = iota // frames
	inPayload                    //
	inCount                      // behind '*'
	inSum1                       // behind '#'
	inSum2                       // behind the first digit of the checksum
)

// Feed appends bytes that came over the line; they are copied. Payloads handed
// out before are no longer valid.
func (d *Decoder) Feed(b []byte) {
	if d.pos > 0 {
		d.in = d.in[:copy(d.in, d.in[d.pos:])]
		d.pos = 0
	}
	d.in = append(d.in, b...)
}

// Next returns the next event. ok is false, without an error, when more bytes are
// needed. An error tells of a frame that was dropped (ErrChecksum, ErrTooLong or
// ErrCorrupt); the next call goes on behind it. Bytes between frames that mean
// nothing are skipped.
func (d *Decoder) Next() (e Event, ok bool, err error) {
	for d.pos < len(d.in) {
		d.takePlain()
		if d.pos == len(d.in) {
			break
		}
		c := d.in[d.pos]
		d.pos++
		done, err := d.step(c)
		if err != nil {
			return Event{}, false, err
		}
		if done {
			e := Event{Kind: d.kind}
			if d.kind == Packet || d.kind == Notification {
				e.Payload = d.payload
			}
			return e, true, nil
		}
	}
	return Event{}, false, nil
}

// takePlain takes the bytes of a payload that mean only themselves, all at once:
// nearly all of the traffic is long hex.
func (d *Decoder) takePlain() {
	if d.state != inPayload || d.escaped || d.err != nil {
		return
	}
	rest := d.in[d.pos:]
	rest = rest[:min(len(rest), MaxPacket-len(d.payload))]
	n, sum := 0, d.sum
	for n < len(rest) && !special(rest[n]) {
		sum += rest[n]
		n++
	}
	if n == 0 {
		return
	}
	d.payload = append(d.payload, rest[:n]...)
	d.last, d.hasLast = rest[n-1], true
	d.sum = sum
	d.pos += n
}

// step takes one byte. done means that an event of d.kind is complete.
func (d *Decoder) step(c byte) (done bool, err error) {
	switch d.state {
	case between:
		return d.stepBetween(c), nil
	case inPayload:
		d.stepPayload(c)
	case inCount:
		d.stepCount(c)
	case inSum1:
		d.want = d.digit(c) << 4
		d.state = inSum2
	case inSum2:
		d.want |= d.digit(c)
		d.state = between
		return d.finish()
	}
	return false, nil
}

func (d *Decoder) stepBetween(c byte) (done bool) {
	switch c {
	case startPacket:
		d.start(Packet)
		return false
	case startNotification:
		d.start(Notification)
		return false
	case AckByte:
		d.kind = Ack
	case NakByte:
		d.kind = Nak
	case InterruptByte:
		d.kind = Interrupt
	default:
		return false
	}
	return true
}

func (d *Decoder) start(k Kind) {
	*d = Decoder{in: d.in, pos: d.pos, payload: d.payload[:0], kind: k, state: inPayload}
}

func (d *Decoder) stepPayload(c byte) {
	switch c {
	case startPacket:
		// The end of the frame before got lost; gdb and QEMU start over as well.
		d.start(Packet)
		return
	case endPayload:
		if d.escaped {
			d.fail(ErrCorrupt)
		}
		d.state = inSum1
		return
	case repeat:
		d.state = inCount
	default:
		d.put(c)
		d.last, d.hasLast = c, true
	}
	d.sum += c
}

// stepCount takes the byte behind '*'.
func (d *Decoder) stepCount(c byte) {
	if c == endPayload || c == startPacket {
		d.fail(ErrCorrupt)
		d.state = inPayload
		d.stepPayload(c)
		return
	}
	d.sum += c
	d.state = inPayload
	if !d.hasLast || c < repeatBase+repeatMin || c > repeatBase+repeatMax {
		d.fail(ErrCorrupt)
		return
	}
	for range c - repeatBase {
		d.put(d.last)
	}
}

// put appends a byte of the wire to the payload. Run lengths are undone before
// escapes, as in gdb's remote.c:read_frame.
func (d *Decoder) put(c byte) {
	if d.err != nil {
		return
	}
	switch {
	case d.escaped:
		d.escaped = false
		c ^= escapeXor
	case c == escape:
		d.escaped = true
		return
	}
	if len(d.payload) >= MaxPacket {
		d.fail(ErrTooLong)
		return
	}
	d.payload = append(d.payload, c)
}

func (d *Decoder) digit(c byte) byte {
	v, ok := hexValue(c)
	if !ok {
		d.fail(ErrChecksum)
	}
	return v
}

// fail notes why the frame will be dropped; the first reason stays.
func (d *Decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

func (d *Decoder) finish() (done bool, err error) {
	// A garbled line can look like anything else, so this reason wins.
	if d.sum != d.want {
		return false, ErrChecksum
	}
	return d.err == nil, d.err
}
