package gdbserver

import (
	"bytes"
	"context"

	"nestdbg/internal/rsp"
)

// breakpoint is what makes two of them the same. Equal addresses in different
// machines are different breakpoints.
type breakpoint struct {
	pid  int
	kind BreakKind
	addr uint64
	size int
}

// setBreak serves "ZTYPE,ADDR,KIND[;...]". Conditions and commands behind it are
// not offered, so gdb sends none. The machine is that of the current thread; gdb
// does not repeat Hg when it thinks it is set.
func (e *Engine) setBreak(ctx context.Context, args []byte) error {
	b, err := e.parseBreak(ctx, args)
	if err != nil {
		return err
	}
	// GDB manual, "Packets", z: inserting must be idempotent.
	if _, set := e.breaks[b]; !set {
		if err := e.target.Break.Set(ctx, b.pid, b.kind, b.addr, b.size); err != nil {
			return err
		}
		e.breaks[b] = struct{}{}
	}
	return e.ok()
}

// clearBreak serves "zTYPE,ADDR,KIND".
func (e *Engine) clearBreak(ctx context.Context, args []byte) error {
	b, err := e.parseBreak(ctx, args)
	if err != nil {
		return err
	}
	if _, set := e.breaks[b]; set {
		if err := e.target.Break.Clear(ctx, b.pid, b.kind, b.addr, b.size); err != nil {
			return err
		}
		delete(e.breaks, b)
	}
	return e.ok()
}

func (e *Engine) parseBreak(ctx context.Context, args []byte) (breakpoint, error) {
	p, _, err := e.current(ctx)
	if err != nil {
		return breakpoint{}, err
	}
	kind, span, _ := bytes.Cut(args, []byte(","))
	span, _, _ = bytes.Cut(span, []byte(";"))
	if len(kind) != 1 {
		return breakpoint{}, errBadPacket
	}
	if kind[0] < '0' || kind[0] > '4' {
		return breakpoint{}, ErrUnsupported
	}
	a, n, _ := bytes.Cut(span, []byte(","))
	addr, err := rsp.ParseHex(a)
	if err != nil {
		return breakpoint{}, err
	}
	size, err := rsp.ParseHex(n)
	if err != nil {
		return breakpoint{}, err
	}
	if size > 1<<30 {
		return breakpoint{}, errBadPacket
	}
	return breakpoint{p.pid, BreakKind(kind[0] - '0'), addr, int(size)}, nil
}

// breakAt reports whether the client has a breakpoint on the instruction at addr.
func (e *Engine) breakAt(pid int, addr uint64) bool {
	for b := range e.breaks {
		if b.pid == pid && b.addr == addr && (b.kind == SoftwareBreak || b.kind == HardwareBreak) {
			return true
		}
	}
	return false
}
