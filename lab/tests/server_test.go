package tests

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"nestdbg/lab"
)

// server is a "nestdbg serve", or another nestdbg that stays.
type server struct {
	t           testing.TB
	process     *os.Process
	addr        string // unix path or HOST:PORT, for connect
	in          io.WriteCloser
	out, errOut *lockedBuffer
	exited      chan struct{} // closed when it has ended
	status      int           // its exit status, valid when exited; -1 if a signal killed it
}

// serve starts "nestdbg serve" on a lab and waits until it listens; see start.
func serve(t testing.TB, l *lab.Lab, args ...string) *server {
	t.Helper()
	return listening(t, on(l, append([]string{"serve"}, args...)...)...)
}

// listening starts a server and waits until it listens.
func listening(t testing.TB, args ...string) *server {
	t.Helper()
	s := start(t, args...)
	eventually(t, "nestdbg serve listens", commandLimit, func() bool {
		for line := range strings.Lines(s.out.String()) {
			if at, ok := strings.CutPrefix(line, "listening on "); ok && strings.HasSuffix(at, "\n") {
				s.addr = strings.TrimSpace(at)
				return true
			}
		}
		select {
		case <-s.exited:
			t.Fatalf("nestdbg serve ended: %s", s.errOut)
		default:
		}
		return false
	})
	return s
}

// start starts nestdbg and does not wait for its end, which comes with the
// test's at the latest.
func start(t testing.TB, args ...string) *server {
	t.Helper()
	s := &server{t: t, out: new(lockedBuffer), errOut: new(lockedBuffer), exited: make(chan struct{})}
	cmd := exec.Command(suite.binary, args...)
	cmd.Stdout, cmd.Stderr = s.out, s.errOut
	// A process group, so that a test can do what a terminal does for Ctrl-C.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var err error
	if s.in, err = cmd.StdinPipe(); err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	s.process = cmd.Process
	go func() {
		defer close(s.exited)
		cmd.Wait()
		s.status = cmd.ProcessState.ExitCode()
	}()
	t.Cleanup(func() {
		s.signal(syscall.SIGTERM)
		select {
		case <-s.exited:
		case <-time.After(10 * time.Second):
			t.Errorf("nestdbg %q did not end when asked to", args)
			s.process.Kill()
			<-s.exited
		}
		if t.Failed() {
			t.Logf("nestdbg %q said:\n%s%s", args, s.out, s.errOut)
		}
	})
	return s
}

// signal sends a signal; that it has ended already is no error.
func (s *server) signal(sig os.Signal) {
	s.t.Helper()
	if err := s.process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.t.Errorf("send %v: %v", sig, err)
	}
}

// waitExit waits for the end and returns the exit status.
func (s *server) waitExit(limit time.Duration) int {
	s.t.Helper()
	select {
	case <-s.exited:
		return s.status
	case <-time.After(limit):
		s.t.Fatalf("nestdbg has not ended after %v; it said: %s", limit, s.errOut)
		return 0
	}
}
