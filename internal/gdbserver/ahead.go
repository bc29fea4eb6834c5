package gdbserver

import (
	"context"
	"time"

	"nestdbg/internal/mem"
	"nestdbg/internal/rsp"
)

// A client that reads much memory asks for it piece by piece and works on each before it
// asks for the next. The engine works meanwhile: when a read continues the one before,
// the answer to the next is made in a goroutine, and sent if that is what comes.
//
// Nothing old is ever sent. The machines stand still between two packets, any other
// packet than a read of memory drops what was made, and so does a while: somebody else
// may have let the machine run.

const (
	// aheadMin is the smallest read that is worth a goroutine, in bytes.
	aheadMin = 16 << 10
	// aheadAge is how old an answer may be. A client that reads on asks within a
	// millisecond or two.
	aheadAge = 100 * time.Millisecond
)

// memoryRead is a client's request for memory.
type memoryRead struct {
	binary   bool // "x", not "m"
	pid, tid int
	addr     uint64
	size     int
}

// ahead is what the engine knows of a client that reads on. Between begin and end the
// target belongs to the goroutine.
type ahead struct {
	expected memoryRead // continues the read that was answered last; zero for none
	made     chan bool  // nil if nothing is being made; true when the frame is the answer

	// The answer to expected, once made has said so.
	frame []byte
	got   int // bytes of memory in it
	since time.Time

	data, reply []byte // scratch of the goroutine
}

// end waits for the goroutine, and reports whether there is an answer to r.
func (a *ahead) end(r memoryRead) bool {
	if a.made == nil {
		return false
	}
	ok := <-a.made
	a.made = nil
	return ok && r == a.expected && time.Since(a.since) < aheadAge
}

// drop forgets everything: what comes next continues nothing.
func (a *ahead) drop() {
	a.end(memoryRead{})
	a.expected = memoryRead{}
}

// answered notes that r was answered with got bytes. If it continued the read before,
// the answer to the next one is begun.
func (a *ahead) answered(ctx context.Context, core Core, r memoryRead, got int) {
	continues := r == a.expected
	a.expected = r
	a.expected.addr += uint64(got)
	if !continues || r.size < aheadMin || a.expected.addr < r.addr {
		return
	}
	next, made := a.expected, make(chan bool, 1)
	a.made = made
	go func() {
		ok := false
		defer func() {
			recover() // the read itself meets it again, and tells
			made <- ok
		}()
		var lost error // the read itself tells of that, too
		defer mem.Catch(&lost)()
		a.since = time.Now()
		a.data = sized(a.data, next.size)
		n, err := core.ReadMemory(ctx, next.pid, next.tid, a.data, next.addr)
		if err != nil || n != next.size {
			return // the end of what is mapped, say: the read itself tells of it
		}
		a.reply, a.got = appendMemory(a.reply[:0], a.data, next.binary)
		a.frame = rsp.AppendFrameRLE(a.frame[:0], a.reply)
		ok = true
	}()
}
