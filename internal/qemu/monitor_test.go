package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"nestdbg/internal/qmp"
	"nestdbg/internal/qmp/qmptest"
)

// fakeMonitor serves QMP from s and returns a client.
func fakeMonitor(t *testing.T, s *qmptest.Server) *monitor {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qmp")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	m := newMonitor(Address{"unix", path}, life{pidfd: -1})
	t.Cleanup(func() { m.close(); l.Close() })
	return m
}

// echo answers with its arguments.
func echo(arguments json.RawMessage) (any, error) { return arguments, nil }

func checkEcho(t *testing.T, m *monitor, text string) {
	t.Helper()
	var got struct{ A string }
	err := m.ask(deadline(t, 5*time.Second), "echo", map[string]string{"a": text}, &got)
	if err != nil || got.A != text {
		t.Errorf("echo of %q: %q, %v", text, got.A, err)
	}
}

func TestMonitorAsks(t *testing.T) {
	const event = `{"event": "STOP"}` + "\r\n"
	for _, s := range []*qmptest.Server{{}, {Piece: 1}, {Before: event + event}, {Piece: 7, Before: event}, {Early: event + event}} {
		s.Commands = map[string]qmptest.Handler{"echo": echo, "number": func(json.RawMessage) (any, error) { return 5, nil }}
		m := fakeMonitor(t, s)
		checkEcho(t, m, "one")
		checkEcho(t, m, strings.Repeat("long", 2000))
		var refused *qmp.Error
		if err := m.ask(t.Context(), "nothing", nil, nil); !errors.As(err, &refused) || refused.Class != qmp.CommandNotFound {
			t.Errorf("unknown command: %v", err)
		}
		var text string
		if err := m.ask(t.Context(), "number", nil, &text); !errors.Is(err, ErrCorrupt) {
			t.Errorf("a number as text: %v", err)
		}
		replies, err := m.exchange(t.Context(), command{name: "nothing"}, command{name: "number"})
		if err != nil || replies[0].err == nil || string(replies[1].value) != "5" {
			t.Errorf("two at once: %v, %v", replies, err)
		}
		if n := s.Connections(); n != 1 {
			t.Errorf("%d connections", n)
		}
	}
}

func TestMonitorLetsGo(t *testing.T) {
	s := &qmptest.Server{Commands: map[string]qmptest.Handler{"echo": echo}}
	m := fakeMonitor(t, s)
	checkEcho(t, m, "a")
	held := func() bool {
		<-m.turn
		defer func() { m.turn <- struct{}{} }()
		return m.conn != nil
	}
	for end := time.Now().Add(5 * time.Second); held(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the socket is held for ever")
		}
	}
	checkEcho(t, m, "b")
	if n := s.Connections(); n != 2 {
		t.Errorf("%d connections", n)
	}
	m.close()
	if err := m.ask(t.Context(), "echo", nil, nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}

func TestMonitorIsConcurrent(t *testing.T) {
	s := &qmptest.Server{Commands: map[string]qmptest.Handler{"echo": echo}}
	m := fakeMonitor(t, s)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 20 {
				checkEcho(t, m, fmt.Sprint(i, j))
			}
		})
	}
	wg.Wait()
}

// TestMonitorRecovers: after a broken conversation the next one is a new one.
func TestMonitorRecovers(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	s := &qmptest.Server{Commands: map[string]qmptest.Handler{
		"echo": echo,
		"cut":  func(json.RawMessage) (any, error) { return nil, io.EOF },
		"hang": func(json.RawMessage) (any, error) { <-hang; return nil, io.EOF },
	}}
	m := fakeMonitor(t, s)
	if err := m.ask(t.Context(), "cut", nil, nil); !errors.Is(err, io.EOF) || errors.Is(err, ErrGone) {
		t.Errorf("cut: %v", err)
	}
	checkEcho(t, m, "after a cut")
	if err := m.ask(deadline(t, 30*time.Millisecond), "hang", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hang: %v", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	time.AfterFunc(30*time.Millisecond, cancel)
	if err := m.ask(cancelled, "hang", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	checkEcho(t, m, "after a hang")
	if want := []string{"cut", "echo", "hang", "hang", "echo"}; !slices.Equal(s.Calls(), want) {
		t.Errorf("calls %q, want %q", s.Calls(), want)
	}
}

func TestMonitorRefuses(t *testing.T) {
	for name, before := range map[string]string{
		"garbage":   "(qemu) ",
		"greeting":  qmptest.Greeting,
		"wrong id":  `{"return": {}, "id": 77}`,
		"no id":     `{"error": {"class": "GenericError", "desc": "x"}}`,
		"two kinds": `{"return": {}, "event": "x"}`,
	} {
		m := fakeMonitor(t, &qmptest.Server{Before: before})
		if err := m.ask(deadline(t, 5*time.Second), "echo", nil, nil); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestMonitorStaleReply: a command that was given up is answered when its connection is
// gone, to the next one, before or behind its greeting.
func TestMonitorStaleReply(t *testing.T) {
	const stale = `{"return": {"a": "stale"}, "id": 3}` + "\r\n"
	for _, s := range []*qmptest.Server{{Before: stale}, {Early: stale}} {
		s.Commands = map[string]qmptest.Handler{"echo": echo}
		m := fakeMonitor(t, s)
		m.id = 4
		checkEcho(t, m, "now")
	}
}

// TestCutOff: a context that ends while its question is answered does not cut off the next.
func TestCutOff(t *testing.T) {
	for range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		begun, last := make(chan struct{}), make(chan time.Time, 1)
		end := cutOff(ctx, func(d time.Time) error {
			close(begun)
			time.Sleep(100 * time.Microsecond)
			last <- d
			return nil
		})
		cancel()
		<-begun
		end()
		if len(last) != 1 {
			t.Fatal("the deadline is set after the end")
		}
	}
}

// TestMonitorMute: nobody greets, and who is in the way cannot be seen. Nothing may
// have been sent by then.
func TestMonitorMute(t *testing.T) {
	t.Parallel()
	s := &qmptest.Server{Mute: true}
	m := fakeMonitor(t, s)
	begin := time.Now()
	err := m.ask(t.Context(), "echo", nil, nil)
	var busy *BusyError
	if !errors.As(err, &busy) || !strings.Contains(err.Error(), "cannot be seen") {
		t.Errorf("error %v", err)
	}
	if d := time.Since(begin); d < greetingTime || d > greetingTime+2*time.Second {
		t.Errorf("took %v", d)
	}
	if err := m.ask(deadline(t, 20*time.Millisecond), "echo", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with little time: %v", err)
	}
	if len(s.Calls()) > 0 {
		t.Errorf("sent %q", s.Calls())
	}
}

func TestMonitorNobodyThere(t *testing.T) {
	m := newMonitor(Address{"unix", filepath.Join(t.TempDir(), "qmp")}, life{pidfd: -1})
	if err := m.ask(t.Context(), "echo", nil, nil); err == nil || errors.Is(err, ErrGone) {
		t.Errorf("no socket: %v", err)
	}
	long := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	if _, err := (Address{"unix", filepath.Join(long, "qmp")}).dial(t.Context()); err == nil {
		t.Error("connected to nothing")
	}
}
