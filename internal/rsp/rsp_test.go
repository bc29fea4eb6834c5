package rsp_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"nestdbg/internal/rsp"
)

func TestAppendFrame(t *testing.T) {
	for _, c := range []struct{ payload, want string }{
		{"", "$#00"},
		{"OK", "$OK#9a"},
		{"a#b$c}d*e", "$a}\x03b}\x04c}]d}\ne#51"},
		{"%+-\x03", "$%+-\x03#80"},
	} {
		if got := rsp.AppendFrame([]byte("x"), []byte(c.payload)); string(got) != "x"+c.want {
			t.Errorf("AppendFrame(%q) = %q, want %q", c.payload, got[1:], c.want)
		}
	}
	if got := rsp.AppendNotification(nil, []byte("Stop:T05")); string(got) != "%Stop:T05#99" {
		t.Errorf("AppendNotification = %q", got)
	}
}

func TestAppendFrameRLE(t *testing.T) {
	for _, c := range []struct{ payload, want string }{
		{"000", "$000#90"},
		{"0000", "$0* #7a"},           // GDB manual, "Overview": "0* " is "0000"
		{"0000000", "$0*\"0#ac"},      // a count of 6 would be '#'
		{"00000000", "$0*\"00#dc"},    // and of 7 '$'
		{"0000000" + "00", "$0*%#7f"}, // 8 more
		{strings.Repeat("f", 98), "$f*~#0e"},
		{"####", "$}\x03}\x03}\x03}\x03#00"},
	} {
		if got := rsp.AppendFrameRLE(nil, []byte(c.payload)); string(got) != c.want {
			t.Errorf("AppendFrameRLE(%q) = %q, want %q", c.payload, got, c.want)
		}
	}
}

// decodeAll renders everything a decoder finds, fed in pieces of step bytes.
func decodeAll(in string, step int) string {
	var d rsp.Decoder
	var out []string
	for len(in) > 0 {
		n := min(step, len(in))
		d.Feed([]byte(in[:n]))
		in = in[n:]
		for {
			e, ok, err := d.Next()
			if err != nil {
				out = append(out, err.Error())
			} else if ok {
				out = append(out, strings.TrimSuffix(e.Kind.String()+" "+string(e.Payload), " "))
			} else {
				break
			}
		}
	}
	return strings.Join(out, "|")
}

func TestDecoder(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"$OK#9a", "packet OK"},
		{"$OK#9A", "packet OK"},
		{"+$#00-\x03", "ack|packet|nak|interrupt"},
		{"%Stop:T05#99", "notification Stop:T05"},
		{"junk\r\n$OK#9ajunk", "packet OK"},
		{"$OK#9b$OK#9a", "packet has a wrong checksum|packet OK"},
		{"$OK#9g$OK#9a", "packet has a wrong checksum|packet OK"},
		{"$lost$OK#9a", "packet OK"},
		{"$0* #7a", "packet 0000"},
		{"$0*~#d8", "packet " + strings.Repeat("0", 98)},
		{"$*!#4b", "malformed packet"},
		{"$0*\x1f#79", "malformed packet"},
		{"$0*#5a", "malformed packet"},
		{"$a}#de", "malformed packet"},
		{"$a}\x03#e1", "packet a#"},
		{"$X\x03+-%#d8+", "packet X\x03+-%|ack"},
	} {
		for _, step := range []int{1, 3, 1000} {
			if got := decodeAll(c.in, step); got != c.want {
				t.Errorf("decode %q by %d = %q, want %q", c.in, step, got, c.want)
			}
		}
	}
}

func TestDecoderIsBounded(t *testing.T) {
	fits := bytes.Repeat([]byte{'}'}, rsp.MaxPacket)
	check := func(payload []byte, want error) {
		t.Helper()
		var d rsp.Decoder
		d.Feed(append(rsp.AppendFrame(nil, payload), "$OK#9a"...))
		e, ok, err := d.Next()
		if !errors.Is(err, want) || ok != (want == nil) || ok && !bytes.Equal(e.Payload, payload) {
			t.Errorf("%d bytes: ok %v, error %v, want error %v", len(payload), ok, err, want)
		}
		if e, ok, err := d.Next(); !ok || err != nil || string(e.Payload) != "OK" {
			t.Errorf("after %d bytes: %q, %v, %v", len(payload), e.Payload, ok, err)
		}
	}
	check(fits, nil)
	check(append(fits, 'a'), rsp.ErrTooLong)

	// A few bytes of run lengths must not become many megabytes.
	var d rsp.Decoder
	bomb := []byte("$0" + strings.Repeat("*~", rsp.MaxPacket/90))
	sum := byte(0)
	for _, c := range bomb[1:] {
		sum += c
	}
	d.Feed(append(bomb, '#'))
	d.Feed(rsp.AppendHex(nil, []byte{sum}))
	if _, ok, err := d.Next(); ok || !errors.Is(err, rsp.ErrTooLong) {
		t.Errorf("run lengths: ok %v, error %v, want ErrTooLong", ok, err)
	}
}

func TestThreadID(t *testing.T) {
	for _, c := range []struct {
		in    string
		multi bool
		want  rsp.ThreadID
		ok    bool
	}{
		{"p1.2", true, rsp.ThreadID{PID: 1, TID: 2}, true},
		{"p01.1f", true, rsp.ThreadID{PID: 1, TID: 0x1f}, true},
		{"p2.-1", true, rsp.ThreadID{PID: 2, TID: -1}, true},
		{"p2", true, rsp.ThreadID{PID: 2, TID: -1}, true},
		{"p-1.-1", true, rsp.ThreadID{PID: -1, TID: -1}, true},
		{"p0.0", true, rsp.ThreadID{}, true},
		{"-1", true, rsp.ThreadID{PID: 0, TID: -1}, true},
		{"0001", false, rsp.ThreadID{PID: 0, TID: 1}, true},
		{"p1.2", false, rsp.ThreadID{}, false},
		{"p-1.2", true, rsp.ThreadID{}, false},
		{"p", true, rsp.ThreadID{}, false},
		{"p1.", true, rsp.ThreadID{}, false},
		{"p.1", true, rsp.ThreadID{}, false},
		{"p1.2.3", true, rsp.ThreadID{}, false},
		{"", false, rsp.ThreadID{}, false},
		{"-2", false, rsp.ThreadID{}, false},
		{"+1", false, rsp.ThreadID{}, false},
		{"80000000", false, rsp.ThreadID{}, false},
	} {
		got, err := rsp.ParseThreadID(c.in, c.multi)
		if got != c.want || (err == nil) != c.ok || err != nil && !errors.Is(err, rsp.ErrCorrupt) {
			t.Errorf("ParseThreadID(%q, %v) = %v, %v, want %v", c.in, c.multi, got, err, c.want)
		}
	}
	id := rsp.ThreadID{PID: 0x1f, TID: -1}
	if got := id.String(); got != "p1f.-1" {
		t.Errorf("String = %q", got)
	}
	if got := string(id.Append(nil, false)); got != "-1" {
		t.Errorf("plain = %q", got)
	}
	for _, c := range []struct {
		pattern string
		want    bool
	}{{"p1.1", true}, {"p1", true}, {"p-1.-1", true}, {"-1", true}, {"p2", false}, {"p1.2", false}} {
		p, _ := rsp.ParseThreadID(c.pattern, true)
		if got := p.Covers(rsp.ThreadID{PID: 1, TID: 1}); got != c.want {
			t.Errorf("%s covers p1.1 = %v", c.pattern, got)
		}
	}
}

func TestHex(t *testing.T) {
	if got := rsp.AppendHex([]byte("m"), []byte{0, 0xaf}); string(got) != "m00af" {
		t.Errorf("AppendHex = %q", got)
	}
	if got, err := rsp.DecodeHex([]byte("a"), "00aF"); err != nil || string(got) != "a\x00\xaf" {
		t.Errorf("DecodeHex = %q, %v", got, err)
	}
	for _, s := range []string{"0", "0g", "x0", "000"} {
		if got, err := rsp.DecodeHex([]byte("a"), s); !errors.Is(err, rsp.ErrCorrupt) || string(got) != "a" {
			t.Errorf("DecodeHex(%q) = %q, %v", s, got, err)
		}
	}
	for s, want := range map[string]uint64{"0": 0, "ffffffff81000000": 0xffffffff81000000, "00000000000000000001": 1} {
		if got, err := rsp.ParseHex(s); err != nil || got != want {
			t.Errorf("ParseHex(%q) = %#x, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "0x1", "-1", "10000000000000000", "1 "} {
		if _, err := rsp.ParseHex(s); !errors.Is(err, rsp.ErrCorrupt) {
			t.Errorf("ParseHex(%q): %v", s, err)
		}
	}
	value, known, err := rsp.ParseRegisters([]byte("00xxff"))
	if err != nil || !bytes.Equal(value, []byte{0, 0, 0xff}) || !known[0] || known[1] || !known[2] {
		t.Errorf("ParseRegisters = %v %v %v", value, known, err)
	}
	for _, s := range []string{"0", "0x", "x0", "g0"} {
		if _, _, err := rsp.ParseRegisters([]byte(s)); !errors.Is(err, rsp.ErrCorrupt) {
			t.Errorf("ParseRegisters(%q): %v", s, err)
		}
	}
}

func TestEscapedPrefix(t *testing.T) {
	for _, c := range []struct {
		p    string
		max  int
		want int
	}{{"abc", 3, 3}, {"abc", 2, 2}, {"a#c", 3, 2}, {"a#c", 2, 1}, {"#", 1, 0}, {"", 0, 0}} {
		if got := rsp.EscapedPrefix([]byte(c.p), c.max); got != c.want {
			t.Errorf("EscapedPrefix(%q, %d) = %d, want %d", c.p, c.max, got, c.want)
		}
	}
}

// FuzzRoundTrip: what either encoder makes of any payload decodes to that
// payload, however the line cuts it.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("a#b$c}d*e"), uint8(1))
	f.Add(bytes.Repeat([]byte("0"), 300), uint8(7))
	f.Add(bytes.Repeat([]byte("*"), 9), uint8(255))
	f.Fuzz(func(t *testing.T, payload []byte, step uint8) {
		if len(payload) > rsp.MaxPacket {
			return
		}
		wire := rsp.AppendFrame(nil, payload)
		wire = rsp.AppendFrameRLE(wire, payload)
		var d rsp.Decoder
		found := 0
		for len(wire) > 0 {
			n := min(int(step)+1, len(wire))
			d.Feed(wire[:n])
			wire = wire[n:]
			for {
				e, ok, err := d.Next()
				if err != nil {
					t.Fatal(err)
				}
				if !ok {
					break
				}
				if e.Kind != rsp.Packet || !bytes.Equal(e.Payload, payload) {
					t.Fatalf("%v %q, want packet %q", e.Kind, e.Payload, payload)
				}
				found++
			}
		}
		if found != 2 {
			t.Fatalf("%d frames decoded, want 2", found)
		}
	})
}

// FuzzDecoder: any bytes give events and errors, never a panic, and a decoder
// that saw garbage still finds the frame behind it.
func FuzzDecoder(f *testing.F) {
	f.Add([]byte("+$0* #7a%x#78\x03$a}#de"))
	f.Add([]byte("$0*~*~*~#00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var d rsp.Decoder
		d.Feed(in)
		// The first frame may serve to end an unfinished one.
		d.Feed([]byte("#00$first#39$vMustReplyEmpty#3a"))
		var last []byte
		for i := 0; ; i++ {
			if i > len(in)+10 {
				t.Fatal("more events than bytes")
			}
			e, ok, err := d.Next()
			if err == nil && !ok {
				break
			}
			last = append(last[:0], e.Payload...)
		}
		if string(last) != "vMustReplyEmpty" {
			t.Fatalf("last packet %q", last)
		}
	})
}

func BenchmarkAppendFrame(b *testing.B) {
	payload := rsp.AppendHex(nil, bytes.Repeat([]byte{0, 1, 0x5a, 0xff}, 1<<14))
	var dst []byte
	b.SetBytes(int64(len(payload)))
	for b.Loop() {
		dst = rsp.AppendFrame(dst[:0], payload)
	}
}

func BenchmarkAppendFrameRLE(b *testing.B) {
	payload := rsp.AppendHex(nil, bytes.Repeat([]byte{0, 1, 0x5a, 0xff}, 1<<14))
	var dst []byte
	b.SetBytes(int64(len(payload)))
	for b.Loop() {
		dst = rsp.AppendFrameRLE(dst[:0], payload)
	}
}

func BenchmarkDecoder(b *testing.B) {
	frame := rsp.AppendFrame(nil, rsp.AppendHex(nil, bytes.Repeat([]byte{0, 1, 0x5a, 0xff}, 512)))
	var d rsp.Decoder
	b.SetBytes(int64(len(frame)))
	for b.Loop() {
		d.Feed(frame)
		if _, ok, err := d.Next(); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}
