package gdbserver

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"nestdbg/internal/rsp"
)

// querySupported serves qSupported:FEATURE;FEATURE...
func (e *Engine) querySupported(_ context.Context, args []byte) error {
	offered := make(map[string]bool)
	for f := range bytes.SplitSeq(bytes.TrimPrefix(args, []byte(":")), []byte(";")) {
		if name, ok := bytes.CutSuffix(f, []byte("+")); ok {
			offered[string(name)] = true
		}
	}
	c := &e.client
	c.multiprocess = offered["multiprocess"]
	c.swBreak = offered["swbreak"]
	c.hwBreak = offered["hwbreak"]
	c.noResumed = offered["no-resumed"]
	c.errorMessages = offered["error-message"]

	e.reply = fmt.Appendf(e.reply, "PacketSize=%x;QStartNoAckMode+;binary-upload+;"+
		"qXfer:features:read+;qXfer:threads:read+", PacketSize)
	t := &e.target
	for _, f := range []struct {
		name string
		yes  bool
	}{
		{"multiprocess", c.multiprocess},
		{"error-message", c.errorMessages},
		{"no-resumed", c.noResumed},
		{"vContSupported", t.Resume != nil},
		{"swbreak", t.Break != nil && c.swBreak},
		{"hwbreak", t.Break != nil && c.hwBreak},
		{"qXfer:exec-file:read", t.Symbols != nil},
		{"qXfer:libraries:read", t.Symbols != nil},
		{"qXfer:osdata:read", t.OSData != nil},
	} {
		if f.yes {
			e.reply = append(e.reply, ';')
			e.reply = append(append(e.reply, f.name...), '+')
		}
	}
	return nil
}

// startNoAckMode serves QStartNoAckMode. The request itself was acknowledged
// already; the client's ack of the reply is ignored like any other.
func (e *Engine) startNoAckMode(context.Context, []byte) error {
	e.client.noAck = true
	return e.ok()
}

// noteLLDB serves nothing, but tells lldb from gdb: only lldb asks this.
func (e *Engine) noteLLDB(context.Context, []byte) error {
	e.client.lldb = true
	return ErrUnsupported
}

// setThread serves "HgID" and "HcID". Any and All keep the current thread: gdb
// sends Hgp0.0 right behind vAttach.
func (e *Engine) setThread(ctx context.Context, args []byte) error {
	if len(args) == 0 {
		return errBadPacket
	}
	id, err := rsp.ParseThreadID(string(args[1:]), e.client.multiprocess)
	if err != nil {
		return err
	}
	switch {
	case args[0] == 'c':
		e.run.legacy = id
		return e.ok()
	case args[0] != 'g':
		return ErrUnsupported
	case id.PID <= 0 && id.TID <= 0:
		return e.ok()
	}
	if id, err = e.findThread(ctx, id); err != nil {
		return err
	}
	e.general = id
	return e.ok()
}

// threadAlive serves "TID".
func (e *Engine) threadAlive(ctx context.Context, args []byte) error {
	id, err := rsp.ParseThreadID(string(args), e.client.multiprocess)
	if err != nil {
		return err
	}
	if _, err := e.findThread(ctx, id); err != nil {
		return err
	}
	return e.ok()
}

// currentThread serves qC.
func (e *Engine) currentThread(ctx context.Context, _ []byte) error {
	if _, _, err := e.current(ctx); err != nil {
		return err
	}
	e.reply = append(e.reply, "QC"...)
	e.appendID(e.general)
	return nil
}

// wasAttached serves qAttached: yes, or gdb would kill the machine when it quits.
func (e *Engine) wasAttached(context.Context, []byte) error {
	e.reply = append(e.reply, '1')
	return nil
}

// firstThreads serves qfThreadInfo: the threads of attached machines, or of the
// current one for a client that knows only one.
func (e *Engine) firstThreads(ctx context.Context, _ []byte) error {
	e.threads = e.threads[:0]
	for _, p := range e.visible(ctx) {
		threads, err := e.listThreads(ctx, p)
		if err != nil {
			return err
		}
		for _, t := range threads {
			e.threads = append(e.threads, rsp.ThreadID{PID: p.pid, TID: t.ID})
		}
	}
	return e.moreThreads(ctx, nil)
}

// moreThreads serves qsThreadInfo.
func (e *Engine) moreThreads(context.Context, []byte) error {
	if len(e.threads) == 0 {
		e.reply = append(e.reply, 'l')
		return nil
	}
	const most = PacketSize / 32 // no id is longer
	n := min(len(e.threads), most)
	separator := byte('m')
	for _, id := range e.threads[:n] {
		e.reply = append(e.reply, separator)
		e.appendID(id)
		separator = ','
	}
	e.threads = e.threads[n:]
	return nil
}

// visible lists the machines whose threads the client may be told.
func (e *Engine) visible(ctx context.Context) []*process {
	current, _, err := e.current(ctx)
	if !e.client.multiprocess {
		if err != nil {
			return nil
		}
		return []*process{current}
	}
	var out []*process
	for _, pid := range e.attached() {
		out = append(out, e.processes[pid])
	}
	return out
}

// threadExtraInfo serves qThreadExtraInfo,ID, for clients that do not read the
// thread list as a document.
func (e *Engine) threadExtraInfo(ctx context.Context, args []byte) error {
	id, err := rsp.ParseThreadID(strings.TrimPrefix(string(args), ","), e.client.multiprocess)
	if err != nil {
		return err
	}
	if id, err = e.findThread(ctx, id); err != nil {
		return err
	}
	for _, t := range e.processes[id.PID].threads {
		if t.ID == id.TID {
			e.reply = rsp.AppendHex(e.reply, []byte(strings.TrimSpace(t.Name+" "+t.Extra)))
		}
	}
	return nil
}

// offsets serves qOffsets. TextSeg moves all sections alike, however many
// segments the file has; gdb applies the other form to .text, .data and .bss only.
// lldb 14 takes TextSeg for an offset.
func (e *Engine) offsets(ctx context.Context, _ []byte) error {
	p, _, err := e.current(ctx)
	if err != nil {
		return err
	}
	if e.client.lldb {
		if s, ok := e.target.Symbols.Slide(p.pid); ok {
			e.reply = fmt.Appendf(e.reply, "Text=%x;Data=%x;Bss=%x", s, s, s)
		}
		return nil
	}
	if a, ok := e.target.Symbols.TextSegment(p.pid); ok {
		e.reply = fmt.Appendf(e.reply, "TextSeg=%x", a)
	}
	return nil
}

// monitor serves qRcmd,HEX. An error is text for the person, like the output:
// gdb has no other place for it that it shows.
func (e *Engine) monitor(ctx context.Context, args []byte) error {
	line, err := rsp.DecodeHex(nil, bytes.TrimPrefix(args, []byte(",")))
	if err != nil {
		return err
	}
	pid, tid := 0, 0
	if p, t, err := e.current(ctx); err == nil {
		pid, tid = p.pid, t
	}
	var out bytes.Buffer
	if err := e.target.Monitor.Monitor(ctx, pid, tid, string(line), &out); err != nil {
		fmt.Fprintf(&out, "%v\n", err)
	}
	e.print(out.String())
	return e.ok()
}
