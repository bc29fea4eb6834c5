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
	data, err := e.readMemory(ctx, args, maxHexRead)
	if err != nil {
		return err
	}
	e.reply = rsp.AppendHex(e.reply, data)
	return nil
}

// readBinary serves "xADDR,LEN", which gdb 16 and later send. lldb up to 19 sends
// "x0,0" to find out about an older packet of that name, and takes it for
// unsupported when the reply is not OK.
func (e *Engine) readBinary(ctx context.Context, args []byte) error {
	data, err := e.readMemory(ctx, args, maxBinaryRead)
	if err != nil {
		return err
	}
	e.reply = append(e.reply, 'b')
	e.reply = append(e.reply, data[:rsp.EscapedPrefix(data, maxBinaryRead)]...)
	return nil
}

// readMemory reads what "ADDR,LEN" names, at most max bytes of it: gdb asks for
// the rest. The result is valid until the next call.
func (e *Engine) readMemory(ctx context.Context, args []byte, max int) ([]byte, error) {
	p, tid, err := e.current(ctx)
	if err != nil {
		return nil, err
	}
	addr, n, err := parseSpan(args)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, nil
	}
	if p.gone {
		return nil, errNoProcess
	}
	size := int(min(n, uint64(max)))
	e.data = slices.Grow(e.data[:0], size)[:size]
	got, err := e.target.Core.ReadMemory(ctx, p.pid, tid, e.data, addr)
	if got > 0 && got <= size {
		return e.data[:got], nil
	}
	if err == nil {
		err = fmt.Errorf("read of %d bytes at %#x returned %d", size, addr, got)
	}
	return nil, err
}

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
