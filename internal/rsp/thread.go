package rsp

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Special values of the parts of a ThreadID.
const (
	All = -1 // every process or thread
	Any = 0  // one that the receiver picks
)

// ThreadID names threads: process and thread number, each positive, All or Any.
type ThreadID struct{ PID, TID int }

// ParseThreadID parses "p1.2", "p1" (all its threads), "2", "-1", "0"; numbers are
// hex. Without "p" the PID is Any. The forms with "p" need multiprocess, which
// both sides must have agreed on.
func ParseThreadID(s string, multiprocess bool) (ThreadID, error) {
	bad := func() (ThreadID, error) { return ThreadID{}, fmt.Errorf("%w: thread id %q", ErrCorrupt, s) }
	rest, hasPID := strings.CutPrefix(s, "p")
	if !hasPID {
		tid, ok := parseID(s)
		if !ok {
			return bad()
		}
		return ThreadID{Any, tid}, nil
	}
	p, t, hasTID := strings.Cut(rest, ".")
	pid, ok := parseID(p)
	if !multiprocess || !ok {
		return bad()
	}
	if !hasTID {
		return ThreadID{pid, All}, nil
	}
	tid, ok := parseID(t)
	// GDB manual, "Packets", thread-id: all processes but a specific thread is an error.
	if !ok || pid == All && tid > 0 {
		return bad()
	}
	return ThreadID{pid, tid}, nil
}

func parseID(s string) (int, bool) {
	if s == "-1" {
		return All, true
	}
	v, err := ParseHex(s)
	return int(v & math.MaxInt32), err == nil && v <= math.MaxInt32
}

// Append appends the id as the peer expects it; without multiprocess only the
// thread is told.
func (t ThreadID) Append(dst []byte, multiprocess bool) []byte {
	if multiprocess {
		dst = append(dst, 'p')
		dst = strconv.AppendInt(dst, int64(t.PID), 16)
		dst = append(dst, '.')
	}
	return strconv.AppendInt(dst, int64(t.TID), 16)
}

// String is the multiprocess form, "p1.2" with hex numbers.
func (t ThreadID) String() string { return string(t.Append(nil, true)) }

// Covers reports whether the pattern t, which may hold All or Any, names the one
// thread id.
func (t ThreadID) Covers(id ThreadID) bool {
	return (t.PID <= 0 || t.PID == id.PID) && (t.TID <= 0 || t.TID == id.TID)
}
