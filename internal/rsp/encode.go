package rsp

const hexDigits = "0123456789abcdef"

// AppendFrame appends $payload#xx, with the bytes that have a meaning in a frame
// escaped. payload is raw bytes of any value.
func AppendFrame(dst, payload []byte) []byte {
	return appendFrame(dst, startPacket, payload)
}

// AppendNotification appends %payload#xx, which the peer does not acknowledge.
func AppendNotification(dst, payload []byte) []byte {
	return appendFrame(dst, startNotification, payload)
}

func appendFrame(dst []byte, start byte, payload []byte) []byte {
	dst = append(dst, start)
	body := len(dst)
	dst = AppendEscaped(dst, payload)
	return appendChecksum(dst, checksum(dst[body:]))
}

// AppendFrameRLE is AppendFrame with run lengths. Only what a server sends may
// have them. They are worth it: gdb 13 spends ten times as long on a byte of a
// frame as looking for runs costs here.
func AppendFrameRLE(dst, payload []byte) []byte {
	dst = append(dst, startPacket)
	body := len(dst)
	plain := 0 // payload[plain:i] is not appended yet
	for i := 0; i+repeatMin < len(payload); {
		if payload[i+repeatMin] != payload[i+repeatMin-1] {
			// Any run worth it that starts before i+repeatMin has both of these.
			i += repeatMin
			continue
		}
		n := runLength(payload[i:])
		if n <= repeatMin {
			i++
			continue
		}
		dst = AppendEscaped(dst, payload[plain:i])
		dst = appendRun(dst, payload[i], n)
		i += n
		plain = i
	}
	dst = AppendEscaped(dst, payload[plain:])
	return appendChecksum(dst, checksum(dst[body:]))
}

// runLength counts how often p's first byte stands at its start, as far as one run
// can tell.
func runLength(p []byte) int {
	n := 1
	for n < len(p) && n <= repeatMax && p[n] == p[0] {
		n++
	}
	return n
}

// appendRun appends c n times, 1 <= n <= repeatMax+1.
func appendRun(dst []byte, c byte, n int) []byte {
	if special(c) {
		// A run repeats the byte on the wire, and there it is two bytes.
		for range n {
			dst = append(dst, escape, c^escapeXor)
		}
		return dst
	}
	dst = append(dst, c)
	more := n - 1
	// A count must not look like the end or the start of a frame, and old peers
	// look for acknowledgements everywhere.
	rest := 0
	for more >= repeatMin && badCount(byte(repeatBase+more)) {
		more--
		rest++
	}
	if more >= repeatMin {
		dst = append(dst, repeat, byte(repeatBase+more))
		more = 0
	}
	for range more + rest {
		dst = append(dst, c)
	}
	return dst
}

func badCount(c byte) bool {
	return c == endPayload || c == startPacket || c == AckByte || c == NakByte
}

// AppendEscaped appends p as it must stand inside a frame.
func AppendEscaped(dst, p []byte) []byte {
	for len(p) > 0 {
		n := 0
		for n < len(p) && !special(p[n]) {
			n++
		}
		dst = append(dst, p[:n]...)
		if n == len(p) {
			break
		}
		dst = append(dst, escape, p[n]^escapeXor)
		p = p[n+1:]
	}
	return dst
}

// EscapedPrefix returns how many bytes of p fit into a frame of at most max
// bytes on the wire, escapes counted.
func EscapedPrefix(p []byte, max int) int {
	for n, c := range p {
		max--
		if special(c) {
			max--
		}
		if max < 0 {
			return n
		}
	}
	return len(p)
}

// isSpecial is the bytes that have a meaning in a frame, as a table: a large read is
// looked through byte by byte, twice.
var isSpecial = [256]bool{endPayload: true, startPacket: true, escape: true, repeat: true}

func special(c byte) bool { return isSpecial[c] }

// checksum is the sum of the bytes on the wire, modulo 256.
func checksum(wire []byte) (sum byte) {
	for _, c := range wire {
		sum += c
	}
	return sum
}

func appendChecksum(dst []byte, s byte) []byte {
	return append(dst, endPayload, hexDigits[s>>4], hexDigits[s&15])
}
