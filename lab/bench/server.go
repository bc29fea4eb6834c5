package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// server is a "nestdbg serve" that runs.
type server struct {
	cmd    *exec.Cmd
	socket string
	errors bytes.Buffer
}

// serve starts one. It has looked at the machines when it listens.
func (b *bench) serve(ctx context.Context) (*server, error) {
	s := &server{socket: filepath.Join(b.dir, "gdb")}
	os.Remove(s.socket) // of one that was killed
	s.cmd = exec.CommandContext(ctx, b.nestdbg, "-t", fmt.Sprint(b.lab.PID), "serve", "--listen", "unix:"+s.socket)
	s.cmd.Cancel = func() error { return s.cmd.Process.Signal(os.Interrupt) }
	s.cmd.Stderr = &s.errors
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	// Nothing follows what it says first, so nobody has to read on.
	if said, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.HasPrefix(said, "listening on ") {
		return nil, fmt.Errorf("nestdbg serve: %q, %w: %s", said, errors.Join(err, s.stop()), s.errors.Bytes())
	}
	return s, nil
}

func (s *server) pid() int { return s.cmd.Process.Pid }

// stop ends the server, which lets go of the machines first.
func (s *server) stop() error {
	s.cmd.Process.Signal(os.Interrupt)
	return s.cmd.Wait()
}
