// Package qmptest is a fake QEMU: the server's side of QMP, with the ways in
// which a real one misbehaves.
package qmptest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"sync"

	"nestdbg/internal/qmp"
)

// Greeting is what QEMU 7.2.22 of Debian 12 says first.
const Greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, ` +
	`"package": "Debian 1:7.2+dfsg-7+deb12u18"}, "capabilities": ["oob"]}}` + "\r\n"

// Handler answers a command: a value that becomes JSON, or a *qmp.Error. Any
// other error cuts the connection without an answer.
type Handler func(arguments json.RawMessage) (any, error)

// Server is a fake QEMU. Set the fields before the first connection.
type Server struct {
	Commands map[string]Handler
	// Mute leaves the greeting away, as QEMU does for a second client.
	Mute bool
	// Early is written before the greeting: QEMU 7.2 sends events there at times.
	Early string
	// Before is written in front of every answer: events, or garbage.
	Before string
	// Piece is how many bytes are written at a time; 0 is all at once.
	Piece int

	mu    sync.Mutex
	conns int
	calls []string // guarded by mu
}

// Calls returns the commands that were executed so far, except qmp_capabilities.
func (s *Server) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.calls...)
}

// Connections returns how many connections there have been.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns
}

// Serve accepts connections until l is closed, any number at a time.
func (s *Server) Serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go s.ServeConn(c)
	}
}

// ServeConn answers one client until either side closes.
func (s *Server) ServeConn(c net.Conn) {
	defer c.Close()
	s.mu.Lock()
	s.conns++
	s.mu.Unlock()
	if !s.Mute && s.write(c, s.Early+Greeting) != nil {
		return
	}
	in := bufio.NewScanner(c)
	in.Buffer(nil, qmp.MaxMessage)
	for in.Scan() {
		if s.Mute {
			continue
		}
		answer, err := s.answer(in.Bytes())
		if err != nil || s.write(c, s.Before+answer+"\r\n") != nil {
			return
		}
	}
}

func (s *Server) answer(line []byte) (string, error) {
	var cmd struct {
		Execute   string
		Arguments json.RawMessage
		ID        uint64
	}
	if err := json.Unmarshal(line, &cmd); err != nil {
		return "", err
	}
	if cmd.Execute == "qmp_capabilities" {
		return fmt.Sprintf(`{"return": {}, "id": %d}`, cmd.ID), nil
	}
	s.mu.Lock()
	s.calls = append(s.calls, cmd.Execute)
	s.mu.Unlock()
	result, err := any(nil), error(&qmp.Error{
		Class: qmp.CommandNotFound,
		Desc:  fmt.Sprintf("The command %s has not been found", cmd.Execute),
	})
	if h := s.Commands[cmd.Execute]; h != nil {
		result, err = h(cmd.Arguments)
	}
	if refused, ok := err.(*qmp.Error); ok {
		return fmt.Sprintf(`{"id": %d, "error": {"class": %q, "desc": %q}}`, cmd.ID, refused.Class, refused.Desc), nil
	}
	if err != nil {
		return "", err
	}
	text, err := json.Marshal(result)
	return fmt.Sprintf(`{"return": %s, "id": %d}`, text, cmd.ID), err
}

func (s *Server) write(w io.Writer, text string) error {
	step := s.Piece
	if step == 0 {
		step = len(text)
	}
	for len(text) > 0 {
		n := min(step, len(text))
		if _, err := io.WriteString(w, text[:n]); err != nil {
			return err
		}
		text = text[n:]
	}
	return nil
}
