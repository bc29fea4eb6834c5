package gdbserver

import (
	"context"
	"errors"
	"io"
	"time"
)

// patience is how long Serve waits for running machines to stop after the client
// is gone, before it cancels the context of Resume.
const patience = 5 * time.Second

// Serve serves one client until it leaves, the connection breaks or ctx is done,
// then detaches everything. It returns nil when the client left. Serve closes conn,
// which must end a Read or Write under way, as it does for a net.Conn.
func Serve(ctx context.Context, conn io.ReadWriteCloser, t Target, o Options) error {
	s := &server{engine: New(t, o), conn: conn, input: make(chan []byte)}
	go s.read()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	err := s.loop(context.WithoutCancel(ctx))
	conn.Close()
	s.engine.Close()
	for range s.input { // until the reader has ended
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, io.EOF):
		return nil
	}
	return err
}

// server is an Engine with a connection. One goroutine owns the engine, one
// reads, and while the machines run a third one waits for them.
type server struct {
	engine *Engine
	conn   io.ReadWriteCloser
	input  chan []byte // closed when reading failed, after readErr was set

	readErr error
}

func (s *server) read() {
	defer close(s.input)
	buf := make([]byte, 64<<10)
	for {
		n, err := s.conn.Read(buf)
		if n > 0 {
			s.input <- append([]byte(nil), buf[:n]...)
		}
		if err != nil {
			s.readErr = err
			return
		}
	}
}

// loop serves until there is a reason to end.
func (s *server) loop(ctx context.Context) error {
	for {
		var err error
		if s.engine.Running() {
			err = s.run(ctx)
		} else {
			err = s.receive(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// work handles everything that was fed.
func (s *server) work(ctx context.Context) error {
	for {
		out, ok := s.engine.Step(ctx)
		if err := s.write(out); err != nil {
			return err
		}
		if s.engine.Closed() {
			return io.EOF
		}
		if !ok {
			return nil
		}
	}
}

func (s *server) write(out []byte) error {
	if len(out) == 0 {
		return nil
	}
	_, err := s.conn.Write(out)
	return err
}

// receive waits for input.
func (s *server) receive(ctx context.Context) error {
	b, ok := <-s.input
	return s.take(ctx, b, ok)
}

// take handles what came from input.
func (s *server) take(ctx context.Context, b []byte, ok bool) error {
	if !ok {
		return s.readErr
	}
	s.engine.Feed(b)
	return s.work(ctx)
}

// run runs the machines until they stop, or the client leaves.
func (s *server) run(ctx context.Context) error {
	runCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan Result, 1)
	go func() { results <- s.engine.Run(runCtx) }()
	for {
		select {
		case r := <-results:
			if err := s.write(s.engine.Stopped(ctx, r)); err != nil {
				return err
			}
			return s.work(ctx)
		case b, ok := <-s.input:
			if err := s.take(ctx, b, ok); err != nil {
				s.abandon(results, cancel)
				return err
			}
		}
	}
}

// abandon ends a Run whose result nobody will be told.
func (s *server) abandon(results <-chan Result, cancel func()) {
	s.engine.interrupt()
	select {
	case <-results:
		return
	case <-time.After(patience):
	}
	cancel()
	<-results
}
