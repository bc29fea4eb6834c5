package gdbserver

import (
	"bytes"
	"context"
)

// handler serves one packet: args is what follows its name. It appends the reply
// to e.reply, or returns an error for which errorReply knows the reply. args is
// valid until the handler returns.
type handler func(e *Engine, ctx context.Context, args []byte) error

// command is one row of the dispatch table.
type command struct {
	// name is the packet's first byte, or for those that begin with q, Q or v
	// everything before the first ':', ';' or ','.
	name   string
	handle handler
	// has reports whether the target can do it; nil means always. If it cannot,
	// the packet is as unknown as any other.
	has func(*Target) bool
}

// commands is every packet that the engine knows; all others get the empty
// reply, which means "not supported". It is never written.
var commands = [...]command{
	// The session.
	{"qSupported", (*Engine).querySupported, nil},
	{"QStartNoAckMode", (*Engine).startNoAckMode, nil},
	{"!", (*Engine).extendedMode, nil},
	{"?", (*Engine).haltReason, nil},
	{"vAttach", (*Engine).attachProcess, nil},
	{"D", (*Engine).detach, nil},
	{"vKill", (*Engine).kill, nil},
	{"k", (*Engine).disconnect, nil},
	{"QThreadSuffixSupported", (*Engine).noteLLDB, nil},
	{"QListThreadsInStopReply", (*Engine).noteLLDB, nil},
	{"qHostInfo", (*Engine).noteLLDB, nil},

	// Threads.
	{"H", (*Engine).setThread, nil},
	{"T", (*Engine).threadAlive, nil},
	{"qC", (*Engine).currentThread, nil},
	{"qAttached", (*Engine).wasAttached, nil},
	{"qfThreadInfo", (*Engine).firstThreads, nil},
	{"qsThreadInfo", (*Engine).moreThreads, nil},
	{"qThreadExtraInfo", (*Engine).threadExtraInfo, nil},

	// State.
	{"g", (*Engine).readRegisters, nil},
	{"p", (*Engine).readRegister, nil},
	{"G", (*Engine).writeRegisters, hasRegisterWriter},
	{"P", (*Engine).writeRegister, hasRegisterWriter},
	{"m", (*Engine).readHex, nil},
	{"x", (*Engine).readBinary, nil},
	{"M", (*Engine).writeHex, hasMemoryWriter},
	{"X", (*Engine).writeBinary, hasMemoryWriter},

	// Files and tables.
	{"qXfer", (*Engine).transfer, nil},
	{"qOffsets", (*Engine).offsets, hasSymbols},
	{"qRcmd", (*Engine).monitor, hasMonitor},

	// Running. Without a Resumer these still answer: gdb waits for ever after an
	// empty reply to "c".
	{"vCont?", (*Engine).contActions, hasResumer},
	{"vCont", (*Engine).cont, nil},
	{"c", legacyResume('c'), nil},
	{"C", legacyResume('C'), nil},
	{"s", legacyResume('s'), nil},
	{"S", legacyResume('S'), nil},
	{"Z", (*Engine).setBreak, hasBreaker},
	{"z", (*Engine).clearBreak, hasBreaker},
}

func hasMemoryWriter(t *Target) bool   { return t.Memory != nil }
func hasRegisterWriter(t *Target) bool { return t.Registers != nil }
func hasResumer(t *Target) bool        { return t.Resume != nil }
func hasBreaker(t *Target) bool        { return t.Break != nil }
func hasSymbols(t *Target) bool        { return t.Symbols != nil }
func hasMonitor(t *Target) bool        { return t.Monitor != nil }

// dispatch finds the packet's row and calls it.
func (e *Engine) dispatch(ctx context.Context, payload []byte) error {
	if len(payload) == 0 {
		return ErrUnsupported
	}
	n := 1
	switch payload[0] {
	case 'q', 'Q', 'v':
		n = bytes.IndexAny(payload, ":;,")
		if n < 0 {
			n = len(payload)
		}
	}
	c := e.table[string(payload[:n])]
	if c == nil || c.has != nil && !c.has(&e.target) {
		return ErrUnsupported
	}
	return c.handle(e, ctx, payload[n:])
}
