package gdbserver_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"nestdbg/internal/gdbserver"
	"nestdbg/internal/gdbserver/gdbservertest"
	"nestdbg/internal/rsp"
)

// served is one end of a connection whose other end Serve has.
type served struct {
	t      *testing.T
	conn   net.Conn
	fake   *gdbservertest.Fake
	cancel func()
	done   chan error
}

func serve(t *testing.T) *served {
	ours, theirs := net.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	s := &served{t, ours, twoMachines(), cancel, make(chan error, 1)}
	go func() { s.done <- gdbserver.Serve(ctx, theirs, s.fake.Target(), gdbserver.Options{}) }()
	t.Cleanup(func() { cancel(); ours.Close() })
	ours.SetDeadline(time.Now().Add(20 * time.Second))
	return s
}

// send sends a packet and, if there is to be one, reads the reply.
func (s *served) send(packet, want string) {
	s.t.Helper()
	if _, err := s.conn.Write(rsp.AppendFrame(nil, []byte(packet))); err != nil {
		s.t.Fatal(err)
	}
	if want != "" {
		s.receive(want)
	}
}

func (s *served) receive(want string) {
	s.t.Helper()
	var d rsp.Decoder
	b := make([]byte, 4096)
	for {
		e, ok, err := d.Next()
		switch {
		case err != nil:
			s.t.Fatal(err)
		case ok && e.Kind == rsp.Packet:
			if string(e.Payload) != want {
				s.t.Fatalf("got %q, want %q", e.Payload, want)
			}
			return
		case ok:
			continue
		}
		n, err := s.conn.Read(b)
		if err != nil {
			s.t.Fatal(err)
		}
		d.Feed(b[:n])
	}
}

// ended waits for Serve to return, and checks that it left nothing behind.
func (s *served) ended(want error) {
	s.t.Helper()
	select {
	case err := <-s.done:
		if !errors.Is(err, want) {
			s.t.Errorf("Serve: %v, want %v", err, want)
		}
	case <-time.After(20 * time.Second):
		s.t.Fatal("Serve does not return")
	}
	if s.fake.Closed != 1 || len(s.fake.Attached) != 0 {
		s.t.Errorf("closed %d times, attached %v", s.fake.Closed, s.fake.Attached)
	}
	if _, err := s.conn.Read(make([]byte, 1)); err == nil {
		s.t.Error("the connection is still open")
	}
}

func (s *served) run() {
	s.t.Helper()
	s.send("QStartNoAckMode", "OK")
	s.send("!", "OK")
	s.send("vAttach;1", "T05thread:1;")
	s.send("vCont;c", "")
	waitFor(s.t, s.fake, func() bool { return strings.HasPrefix(s.fake.Calls[len(s.fake.Calls)-1], "resume") })
}

func TestServe(t *testing.T) {
	s := serve(t)
	s.run()
	s.conn.Write([]byte("\x03"))
	s.receive("T02thread:1;")
	s.send("vCont;s:1", "T05thread:1;core:0;")
	s.send("k", "")
	s.ended(nil)
}

func TestServeEnds(t *testing.T) {
	for _, running := range []bool{false, true} {
		t.Run(fmt.Sprintf("client leaves, running %v", running), func(t *testing.T) {
			s := serve(t)
			if running {
				s.run()
			}
			s.conn.Close()
			s.ended(nil)
		})
		t.Run(fmt.Sprintf("cancelled, running %v", running), func(t *testing.T) {
			s := serve(t)
			if running {
				s.run()
			}
			s.cancel()
			s.ended(context.Canceled)
		})
	}
	t.Run("k while running", func(t *testing.T) {
		s := serve(t)
		s.run()
		s.send("k", "")
		s.ended(nil)
	})
}

// TestServeBrokenConnection: every read and write may fail.
func TestServeBrokenConnection(t *testing.T) {
	broken := errors.New("broken")
	input := "+$qAttached#8f$!#21$vAttach;1#37$g#67$vCont;s:1#e7$qC#b4"
	for n := 0; ; n++ {
		c := &flaky{in: input, left: n, err: broken}
		f := twoMachines()
		err := gdbserver.Serve(context.Background(), c, f.Target(), gdbserver.Options{})
		if f.Closed != 1 {
			t.Fatalf("after %d operations: Core.Close called %d times", n, f.Closed)
		}
		if c.left >= 0 {
			if err != nil {
				t.Errorf("nothing failed, but: %v", err)
			}
			return
		}
		if !errors.Is(err, broken) {
			t.Errorf("after %d operations: %v", n, err)
		}
	}
}

// flaky delivers its input in small pieces and fails after so many operations.
type flaky struct {
	mu   sync.Mutex
	in   string
	left int
	err  error
}

func (c *flaky) operation() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left--
	if c.left < 0 {
		return c.err
	}
	return nil
}

func (c *flaky) Read(p []byte) (int, error) {
	if err := c.operation(); err != nil {
		return 0, err
	}
	if c.in == "" {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), 20)], c.in)
	c.in = c.in[n:]
	return n, nil
}

func (c *flaky) Write(p []byte) (int, error) { return len(p), c.operation() }
func (c *flaky) Close() error                { return nil }
