package gdbserver

import (
	"context"
	"fmt"

	"nestdbg/internal/rsp"
)

func (s Stop) isExit() bool { return s.Reason == Exited || s.Reason == Killed }

func (s Stop) isBreakpoint() bool { return s.Reason == SwBreak || s.Reason == HwBreak }

// deliver writes the stop reply, and what is to be printed before it. gdb takes
// the thread of a stop reply for the current one from then on.
func (e *Engine) deliver(ctx context.Context, s Stop) {
	e.print(s.Text)
	if s.isExit() {
		e.deliverExit(ctx, s)
		return
	}
	e.general = rsp.ThreadID{PID: s.PID, TID: s.TID}
	e.reply = fmt.Appendf(e.reply, "T%02xthread:", byte(s.Signal))
	e.appendID(e.general)
	e.reply = append(e.reply, ';')
	if s.Core >= 0 {
		e.reply = fmt.Appendf(e.reply, "core:%x;", s.Core)
	}
	switch s.Reason {
	case SwBreak:
		if e.client.swBreak {
			e.reply = append(e.reply, "swbreak:;"...)
		}
	case HwBreak:
		if e.client.hwBreak {
			e.reply = append(e.reply, "hwbreak:;"...)
		}
	case Watch:
		name := map[BreakKind]string{ReadWatch: "rwatch", AccessWatch: "awatch"}[s.Access]
		if name == "" {
			name = "watch"
		}
		e.reply = fmt.Appendf(e.reply, "%s:%x;", name, s.Addr)
	case LibraryLoad:
		e.reply = append(e.reply, "library:;"...)
	}
}

func (e *Engine) deliverExit(ctx context.Context, s Stop) {
	kind, status := 'W', s.Signal
	if s.Reason == Killed {
		kind = 'X'
		if status == 0 {
			status = sigKill
		}
	}
	e.reply = fmt.Appendf(e.reply, "%c%02x", kind, byte(status))
	if e.client.multiprocess {
		e.reply = fmt.Appendf(e.reply, ";process:%x", s.PID)
	}
	if err := e.forget(ctx, s.PID); err != nil {
		e.log.Warn("gdb: detach of a machine that ended", "machine", s.PID, "error", err)
	}
}
