package gdbserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"

	"nestdbg/internal/mem"
	"nestdbg/internal/rsp"
)

// PacketSize is the largest packet, in bytes on the wire, that the engine
// accepts and sends. gdb asks for half of it at once when it reads memory, and
// sizes one heap buffer by it (gdb 13 and 14, remote.c:get_memory_packet_size).
const PacketSize = 0x40000

// Options of an Engine. The zero value is right for one that has all machines.
type Options struct {
	// Process is the machine for a client that does not speak extended-remote.
	// 0 means 1.
	Process int
	// Log gets failures (Warn), panics (Error) and every packet (Debug). nil discards.
	Log *slog.Logger
}

// Engine is one client's session without a transport. It is not safe for
// concurrent use, except that Run may run beside Feed and Step.
type Engine struct {
	target Target
	opts   Options
	log    *slog.Logger
	table  map[string]*command

	decoder rsp.Decoder
	reply   []byte // payload that the handler at work builds
	frame   []byte // or the whole frame, if not empty
	out     []byte // what Step or Stopped returns
	again   []byte // the last frames sent, for a Nak; only while acks are on
	data    []byte // scratch for memory
	ahead   ahead
	closed  bool // the client is done

	client    client
	processes map[int]*process // attached
	general   rsp.ThreadID     // current thread ("Hg"); zero when none
	begun     bool             // a machine was attached at some time
	breaks    map[breakpoint]struct{}
	xfer      document
	threads   []rsp.ThreadID // left to tell by qsThreadInfo
	run       run
}

// client is what the other side said it can do.
type client struct {
	noAck         bool
	extended      bool // sent "!"
	multiprocess  bool
	swBreak       bool
	hwBreak       bool
	noResumed     bool
	errorMessages bool
	lldb          bool
}

// New returns an engine for one client.
func New(t Target, o Options) *Engine {
	if o.Process == 0 {
		o.Process = 1
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	e := &Engine{
		target: t, opts: o, log: o.Log,
		table:     make(map[string]*command, len(commands)),
		processes: make(map[int]*process),
		breaks:    make(map[breakpoint]struct{}),
	}
	for i := range commands {
		e.table[commands[i].name] = &commands[i]
	}
	return e
}

// Feed takes bytes that the client sent. They are copied.
func (e *Engine) Feed(b []byte) { e.decoder.Feed(b) }

// Step handles one thing that was fed and returns what to send, if anything,
// valid until the next call. ok is false when there was nothing to handle: more
// input is needed, or, if Running, the result of Run.
func (e *Engine) Step(ctx context.Context) (out []byte, ok bool) {
	e.out = e.out[:0]
	for !e.closed {
		if len(e.run.waiting) > 0 && !e.run.active {
			packet := e.run.waiting[0]
			e.run.waiting = e.run.waiting[1:]
			e.packet(ctx, packet)
			return e.out, true
		}
		event, ok, err := e.decoder.Next()
		if err != nil {
			e.dropped(err)
			return e.out, true
		}
		if !ok {
			return nil, false
		}
		switch event.Kind {
		case rsp.Interrupt:
			e.interrupt()
		case rsp.Nak:
			if len(e.again) > 0 {
				return e.again, true
			}
		case rsp.Packet:
			if !e.client.noAck {
				e.out = append(e.out, rsp.AckByte)
			}
			if e.run.active {
				e.postpone(event.Payload)
			} else {
				e.packet(ctx, event.Payload)
			}
			return e.out, true
		}
	}
	return nil, false
}

// dropped answers a frame that could not be decoded. Without acks a client that
// gets no answer waits for ever.
func (e *Engine) dropped(err error) {
	e.log.Warn("gdb: bad packet", "error", err)
	switch {
	case errors.Is(err, rsp.ErrChecksum) && !e.client.noAck:
		e.out = append(e.out, rsp.NakByte)
		return
	case !e.client.noAck:
		e.out = append(e.out, rsp.AckByte)
	}
	e.send([]byte(replyError))
}

// Closed reports that the client asked for the end of the session.
func (e *Engine) Closed() bool { return e.closed }

// Close ends the session: everything is detached. Run must not be running.
func (e *Engine) Close() {
	e.closed = true
	e.ahead.drop()
	clear(e.processes)
	clear(e.breaks)
	e.general = rsp.ThreadID{}
	e.run = run{}
	if e.target.Core != nil { // the first time
		e.target.Core.Close()
		e.target = Target{}
	}
}

// packet handles one request. A panic is our bug; it costs one reply, not the
// session.
func (e *Engine) packet(ctx context.Context, payload []byte) {
	name := string(payload[:min(len(payload), 64)])
	defer func() {
		if r := recover(); r != nil {
			e.log.Error("gdb: panic", "packet", abbreviate(name), "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			e.send([]byte(replyPanic))
		}
	}()
	if e.log.Enabled(ctx, slog.LevelDebug) {
		e.log.Debug("gdb: packet", "packet", abbreviate(name), "size", len(payload))
	}
	if len(payload) == 0 || payload[0] != 'm' && payload[0] != 'x' {
		e.ahead.drop()
	}
	e.reply, e.frame = e.reply[:0], e.frame[:0]
	err := e.guarded(ctx, payload)
	if err != nil {
		e.ahead.drop()
		e.reply = append(e.reply[:0], e.errorReply(name, err)...)
	}
	if e.closed || e.run.active {
		return // no reply, or one that comes when the machines stop
	}
	if len(e.frame) > 0 {
		e.sent(append(e.out, e.frame...))
		return
	}
	e.send(e.reply)
}

// guarded is dispatch, and it survives the end of a file that memory was mapped from.
func (e *Engine) guarded(ctx context.Context, payload []byte) (err error) {
	defer mem.Catch(&err)()
	return e.dispatch(ctx, payload)
}

// send frames a payload for the client.
func (e *Engine) send(payload []byte) { e.sent(rsp.AppendFrameRLE(e.out, payload)) }

// sent takes what is to be sent with one more frame at its end.
func (e *Engine) sent(out []byte) {
	start := len(e.out)
	e.out = out
	if !e.client.noAck {
		e.again = append(e.again[:0], e.out[start:]...)
	}
}

// print sends text to the client's console, in as many packets as it takes.
// Clients accept that only while they wait for a stop or for qRcmd.
func (e *Engine) print(text string) {
	const most = (PacketSize - 8) / 2
	var payload []byte
	for len(text) > 0 {
		n := min(len(text), most)
		payload = rsp.AppendHex(append(payload[:0], 'O'), []byte(text[:n]))
		e.send(payload)
		text = text[n:]
	}
}
