package agent

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"nestdbg/lab/wire"
)

// testSlot is a slot whose VM is another program; L0's end of its channel is
// returned.
func testSlot(t *testing.T, argv ...string) (*vmSlot, net.Conn) {
	t.Helper()
	// Not t.TempDir: paths of sockets are short.
	dir, err := os.MkdirTemp("", "vm-")
	if err != nil {
		t.Fatal(err)
	}
	here, there := net.Pipe()
	here.SetDeadline(time.Now().Add(10 * time.Second))
	s := &vmSlot{children: newChildren(), channels: []*channel{{socket: filepath.Join(dir, "agent"), up: there}}}
	s.command = func() *exec.Cmd { return exec.Command(argv[0], argv[1:]...) }
	go s.joinAgent(0)
	t.Cleanup(func() {
		s.kill()
		here.Close()
		there.Close()
		os.RemoveAll(dir)
	})
	return s, here
}

// listen plays the socket that a VM's QEMU opens; it can only be opened after
// start, which removes a stale one.
func listen(t *testing.T, s *vmSlot, verbs verbs) {
	t.Helper()
	l, err := net.Listen("unix", s.channels[0].socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		conn, err := l.Accept()
		if err == nil {
			serve(conn, verbs)
		}
	}()
}

func wantRefused(t *testing.T, err error) {
	t.Helper()
	var refused *wire.RefusedError
	if !errors.As(err, &refused) || refused.Text != "vm0 is not running" {
		t.Fatalf("got %v, want a refusal", err)
	}
}

func TestVMLife(t *testing.T) {
	s, l0 := testSlot(t, "sleep", "60")
	_, err := ask(t, l0, "a1", "ping")
	wantRefused(t, err)
	for life := range 2 {
		if err := s.start(false); err != nil {
			t.Fatal(err)
		}
		if err := s.start(false); err == nil {
			t.Fatal("started twice")
		}
		listen(t, s, verbs{"ping": simple(func(string) ([]byte, error) { return []byte("pong"), nil })})
		if got, err := ask(t, l0, fmt.Sprintf("b%d", life), "ping"); got != "pong" || err != nil {
			t.Fatalf("life %d: %q, %v", life, got, err)
		}
		if list, err := vmVerb([]*vmSlot{s}, "list"); err != nil || !strings.HasPrefix(string(list), "vm0 running pid ") {
			t.Fatalf("list: %q, %v", list, err)
		}
		if _, err := vmVerb([]*vmSlot{s}, "kill 0"); err != nil {
			t.Fatal(err)
		}
		_, err := ask(t, l0, fmt.Sprintf("c%d", life), "ping")
		wantRefused(t, err)
	}
	if err := s.kill(); err == nil {
		t.Error("killed a VM that is dead")
	}
}

func TestVMThatDiesAnswers(t *testing.T) {
	s, l0 := testSlot(t, "sleep", "60")
	if err := s.start(false); err != nil {
		t.Fatal(err)
	}
	asked := make(chan bool, 1)
	listen(t, s, verbs{"crash": simple(func(string) ([]byte, error) { asked <- true; select {} })})
	go func() {
		<-asked
		s.kill()
	}()
	_, err := ask(t, l0, "a1", "crash")
	wantRefused(t, err)
}

func TestVMThatNeverListens(t *testing.T) {
	s, l0 := testSlot(t, "false")
	if err := s.start(false); err != nil {
		t.Fatal(err)
	}
	_, err := ask(t, l0, "a1", "ping")
	wantRefused(t, err)
}

func TestVMVerbErrors(t *testing.T) {
	s, _ := testSlot(t, "false")
	for _, args := range []string{"", "start", "start 1", "start -1", "kill x", "kill 0", "reboot 0"} {
		if got, err := vmVerb([]*vmSlot{s}, args); err == nil {
			t.Errorf("vm %s: %q", args, got)
		}
	}
}

// lockedBuffer is a console.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestConsoleKeepsWhatWasSaidEarly(t *testing.T) {
	s, _ := testSlot(t, "sh", "-c", "echo early; read line; echo $line")
	if err := s.start(false); err != nil {
		t.Fatal(err)
	}
	var console lockedBuffer
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: console has %q", what, console.String())
			}
		}
	}
	until("early", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return string(s.early) == "early\n"
	})
	if err := s.attach(&console); err != nil {
		t.Fatal(err)
	}
	s.typed([]byte("late\n"))
	until("late", func() bool { return console.String() == "early\nlate\n" })
}
