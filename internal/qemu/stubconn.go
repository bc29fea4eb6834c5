package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"nestdbg/internal/rsp"
)

// How long the stub may take. It answers from QEMU's main loop, within a
// millisecond.
const (
	stubReplyTime  = 5 * time.Second
	stubResendTime = 500 * time.Millisecond
	maxStray       = 64 // packets nobody asked for, before one reply
	maxNaks        = 3
)

// stubConn is the connection to a stub: packets out, packets in.
type stubConn struct {
	conn net.Conn
	in   rsp.Decoder
	what string // for errors
	life life
}

// write sends bytes. It may be called while another goroutine reads.
func (c *stubConn) write(b []byte) error {
	c.conn.SetWriteDeadline(time.Now().Add(stubReplyTime))
	_, err := c.conn.Write(b)
	return err
}

// read returns the next packet, which is valid until the next call, and
// acknowledges it, exactly once: a byte that the stub does not expect stops a
// running machine. A zero limit is none.
func (c *stubConn) read(ctx context.Context, limit time.Time) (packet []byte, err error) {
	c.conn.SetReadDeadline(limit)
	defer cutOff(ctx, c.conn.SetReadDeadline)()
	var buf [8 << 10]byte
	for naks := 0; ; {
		e, ok, err := c.in.Next()
		switch {
		case errors.Is(err, rsp.ErrChecksum) && naks < maxNaks:
			naks++
			err = c.write([]byte{rsp.NakByte})
			if err != nil {
				return nil, err
			}
			continue
		case err != nil:
			return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		case ok && e.Kind == rsp.Packet:
			return e.Payload, c.write([]byte{rsp.AckByte})
		case ok:
			continue // acknowledgements, notifications
		}
		n, err := c.conn.Read(buf[:])
		c.in.Feed(buf[:n])
		if err != nil && n == 0 {
			return nil, err
		}
	}
}

// ask sends a command and returns its reply, valid until the next call. Stop
// replies that come instead are dropped: connecting causes one that nobody asked
// for, and so does a "stop" over QMP. A byte that arrives while the machine runs
// only stops it (QEMU 7.2 gdbstub.c:gdb_read_byte); should somebody have made it run
// behind our back, the command was lost and is sent again.
func (c *stubConn) ask(ctx context.Context, format string, a ...any) ([]byte, error) {
	payload := fmt.Appendf(nil, format, a...)
	reply, err := c.askRaw(ctx, payload)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	return reply, nil
}

func (c *stubConn) askRaw(ctx context.Context, payload []byte) ([]byte, error) {
	frame := rsp.AppendFrame(nil, payload)
	if err := c.write(frame); err != nil {
		return nil, err
	}
	deadline := time.Now().Add(stubReplyTime)
	limit := deadline
	for range maxStray {
		reply, err := c.read(ctx, limit)
		switch {
		case err == nil && !isStray(reply):
			return reply, nil
		case err == nil && reply[0] == 'W':
			return nil, fmt.Errorf("%w: it says so through its stub", ErrGone)
		case err == nil:
			if limit == deadline {
				limit = time.Now().Add(stubResendTime)
			}
		case errors.Is(err, os.ErrDeadlineExceeded) && limit != deadline && ctx.Err() == nil:
			limit = deadline
			if err := c.write(frame); err != nil {
				return nil, err
			}
		default:
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: stop replies without end", ErrCorrupt)
}

// isStray reports whether a packet is a stop reply or console output. No reply to
// what ask sends begins with these letters.
func isStray(packet []byte) bool {
	if len(packet) == 0 {
		return false
	}
	switch packet[0] {
	case 'T', 'S', 'W', 'X':
		return true
	case 'O':
		return string(packet) != "OK"
	}
	return false
}

// command sends a command that is answered with OK.
func (c *stubConn) command(ctx context.Context, format string, a ...any) error {
	reply, err := c.ask(ctx, format, a...)
	if err != nil {
		return err
	}
	if string(reply) != "OK" {
		return c.refused(fmt.Appendf(nil, format, a...), reply)
	}
	return nil
}

// refused says that the stub did not do what it was told.
func (c *stubConn) refused(payload, reply []byte) error {
	if len(reply) == 0 {
		return fmt.Errorf("%s does not know %.40q", c.what, payload)
	}
	return fmt.Errorf("%s refuses %.40q: %.40q", c.what, payload, reply)
}

func (c *stubConn) explain(ctx context.Context, err error) error {
	return explain(ctx, c.life, c.what, err)
}
