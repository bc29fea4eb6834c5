package qemu

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nestdbg/internal/qmp/qmptest"
)

// TestEvents: those between answers and those that come alone, in order, and the
// connection is kept between calls.
func TestEvents(t *testing.T) {
	s := &qmptest.Server{Commands: map[string]qmptest.Handler{"echo": echo},
		Before: `{"event": "STOP"}` + "\r\n" + `{"event": "SHUTDOWN", "data": {"guest": true}}` + "\r\n"}
	m := fakeMonitor(t, s)
	h, err := m.listen(t.Context(), time.Millisecond)
	if err != nil || h.Missed {
		t.Fatalf("%+v, %v", h, err)
	}
	for range 2 {
		checkEcho(t, m, "a")
		time.Sleep(2 * idleTime)
		h, err = m.listen(t.Context(), time.Minute) // it does not wait: there is something
		if err != nil || h.Missed || len(h.Events) < 2 || h.Events[len(h.Events)-2].Name != "STOP" || string(h.Events[len(h.Events)-1].Data) != `{"guest": true}` {
			t.Errorf("%+v, %v", h, err)
		}
	}
	if n := s.Connections(); n != 1 {
		t.Errorf("%d connections", n)
	}
	m.unlisten()
	time.Sleep(4 * idleTime)
	checkEcho(t, m, "b")
	if n := s.Connections(); n != 2 {
		t.Errorf("after unlisten: %d connections", n)
	}
}

// TestEventsAreBounded: of a flood the first are kept, and that there were more is said.
func TestEventsAreBounded(t *testing.T) {
	s := &qmptest.Server{Commands: map[string]qmptest.Handler{"echo": echo},
		Before: strings.Repeat(`{"event": "RTC_CHANGE"}`+"\r\n", heardMax+10)}
	m := fakeMonitor(t, s)
	if _, err := m.listen(t.Context(), time.Millisecond); err != nil {
		t.Fatal(err)
	}
	checkEcho(t, m, "a")
	h, err := m.listen(t.Context(), time.Millisecond)
	if err != nil || len(h.Events) != heardMax || !h.Missed {
		t.Errorf("%d events, missed %v, %v", len(h.Events), h.Missed, err)
	}
}

// TestEventsEnd: QEMU goes while somebody listens.
func TestEventsEnd(t *testing.T) {
	s := &qmptest.Server{Commands: map[string]qmptest.Handler{"cut": func(json.RawMessage) (any, error) { return nil, os.ErrClosed }, "echo": echo}}
	m := fakeMonitor(t, s)
	if _, err := m.listen(t.Context(), time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if err := m.ask(t.Context(), "cut", nil, nil); err == nil {
		t.Fatal("no error")
	}
	if h, err := m.listen(t.Context(), time.Millisecond); err != nil || !h.Missed {
		t.Errorf("a new connection: %+v, %v", h, err)
	}
}

// TestEventsBeforeTheEnd: what QEMU says last is heard, although it is gone then.
func TestEventsBeforeTheEnd(t *testing.T) {
	s := &qmptest.Server{Before: `{"event": "SHUTDOWN"}` + "\r\n", Commands: map[string]qmptest.Handler{
		"echo": echo, "cut": func(json.RawMessage) (any, error) { return nil, os.ErrClosed }}}
	path := filepath.Join(t.TempDir(), "qmp")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	m := newMonitor(Address{"unix", path}, life{pidfd: -1})
	defer m.close()
	if h, err := m.listen(t.Context(), time.Millisecond); err != nil || h.Missed {
		t.Fatalf("%+v, %v", h, err)
	}
	checkEcho(t, m, "a")
	l.Close()
	if err := m.ask(t.Context(), "cut", nil, nil); err == nil {
		t.Fatal("no error")
	}
	h, err := m.listen(t.Context(), time.Millisecond)
	if err == nil || len(h.Events) == 0 || h.Events[0].Name != "SHUTDOWN" || h.Missed {
		t.Errorf("%+v, %v", h, err)
	}
}

// TestEventsBehindAFailure: QEMU says something and is gone, then a command is sent.
func TestEventsBehindAFailure(t *testing.T) {
	path := filepath.Join(t.TempDir(), "qmp")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	gone := make(chan struct{})
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		io.WriteString(c, qmptest.Greeting)
		bufio.NewReader(c).ReadString('\n')
		io.WriteString(c, `{"return": {}, "id": 0}`+"\n")
		time.Sleep(100 * time.Millisecond)
		io.WriteString(c, `{"event": "SHUTDOWN"}`+"\n")
		l.Close()
		c.Close()
		close(gone)
	}()
	m := newMonitor(Address{"unix", path}, life{pidfd: -1})
	defer m.close()
	if _, err := m.listen(t.Context(), time.Millisecond); err != nil {
		t.Fatal(err)
	}
	<-gone
	if err := m.ask(t.Context(), "echo", nil, nil); err == nil {
		t.Fatal("no error")
	}
	if h, err := m.listen(t.Context(), time.Millisecond); err == nil || len(h.Events) != 1 || h.Missed {
		t.Errorf("%+v, %v", h, err)
	}
}

// TestWaitingIsSeen: a client that is not accepted yet is seen, over both kinds of
// socket.
func TestWaitingIsSeen(t *testing.T) {
	unixPath := filepath.Join(t.TempDir(), "s")
	for _, a := range []Address{{"unix", unixPath}, {"tcp", "127.0.0.1:0"}} {
		l, err := net.Listen(a.Network, a.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		a.Addr = l.Addr().String()
		if proc.waiting(os.Getpid(), a) {
			t.Errorf("%v: somebody waits", a)
		}
		c, err := net.Dial(a.Network, a.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if !proc.waiting(os.Getpid(), a) {
			t.Errorf("%v: nobody waits", a)
		}
		in, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		if proc.waiting(os.Getpid(), a) {
			t.Errorf("%v: somebody waits still", a)
		}
	}
}

// TestSocketIsYielded: who listens leaves the socket to whoever comes.
func TestSocketIsYielded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "qmp")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // one client at a time, as QEMU does
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			(&qmptest.Server{Commands: map[string]qmptest.Handler{"echo": echo}}).ServeConn(c)
		}
	}()
	first := newMonitor(Address{"unix", path}, life{pid: os.Getpid(), pidfd: -1})
	defer first.close()
	if _, err := first.listen(t.Context(), time.Millisecond); err != nil {
		t.Fatal(err)
	}
	second := newMonitor(Address{"unix", path}, life{pid: os.Getpid(), pidfd: -1})
	defer second.close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		checkEcho(t, second, "a")
	}()
	missed := false
	for end := time.Now().Add(10 * time.Second); ; {
		h, err := first.listen(t.Context(), 10*time.Millisecond)
		var busy *BusyError
		if err != nil && !errors.As(err, &busy) {
			t.Fatal(err)
		}
		missed = missed || h.Missed
		select {
		case <-done:
		default:
			if time.Now().After(end) {
				t.Fatal("the second was never served")
			}
			continue
		}
		if missed {
			return
		}
	}
}

func TestEndings(t *testing.T) {
	for line, want := range map[string]string{
		"-m 1G":                             "reset poweroff",
		"-no-reboot":                        "shutdown poweroff",
		"-no-reboot -no-shutdown":           "shutdown pause",
		"-action reboot=shutdown":           "shutdown poweroff",
		"-action shutdown=pause,panic=none": "reset pause",
		"-no-reboot -action reboot=reset":   "reset poweroff",
		"-name -no-shutdown":                "reset poweroff",
	} {
		if reboot, shutdown := parseOptions(strings.Fields(line)).endings(); reboot+" "+shutdown != want {
			t.Errorf("%s: %s %s, want %s", line, reboot, shutdown, want)
		}
	}
}
