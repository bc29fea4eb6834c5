package tests

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"nestdbg/internal/arch"
	"nestdbg/internal/rsp"
)

// replyLimit bounds the wait for an answer, stopLimit that for a stop.
const (
	replyLimit = time.Minute
	stopLimit  = 3 * time.Minute
)

// client is a gdb that does exactly what a test says. Its methods fail the test
// when the server does not keep to the protocol.
type client struct {
	t       testing.TB
	conn    net.Conn
	decoder rsp.Decoder
	console strings.Builder // what the server printed so far
}

// stop is a stop reply.
type stop struct {
	kind     byte // 'T', 'W', 'X', 'N'
	signal   int  // for 'W' the exit status
	pid, tid int
	fields   map[string]string // of 'T': "swbreak", "core", ...
	text     string            // as it came
}

// connect connects to a "nestdbg serve" at a unix path or HOST:PORT and shakes
// hands as gdb 13 does after "target extended-remote": nothing is attached.
func connect(t testing.TB, addr string) *client {
	t.Helper()
	network := "unix"
	if !strings.Contains(addr, "/") {
		network = "tcp"
	}
	conn, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t: t, conn: conn}
	t.Cleanup(c.close)
	if f := c.cmd("qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+;no-resumed+;error-message+"); !strings.Contains(f, "multiprocess+") {
		t.Fatalf("the server offers %q", f)
	}
	c.ok("QStartNoAckMode")
	c.ok("!")
	if r := c.cmd("?"); r != "W00" {
		t.Fatalf("? was answered with %q", r)
	}
	return c
}

// close drops the connection without a word, as a client that was killed.
func (c *client) close() { c.conn.Close() }

// send sends one packet and does not wait.
func (c *client) send(payload string) {
	c.t.Helper()
	c.conn.SetWriteDeadline(time.Now().Add(replyLimit))
	if _, err := c.conn.Write(rsp.AppendFrame(nil, []byte(payload))); err != nil {
		c.t.Fatalf("send %.80q: %v", payload, err)
	}
}

// receive returns the next packet. Text for the console is collected on the way.
func (c *client) receive(limit time.Duration) (string, error) {
	c.conn.SetReadDeadline(time.Now().Add(limit))
	buf := make([]byte, 64<<10)
	for {
		e, ok, err := c.decoder.Next()
		if err != nil {
			return "", err
		}
		if !ok {
			n, err := c.conn.Read(buf)
			if n == 0 && err != nil {
				return "", err
			}
			c.decoder.Feed(buf[:n])
			continue
		}
		if e.Kind != rsp.Packet {
			continue
		}
		text, err := rsp.DecodeHex(nil, strings.TrimPrefix(string(e.Payload), "O"))
		if len(e.Payload) > 0 && e.Payload[0] == 'O' && string(e.Payload) != "OK" && err == nil {
			c.console.Write(text)
			continue
		}
		return string(e.Payload), nil
	}
}

// cmd sends one packet and returns the answer to it.
func (c *client) cmd(payload string) string {
	c.t.Helper()
	c.send(payload)
	r, err := c.receive(replyLimit)
	if err != nil {
		c.t.Fatalf("answer to %.80q: %v", payload, err)
	}
	return r
}

// ok sends packets that have to be answered with OK.
func (c *client) ok(payloads ...string) {
	c.t.Helper()
	for _, p := range payloads {
		if r := c.cmd(p); r != "OK" {
			c.t.Fatalf("%.80q was answered with %q", p, r)
		}
	}
}

// attach attaches machines by their numbers: 1 is l1. The last one is current.
func (c *client) attach(pids ...int) {
	c.t.Helper()
	for _, pid := range pids {
		r := c.cmd(fmt.Sprintf("vAttach;%x", pid))
		if s := c.parseStop(r); s.kind != 'T' || s.pid != pid {
			c.t.Fatalf("attach %d: %q", pid, r)
		}
	}
}

// use makes a thread the one that g, m, M and Z mean.
func (c *client) use(pid, tid int) {
	c.t.Helper()
	c.ok("Hg" + rsp.ThreadID{PID: pid, TID: tid}.String())
}

// resume sends vCont with these actions, such as "c" or "s:p2.1;c", and does not
// wait for the stop.
func (c *client) resume(actions string) {
	c.t.Helper()
	c.send("vCont;" + actions)
}

// wait waits for the stop after resume.
func (c *client) wait(limit time.Duration) (stop, error) {
	c.t.Helper()
	r, err := c.receive(limit)
	if err != nil {
		return stop{}, err
	}
	return c.parseStop(r), nil
}

// cont sends vCont with these actions and waits for the stop.
func (c *client) cont(actions string) stop {
	c.t.Helper()
	c.resume(actions)
	s, err := c.wait(stopLimit)
	if err != nil {
		// Where everything is meanwhile is what one wants to know then.
		c.conn.SetDeadline(time.Now().Add(pingLimit))
		c.interrupt()
		late, lateErr := c.wait(pingLimit)
		c.t.Fatalf("vCont;%s: %v; after an interrupt %q, %v: %s", actions, err, late.text, lateErr, c.monitor("status"))
	}
	return s
}

// runs checks that nothing stops for a while after resume.
func (c *client) runs(d time.Duration) {
	c.t.Helper()
	r, err := c.receive(d)
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		c.t.Fatalf("the machine should run, but there came %q, %v", r, err)
	}
}

// interrupt asks for a stop, as Ctrl-C does.
func (c *client) interrupt() {
	c.t.Helper()
	if _, err := c.conn.Write([]byte{rsp.InterruptByte}); err != nil {
		c.t.Fatalf("interrupt: %v", err)
	}
}

// parseStop reads a stop reply; any other answer fails the test.
func (c *client) parseStop(r string) stop {
	c.t.Helper()
	s := stop{text: r, fields: make(map[string]string)}
	if r == "" || !strings.Contains("TWXN", r[:1]) {
		c.t.Fatalf("%q is no stop reply", r)
	}
	s.kind = r[0]
	if s.kind == 'N' {
		return s
	}
	if _, err := fmt.Sscanf(r[1:], "%02x", &s.signal); err != nil {
		c.t.Fatalf("%q is no stop reply: %v", r, err)
	}
	for f := range strings.SplitSeq(r[3:], ";") {
		key, value, _ := strings.Cut(f, ":")
		if s.kind == 'T' {
			s.fields[key] = value
		}
		switch key {
		case "thread":
			id, err := rsp.ParseThreadID(value, true)
			if err != nil {
				c.t.Fatalf("%q: %v", r, err)
			}
			s.pid, s.tid = id.PID, id.TID
		case "process":
			fmt.Sscanf(value, "%x", &s.pid)
		}
	}
	return s
}

// registers reads the general registers of a thread; those that the server does
// not know are not known in what it returns.
func (c *client) registers(pid, tid int) *arch.Registers {
	c.t.Helper()
	c.use(pid, tid)
	r := c.cmd("g")
	value, known, err := rsp.ParseRegisters([]byte(r))
	if err != nil {
		c.t.Fatalf("g was answered with %.80q: %v", r, err)
	}
	out := arch.NewRegisters(arch.X86)
	for _, i := range arch.X86.GDB {
		n := arch.X86.Regs[i].ByteLen()
		if len(value) < n {
			c.t.Fatalf("g: register %s is missing", arch.X86.Regs[i].Name)
		}
		if known[0] {
			if err := out.SetBytes(i, value[:n]); err != nil {
				c.t.Fatal(err)
			}
		}
		value, known = value[n:], known[n:]
	}
	if len(value) > 0 {
		c.t.Fatalf("g: %d bytes too many", len(value))
	}
	return out
}

// reg is one register of a thread, which must be known.
func (c *client) reg(pid, tid int, name string) uint64 {
	c.t.Helper()
	v, ok := c.registers(pid, tid).Get(name)
	if !ok {
		c.t.Fatalf("%s of thread %d.%d is not known", name, pid, tid)
	}
	return v
}

// readMem reads memory as a thread sees it.
func (c *client) readMem(pid, tid int, addr uint64, size int) ([]byte, error) {
	c.t.Helper()
	c.use(pid, tid)
	var out []byte
	for len(out) < size {
		r := c.cmd(fmt.Sprintf("m%x,%x", addr+uint64(len(out)), min(size-len(out), 0x10000)))
		b, err := hex.DecodeString(r)
		if err != nil || len(b) == 0 {
			return out, fmt.Errorf("read %d bytes at %#x: %q", size-len(out), addr+uint64(len(out)), r)
		}
		out = append(out, b...)
	}
	return out, nil
}

// writeMem writes memory as a thread sees it.
func (c *client) writeMem(pid, tid int, addr uint64, data []byte) error {
	c.t.Helper()
	c.use(pid, tid)
	if r := c.cmd(fmt.Sprintf("M%x,%x:%x", addr, len(data), data)); r != "OK" {
		return fmt.Errorf("write %d bytes at %#x: %q", len(data), addr, r)
	}
	return nil
}

// setBreak places a breakpoint of a machine: kind 0 is software, 1 hardware, 2
// to 4 are watchpoints for writes, reads, both.
func (c *client) setBreak(pid, kind int, addr uint64, size int) {
	c.t.Helper()
	c.use(pid, 1)
	c.ok(fmt.Sprintf("Z%d,%x,%x", kind, addr, size))
}

// clearBreak removes it.
func (c *client) clearBreak(pid, kind int, addr uint64, size int) {
	c.t.Helper()
	c.use(pid, 1)
	c.ok(fmt.Sprintf("z%d,%x,%x", kind, addr, size))
}

// monitor is gdb's command of that name, for the current thread.
func (c *client) monitor(text string) string {
	c.t.Helper()
	before := c.console.Len()
	c.ok("qRcmd," + hex.EncodeToString([]byte(text)))
	return c.console.String()[before:]
}

// threads lists the threads of all attached machines, as "pPID.TID".
func (c *client) threads() []string {
	c.t.Helper()
	var out []string
	for r := c.cmd("qfThreadInfo"); r != "l"; r = c.cmd("qsThreadInfo") {
		list, ok := strings.CutPrefix(r, "m")
		if !ok {
			c.t.Fatalf("thread list %q", r)
		}
		out = append(out, strings.Split(list, ",")...)
	}
	return out
}
