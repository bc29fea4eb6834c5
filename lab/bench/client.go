package main

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"nestdbg/internal/rsp"
)

const (
	// replyLimit bounds the wait for an answer, stopLimit that for a stop.
	replyLimit = 30 * time.Second
	stopLimit  = time.Minute
	// attachTries is how often attach asks. QEMU may not have noticed yet that the
	// client before us has left its stub.
	attachTries = 20
	retryPause  = 50 * time.Millisecond
)

// client speaks gdb's protocol, to nestdbg or to QEMU's own stub, as sparingly as
// it can: what is measured is the other side.
type client struct {
	conn    net.Conn
	decoder rsp.Decoder
	buf     []byte
	acks    bool   // the other side wants each packet acknowledged
	thread  string // of the last stop
	console strings.Builder
}

// connect opens a connection to a server's unix socket.
func connect(path string, acks bool) (*client, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	return &client{conn: conn, acks: acks, buf: make([]byte, 64<<10)}, nil
}

// close drops the connection. A machine that nestdbg found paused stays so, and
// QEMU's stub never makes one run for that.
func (c *client) close() { c.conn.Close() }

// attachNestdbg shakes hands with nestdbg as gdb does and attaches machines.
func attachNestdbg(path string, pids ...int) (*client, error) {
	c, err := connect(path, true)
	if err != nil {
		return nil, err
	}
	if err := c.attach(pids); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *client) attach(pids []int) error {
	if _, err := c.ask("qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+"); err != nil {
		return err
	}
	if err := c.ok("QStartNoAckMode"); err != nil {
		return err
	}
	c.acks = false
	if err := c.ok("!"); err != nil {
		return err
	}
	for _, pid := range pids {
		for try := 1; ; try++ {
			reply, err := c.ask(fmt.Sprintf("vAttach;%x", pid))
			if err != nil {
				return err
			}
			if strings.HasPrefix(reply, "T") {
				break
			}
			if try == attachTries {
				return fmt.Errorf("attach %d: %q", pid, reply)
			}
			time.Sleep(retryPause)
		}
	}
	return nil
}

// attachStub connects to QEMU's own stub, which stops the machine.
func attachStub(path string) (*client, error) {
	c, err := connect(path, true)
	if err != nil {
		return nil, err
	}
	// A machine that ran greets with a stop, which belongs to no question.
	if _, err := c.askPast("qSupported:multiprocess+"); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *client) send(payload string) error {
	c.conn.SetWriteDeadline(time.Now().Add(replyLimit))
	_, err := c.conn.Write(rsp.AppendFrame(nil, []byte(payload)))
	return err
}

// receive returns the next packet. Text for the console is collected on the way.
func (c *client) receive(limit time.Duration) (string, error) {
	c.conn.SetReadDeadline(time.Now().Add(limit))
	for {
		e, ok, err := c.decoder.Next()
		if err != nil {
			return "", err
		}
		if !ok {
			n, err := c.conn.Read(c.buf)
			if n == 0 && err != nil {
				return "", err
			}
			c.decoder.Feed(c.buf[:n])
			continue
		}
		if e.Kind != rsp.Packet {
			continue
		}
		if c.acks {
			if _, err := c.conn.Write([]byte{rsp.AckByte}); err != nil {
				return "", err
			}
		}
		packet := string(e.Payload)
		text, err := rsp.DecodeHex(nil, strings.TrimPrefix(packet, "O"))
		if strings.HasPrefix(packet, "O") && packet != "OK" && err == nil {
			c.console.Write(text)
			continue
		}
		return packet, nil
	}
}

// ask sends a packet and returns the answer.
func (c *client) ask(payload string) (string, error) {
	if err := c.send(payload); err != nil {
		return "", err
	}
	reply, err := c.receive(replyLimit)
	if err != nil {
		return "", fmt.Errorf("answer to %.40q: %w", payload, err)
	}
	return reply, nil
}

// askPast is ask, past stops that nobody asked for.
func (c *client) askPast(payload string) (string, error) {
	reply, err := c.ask(payload)
	for err == nil && strings.HasPrefix(reply, "T") {
		reply, err = c.receive(replyLimit)
	}
	return reply, err
}

// ok sends packets that have to be answered with OK.
func (c *client) ok(payloads ...string) error {
	for _, p := range payloads {
		reply, err := c.askPast(p)
		if err != nil {
			return err
		}
		if reply != "OK" {
			return fmt.Errorf("%.40q was answered with %.80q", p, reply)
		}
	}
	return nil
}

// resume sends vCont with these actions and waits for the stop.
func (c *client) resume(actions string) error {
	if err := c.send("vCont;" + actions); err != nil {
		return err
	}
	return c.wait(stopLimit)
}

// wait waits for a stop and notes its thread.
func (c *client) wait(limit time.Duration) error {
	reply, err := c.receive(limit)
	if err != nil {
		return fmt.Errorf("wait for a stop: %w", err)
	}
	if !strings.HasPrefix(reply, "T") {
		return fmt.Errorf("not a stop: %.80q", reply)
	}
	for f := range strings.SplitSeq(reply[3:], ";") {
		if id, ok := strings.CutPrefix(f, "thread:"); ok {
			c.thread = id
			return nil
		}
	}
	return fmt.Errorf("stop of no thread: %.80q", reply)
}

// interrupt asks for a stop, as Ctrl-C does.
func (c *client) interrupt() error {
	_, err := c.conn.Write([]byte{rsp.InterruptByte})
	return err
}

// errShort is an answer with fewer bytes than were asked for.
var errShort = errors.New("short answer")

// read reads memory as the current thread sees it.
func (c *client) read(addr uint64, size int) ([]byte, error) {
	reply, err := c.askPast(fmt.Sprintf("m%x,%x", addr, size))
	if err != nil {
		return nil, err
	}
	b, err := rsp.DecodeHex(nil, reply)
	if err != nil || len(b) != size {
		return nil, fmt.Errorf("%w: %d bytes at %#x: %.80q", errShort, size, addr, reply)
	}
	return b, nil
}

// ripAt is where rip is in the answer to g, in bytes: behind the sixteen general
// registers, for QEMU (gdb-xml/i386-64bit.xml, 7.2) and nestdbg alike.
const ripAt = 16 * 8

// pc reads the registers of the current thread and returns its program counter.
func (c *client) pc() (uint64, error) {
	reply, err := c.askPast("g")
	if err != nil {
		return 0, err
	}
	value, known, err := rsp.ParseRegisters([]byte(reply))
	if err != nil || len(value) < ripAt+8 || !known[ripAt] {
		return 0, fmt.Errorf("g was answered with %.40q", reply)
	}
	var pc uint64
	for i := range 8 {
		pc |= uint64(value[ripAt+i]) << (8 * i)
	}
	return pc, nil
}
