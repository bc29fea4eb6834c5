package gdbserver

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"nestdbg/internal/rsp"
)

// The most bytes of memory one reply carries: as hex, and as they are.
const (
	maxHexRead    = (PacketSize - len("$#00")) / 2
	maxBinaryRead = PacketSize - len("$b#00")
)

// readHex serves "mADDR,LEN".
func (e *Engine) readHex(ctx context.Context, args []byte) error {
	return e.readMemory(ctx, args, false, maxHexRead)
}

// readBinary serves "xADDR,LEN", which gdb 16 and later send. lldb up to 19 sends
// "x0,0" to find out about an older packet of that name, and takes it for
// unsupported when the reply is not OK.
func (e *Engine) readBinary(ctx context.Context, args []byte) error {
	return e.readMemory(ctx, args, true, maxBinaryRead)
}

// readMemory answers with what "ADDR,LEN" names, at most max bytes of it: gdb asks for
// the rest.
func (e *Engine) readMemory(ctx context.Context, args []byte, binary bool, max int) error {
	p, tid, err := e.current(ctx)
	if err != nil {
		return err
	}
	addr, n, err := parseSpan(args)
	if err != nil {
		return err
	}
	if n == 0 {
		e.reply, _ = appendMemory(e.reply, nil, binary)
		return nil
	}
	if p.gone {
		return errNoProcess
	}
	r := memoryRead{binary, p.pid, tid, addr, int(min(n, uint64(max)))}
	got := 0
	if e.ahead.end(r) {
		e.frame, got = append(e.frame, e.ahead.frame...), e.ahead.got
	} else {
		e.data = sized(e.data, r.size)
		read, err := e.target.Core.ReadMemory(ctx, r.pid, r.tid, e.data, r.addr)
		if read <= 0 || read > r.size {
			if err == nil {
				err = fmt.Errorf("read of %d bytes at %#x returned %d", r.size, r.addr, read)
			}
			return err
		}
		e.reply, got = appendMemory(e.reply, e.data[:read], binary)
	}
	e.ahead.answered(ctx, e.target.Core, r, got)
	return nil
}

// appendMemory appends the reply to a read, and returns how many of the bytes it has:
// those of a binary one may need an escape.
func appendMemory(reply, data []byte, binary bool) ([]byte, int) {
	if !binary {
		return rsp.AppendHex(reply, data), len(data)
	}
	n := rsp.EscapedPrefix(data, maxBinaryRead)
	return append(append(reply, 'b'), data[:n]...), n
}

// sized is a buffer of n bytes, b if it has room.
func sized(b []byte, n int) []byte { return slices.Grow(b[:0], n)[:n] }

// parseSpan parses "ADDR,LEN". A span that passes the end of the address space is
// cut there.
func parseSpan(args []byte) (addr, size uint64, err error) {
	a, n, ok := bytes.Cut(args, []byte(","))
	if !ok {
		return 0, 0, errBadPacket
	}
	if addr, err = rsp.ParseHex(a); err != nil {
		return 0, 0, err
	}
	if size, err = rsp.ParseHex(n); err != nil {
		return 0, 0, err
	}
	if left := -addr; left != 0 && size > left {
		size = left
	}
	return addr, size, nil
}

// writeHex serves "MADDR,LEN:HEX".
func (e *Engine) writeHex(ctx context.Context, args []byte) error {
	span, digits, _ := bytes.Cut(args, []byte(":"))
	data, err := rsp.DecodeHex(e.data[:0], digits)
	if err != nil {
		return err
	}
	e.data = data
	return e.writeMemory(ctx, span, data)
}

// writeBinary serves "XADDR,LEN:BYTES". gdb probes it with a length of 0.
func (e *Engine) writeBinary(ctx context.Context, args []byte) error {
	span, data, _ := bytes.Cut(args, []byte(":"))
	return e.writeMemory(ctx, span, data)
}

func (e *Engine) writeMemory(ctx context.Context, span, data []byte) error {
	p, tid, err := e.current(ctx)
	if err != nil {
		return err
	}
	addr, n, err := parseSpan(span)
	if err != nil {
		return err
	}
	if n != uint64(len(data)) {
		return fmt.Errorf("%w: %d bytes announced, %d sent", errBadPacket, n, len(data))
	}
	if p.gone {
		return errNoProcess
	}
	if n > 0 {
		if err := e.target.Memory.WriteMemory(ctx, p.pid, tid, addr, data); err != nil {
			return err
		}
	}
	return e.ok()
}
