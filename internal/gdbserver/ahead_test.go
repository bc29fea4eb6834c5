package gdbserver_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"nestdbg/internal/gdbserver"
	"nestdbg/internal/gdbserver/gdbservertest"
	"nestdbg/internal/rsp"
)

const aheadPiece = 16 << 10 // large enough to be read ahead

// reader is a session with two machines of other memory at the same addresses.
type reader struct {
	*session
	reads int // of the target's memory; guarded by the fake's lock
	pid   int
	pos   uint64
	bin   bool
}

func newReader(t *testing.T, size int) *reader {
	var machines []*gdbservertest.Machine
	random := rand.New(rand.NewPCG(1, 2))
	for pid := 1; pid <= 2; pid++ {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		machines = append(machines, gdbservertest.NewMachine(pid, 1, text, gdbservertest.Segment{Base: 0, Data: data}))
	}
	r := &reader{pid: 2}
	f := gdbservertest.New(machines...)
	f.Fail = func(name string) error {
		if name == "read" {
			r.reads++
		}
		return nil
	}
	r.session = start(t, f, offer13, "QStartNoAckMode", "!", "vAttach;1", "vAttach;2")
	return r
}

// next reads the next piece and compares it with the memory of now.
func (r *reader) next() {
	r.t.Helper()
	verb := map[bool]string{false: "m", true: "x"}[r.bin]
	got := r.send(fmt.Sprintf("%s%x,%x", verb, r.pos, aheadPiece))
	r.fake.Lock()
	now := r.fake.Machines[r.pid].Memory[0].Data[r.pos:][:aheadPiece]
	want := "b" + string(now)
	if !r.bin {
		want = hex.EncodeToString(now)
	}
	r.fake.Unlock()
	if got != want {
		r.t.Fatalf("%s at %#x of machine %d is not what is there now", verb, r.pos, r.pid)
	}
	r.pos += aheadPiece
}

// change writes into the piece that would be read ahead, behind the engine's back.
func (r *reader) change() {
	r.fake.Lock()
	defer r.fake.Unlock()
	for _, m := range r.fake.Machines {
		m.Memory[0].Data[r.pos+5] ^= 0xff
	}
}

// A client that reads on gets what was read ahead: for n pieces n+1 are read.
func TestReadAhead(t *testing.T) {
	for _, bin := range []bool{false, true} {
		r := newReader(t, 32*aheadPiece)
		r.bin = bin
		for range 16 {
			r.next()
		}
		r.check("qC", "QCp2.1") // the last one has ended then
		if r.reads != 17 {
			t.Errorf("binary %v: %d reads for 16 pieces", bin, r.reads)
		}
		r.reads = 0
		for _, piece := range []uint64{9, 3, 5, 3} {
			r.pos = piece * aheadPiece
			r.next()
		}
		if r.check("qC", "QCp2.1"); r.reads != 4 {
			t.Errorf("binary %v: %d reads for 4 pieces here and there", bin, r.reads)
		}
	}
}

// Whatever comes between two pieces, the second is of after it.
func TestReadAheadIsNeverOld(t *testing.T) {
	for name, between := range map[string]func(r *reader){
		"a write": func(r *reader) {
			r.check(fmt.Sprintf("M%x,4:01020304", r.pos+100), "OK")
		},
		"a binary write": func(r *reader) { r.check(fmt.Sprintf("X%x,1:a", r.pos), "OK") },
		"a resumption": func(r *reader) {
			r.fake.OnResume = func([]gdbserver.Action, <-chan struct{}) (gdbserver.Stop, error) {
				r.change()
				return trap2, nil
			}
			r.check("vCont;c", "T05thread:p2.1;")
		},
		"a register":        func(r *reader) { r.send("P0=0000000000000001"); r.change() },
		"a monitor command": func(r *reader) { r.send("qRcmd,6869"); r.change() },
		"another machine":   func(r *reader) { r.check("Hgp1.1", "OK"); r.pid = 1 },
		"another packet":    func(r *reader) { r.bin = !r.bin; r.change() },
		"a place elsewhere": func(r *reader) {
			r.check("m0,1", hex.EncodeToString(r.fake.Machines[2].Memory[0].Data[:1]))
			r.change()
		},
		"a fault":      func(r *reader) { r.check("mffffffff,1", "E14"); r.change() },
		"a bad packet": func(r *reader) { r.send("m"); r.change() },
		"a while":      func(r *reader) { time.Sleep(150 * time.Millisecond); r.change() },
	} {
		t.Run(name, func(t *testing.T) {
			r := newReader(t, 32*aheadPiece)
			for range 3 {
				r.next()
				r.next()
				between(r)
				r.next()
				r.next()
			}
		})
	}
}

// The end of what is mapped is told as without reading ahead, and a failure or panic of
// the target costs nothing but the time.
func TestReadAheadFails(t *testing.T) {
	r := newReader(t, 3*aheadPiece+10)
	for range 3 {
		r.next()
	}
	rest := hex.EncodeToString(r.fake.Machines[2].Memory[0].Data[r.pos:])
	r.check(fmt.Sprintf("m%x,%x", r.pos, aheadPiece), rest, fmt.Sprintf("m%x,%x", r.pos+10, aheadPiece), "E14")

	r = newReader(t, 32*aheadPiece)
	r.reads = 0
	r.fake.Fail = func(name string) error {
		if name == "read" {
			r.reads++
		}
		if name == "read" && r.reads == 3 {
			panic("told to panic")
		}
		return nil
	}
	r.check("m0,4000", hex.EncodeToString(r.fake.Machines[2].Memory[0].Data[:0x4000]))
	r.pos = 0x4000
	r.next() // the next one is read ahead, which panics, and then for itself
	r.next()
	r.engine.Close()
	if r.fake.Closed != 1 {
		t.Errorf("closed %d times", r.fake.Closed)
	}
}

// Close waits for what is being read.
func TestReadAheadEndsWithTheEngine(t *testing.T) {
	for range 50 {
		r := newReader(t, 8*aheadPiece)
		closed := false
		r.fake.Fail = func(name string) error {
			if closed && name == "read" {
				t.Error("memory of a closed target was read")
			}
			closed = closed || name == "close"
			return nil
		}
		r.next()
		r.next()
		r.engine.Close()
	}
}

// BenchmarkReadOn is a client that reads 64 MiB piece by piece over a pair of sockets,
// and decodes each.
func BenchmarkReadOn(b *testing.B) {
	const size, piece = 64 << 20, 0x1fffe
	data := bytes.Repeat([]byte{1, 2, 3, 4, 5, 6, 7, 0x7d}, size/8)
	f := gdbservertest.New(gdbservertest.NewMachine(1, 1, text, gdbservertest.Segment{Base: 0, Data: data}))
	l, err := net.Listen("unix", b.TempDir()+"/gdb")
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		if conn, err := l.Accept(); err == nil {
			gdbserver.Serve(b.Context(), conn, f.Target(), gdbserver.Options{})
		}
	}()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	var d rsp.Decoder
	buf := make([]byte, 64<<10)
	ask := func(packet string) []byte {
		conn.Write(rsp.AppendFrame(nil, []byte(packet)))
		for {
			e, ok, err := d.Next()
			if err != nil {
				b.Fatal(err)
			}
			if ok && e.Kind == rsp.Packet {
				return e.Payload
			}
			if !ok {
				n, err := conn.Read(buf)
				if err != nil && err != io.EOF || n == 0 {
					b.Fatal(err)
				}
				d.Feed(buf[:n])
			}
		}
	}
	ask("QStartNoAckMode")
	b.SetBytes(size)
	var got []byte
	for b.Loop() {
		for at := 0; at < size; at += len(got) {
			if got, err = rsp.DecodeHex(got[:0], ask(fmt.Sprintf("m%x,%x", at, piece))); err != nil || len(got) == 0 {
				b.Fatal(len(got), err)
			}
		}
	}
}
