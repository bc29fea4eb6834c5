package gdbserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"nestdbg/internal/mem"
)

// ErrUnsupported is what a Target's part returns for a request it can never
// serve; the client gets the empty reply and does not ask again.
var ErrUnsupported = errors.New("not supported")

// The error replies. Clients tell them apart only by their text.
const (
	replyFault = "E14" // what QEMU's stub says for memory it cannot read
	replyError = "E01"
	replyPanic = "Eff"
)

// refusal is an error whose text the client may show to the person. gdb 13 takes
// "E.text" for most packets, but reads the text as data in the reply to "m".
type refusal string

func (r refusal) Error() string { return string(r) }

func refuse(format string, args ...any) error { return refusal(fmt.Sprintf(format, args...)) }

// Refuse is an error of a Target's part whose text the client shows to the person:
// the request was understood, and cannot be done for a reason that they can act on.
func Refuse(format string, args ...any) error { return refuse(format, args...) }

// errBadPacket is a client's mistake.
var errBadPacket = errors.New("bad arguments")

// errNoProcess is for packets about the current thread while there is none.
var errNoProcess = errors.New("no machine is attached")

// errorReply is the one place where errors become replies.
func (e *Engine) errorReply(packet string, err error) []byte {
	var r refusal
	switch {
	case errors.Is(err, ErrUnsupported):
		return nil
	case errors.As(err, &r):
		return textReply(r.Error())
	case errors.Is(err, mem.ErrFault):
		e.log.Debug("gdb: memory fault", "packet", abbreviate(packet), "error", err)
		return []byte(replyFault)
	}
	level := slog.LevelWarn
	if errors.Is(err, errNoProcess) {
		level = slog.LevelDebug // gdb asks for a description before it attaches
	}
	e.log.Log(context.Background(), level, "gdb: packet failed", "packet", abbreviate(packet), "error", err)
	if e.client.errorMessages {
		return textReply(err.Error())
	}
	return []byte(replyError)
}

// textReply makes "E.text". Clients do not undo escapes in it, so bytes that
// would need one are replaced.
func textReply(text string) []byte {
	const maxText = 400
	clean := func(c rune) rune {
		if c < ' ' || c > '~' || strings.ContainsRune("#$}*", c) {
			return '?'
		}
		return c
	}
	return []byte("E." + strings.Map(clean, text[:min(len(text), maxText)]))
}

// abbreviate makes a packet fit for a log line.
func abbreviate(packet string) string {
	const most = 80
	if len(packet) > most {
		return fmt.Sprintf("%q... %d bytes", packet[:most], len(packet))
	}
	return fmt.Sprintf("%q", packet)
}
