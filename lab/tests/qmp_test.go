package tests

import (
	"encoding/json"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"nestdbg/internal/qmp"
	"nestdbg/lab"
)

// qmpPatience bounds everything that is asked of QEMU, the wait for another
// client of its socket included.
const qmpPatience = time.Minute

// qmpCommand asks QEMU itself, past nestdbg, and lets go of the socket.
func qmpCommand(t testing.TB, l *lab.Lab, command string) json.RawMessage {
	t.Helper()
	return qmpCommandArgs(t, l, command, nil)
}

// qmpCommandArgs is qmpCommand with arguments.
func qmpCommandArgs(t testing.TB, l *lab.Lab, command string, args any) json.RawMessage {
	t.Helper()
	conn := holdQMP(t, l)
	defer conn.Close()
	var parser qmp.Parser
	for id, c := range []string{"qmp_capabilities", command} {
		a := args
		if c != command {
			a = nil
		}
		line, err := qmp.AppendCommand(nil, uint64(id), c, a)
		if err == nil {
			_, err = conn.Write(line)
		}
		if err != nil {
			t.Fatalf("QMP %s: %v", c, err)
		}
		m := qmpAnswer(t, conn, &parser, uint64(id))
		if m.Kind == qmp.Failure {
			t.Fatalf("QMP %s: %v", c, m.Err)
		}
		if c == command {
			return m.Return
		}
	}
	return nil
}

// holdQMP connects to a lab's QMP socket, which keeps others out.
func holdQMP(t testing.TB, l *lab.Lab) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", l.QMPPath)
	for end := time.Now().Add(qmpPatience); errors.Is(err, syscall.EAGAIN) && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond) // the queue has room for one
		conn, err = net.Dial("unix", l.QMPPath)
	}
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(qmpPatience))
	return conn
}

// qmpAnswer reads up to the answer to a command.
func qmpAnswer(t testing.TB, conn net.Conn, parser *qmp.Parser, id uint64) qmp.Message {
	t.Helper()
	buf := make([]byte, 4096)
	for {
		m, ok, err := parser.Next()
		if err != nil {
			t.Fatalf("QMP: %v", err)
		}
		if ok && m.ID == id {
			return m
		}
		if ok {
			continue
		}
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("QMP: %v", err)
		}
		parser.Feed(buf[:n])
	}
}

// runState is QEMU's own word on its machine, such as "running" or "paused".
func runState(t testing.TB, l *lab.Lab) string {
	t.Helper()
	var s struct{ Status string }
	if err := json.Unmarshal(qmpCommand(t, l, "query-status"), &s); err != nil {
		t.Fatal(err)
	}
	return s.Status
}
