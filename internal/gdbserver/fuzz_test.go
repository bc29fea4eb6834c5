package gdbserver_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"testing"

	"nestdbg/internal/gdbserver"
	"nestdbg/internal/gdbserver/gdbservertest"
	"nestdbg/internal/rsp"
)

// echo is a Monitor without the words that make the fake's panic.
type echo struct{}

func (echo) Monitor(_ context.Context, pid, tid int, command string, out io.Writer) error {
	_, err := fmt.Fprint(out, pid, tid, command)
	return err
}

// complain fails the test when the engine logs a panic, which it survives.
type complain struct{ t *testing.T }

func (c complain) Write(p []byte) (int, error) {
	c.t.Errorf("%s", p)
	return len(p), nil
}

// everyStop is a Resume that reports all kinds of stop in turn, among them those
// that the engine must hold or drop.
func everyStop() func([]gdbserver.Action, <-chan struct{}) (gdbserver.Stop, error) {
	n := 0
	stops := []gdbserver.Stop{
		trap2, break1, exited2, {Reason: gdbserver.Interrupted}, trap1, {PID: 9, Signal: 5}, event, killed2,
		{PID: 1, TID: 1, Signal: 5, Reason: gdbserver.LibraryLoad}, {PID: 1, Reason: gdbserver.Exited}, {PID: 2}, event,
	}
	return func([]gdbserver.Action, <-chan struct{}) (gdbserver.Stop, error) {
		n++
		return stops[n%len(stops)], nil
	}
}

// FuzzServer: whatever packets come, in whatever order, each gets a reply of a
// bounded size, and nothing panics. Lines of the input are packets.
func FuzzServer(f *testing.F) {
	for _, s := range []string{
		offer16 + "\n!\n?\nvAttach;1\nvAttach;2\ng\nqXfer:threads:read::0,1000\nvCont;c\nvCont;s:p2.1\nvCont;c\nD;1\n?",
		"QStartNoAckMode\nqC\nm10,ffffffff\nx10,10\nX10,0:\nM10,1:00\nP0=0000000000000000\np10\nvCont;rffffffff81000000,ffffffff81000010\nc\ns",
		"!\nvAttach;2\nZ1,10,1\nvCont;c:p1.-1\nvCont;t;c\nz1,10,1\nqRcmd,00\nHgp2.1\nHc-1\nTp1.1\nqfThreadInfo\nqsThreadInfo\nvKill;1\nk",
		"\x03\n$x#00\n-\n+",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		fake := twoMachines()
		fake.OnResume = everyStop()
		target := fake.Target()
		target.Monitor = echo{}
		log := slog.New(slog.NewTextHandler(complain{t}, &slog.HandlerOptions{Level: slog.LevelError}))
		s := &session{t, fake, gdbserver.New(target, gdbserver.Options{Log: log})}
		for packet := range bytes.SplitSeq(input, []byte("\n")) {
			out := s.raw(string(rsp.AppendFrame(nil, packet)))
			if s.engine.Closed() {
				break
			}
			replies := 0
			var d rsp.Decoder
			d.Feed([]byte(out))
			for {
				e, ok, err := d.Next()
				if err != nil || len(e.Payload) > 2*gdbserver.PacketSize {
					t.Fatalf("%q: bad reply: %v", packet, err)
				}
				if !ok {
					break
				}
				if e.Kind == rsp.Packet {
					replies++
				}
			}
			if replies == 0 {
				t.Fatalf("%q: no reply", packet)
			}
		}
		s.raw(string(input)) // and once as bytes on the line
		s.engine.Close()
		if fake.Closed != 1 || len(fake.Attached) != 0 {
			t.Fatalf("closed %d times, attached %v", fake.Closed, fake.Attached)
		}
	})
}

// BenchmarkReadMemory is the engine's share of a memory dump: 128 KiB for each "m".
func BenchmarkReadMemory(b *testing.B) {
	zero := make([]byte, 128<<10)
	kernel := make([]byte, len(zero)) // pointers, small numbers and zeros
	for i := 0; i < len(kernel); i += 24 {
		copy(kernel[i:], []byte{byte(i), byte(i >> 8), byte(i >> 16), 0x81, 0xff, 0xff, 0xff, 0xff, byte(i * 7)})
	}
	random := make([]byte, len(zero))
	for i := range random {
		random[i] = byte(i * i * 2654435761 >> 13)
	}
	for _, c := range []struct {
		name string
		data []byte
	}{{"zero", zero}, {"kernel", kernel}, {"random", random}} {
		b.Run(c.name, func(b *testing.B) {
			ctx := context.Background()
			f := gdbservertest.New(gdbservertest.NewMachine(1, 1, text, gdbservertest.Segment{Base: 0, Data: c.data}))
			e := gdbserver.New(f.Target(), gdbserver.Options{})
			e.Feed([]byte("$QStartNoAckMode#b0$qC#b4"))
			for ok := true; ok; {
				_, ok = e.Step(ctx)
			}
			request := rsp.AppendFrame(nil, []byte("m0,1fffe"))
			b.SetBytes(0x1fffe)
			b.ReportAllocs()
			for b.Loop() {
				e.Feed(request)
				if out, ok := e.Step(ctx); !ok || len(out) < 1000 {
					b.Fatal(len(out), ok)
				}
			}
		})
	}
}

// BenchmarkGDBDump is a dump of 64 MiB by the gdb that is installed.
func BenchmarkGDBDump(b *testing.B) {
	for _, c := range []struct {
		name  string
		every int // of so many pages one is not zero
	}{{"zero", 0}, {"half", 2}, {"full", 1}} {
		b.Run(c.name, func(b *testing.B) {
			data := make([]byte, 64<<20)
			for i := range data {
				if c.every > 0 && i>>12%c.every == 0 {
					data[i] = byte(i * i * 2654435761 >> 13)
				}
			}
			g := startGDB(b)
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				g.dump(b, data, b.TempDir()+"/dump")
			}
		})
	}
}
