// Package qmp reads and writes the messages of the QEMU Machine Protocol: the
// greeting, commands, replies, errors and events. It does no I/O: bytes in,
// messages out.
//
// Source: QEMU docs/interop/qmp-spec.txt, "2. Protocol Specification" (7.2).
package qmp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
)

// MaxMessage is the longest message the Parser accepts, in bytes. The longest
// that QEMU sends us is the text of "info mtree -f", some tens of KiB.
const MaxMessage = 16 << 20

// ErrCorrupt is the class of everything that is not QMP. After it the stream
// cannot be trusted any more: close the connection.
var ErrCorrupt = errors.New("malformed QMP message")

// Kind says what a Message is.
type Kind int

// The kinds of message that QEMU sends.
const (
	Greeting Kind = iota // the first one of a connection
	Return               // a command succeeded
	Failure              // a command failed
	Event                // something happened, unasked
)

func (k Kind) String() string {
	names := [...]string{"greeting", "return", "error", "event"}
	if k < 0 || int(k) >= len(names) {
		return fmt.Sprintf("Kind(%d)", int(k))
	}
	return names[k]
}

// NoID is the ID of a message that has none: events, the greeting, and errors of
// input so bad that QEMU could not tell which command it was.
const NoID = math.MaxUint64

// Message is one message from QEMU. Which fields are set follows from Kind.
type Message struct {
	Kind    Kind
	ID      uint64          // Return, Failure: the command's, or NoID
	Return  json.RawMessage // Return: the command's result
	Err     *Error          // Failure
	Event   string          // Event: its name, as "STOP"
	Data    json.RawMessage // Event: its data, may be nil
	Version Version         // Greeting
}

// Version is what QEMU says about itself.
type Version struct {
	Major, Minor, Micro int
	Package             string // the distribution's suffix, may be empty
}

func (v Version) String() string {
	s := fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro)
	if v.Package != "" {
		s += " (" + v.Package + ")"
	}
	return s
}

// Error is QEMU's refusal of a command.
type Error struct {
	Class string // "GenericError", "CommandNotFound", ...
	Desc  string // for people
}

func (e *Error) Error() string { return e.Desc }

// CommandNotFound is the class of the error for a command that this QEMU lacks.
const CommandNotFound = "CommandNotFound"

// AppendCommand appends a command as one line. args is anything that becomes a
// JSON object, or nil for a command without arguments.
func AppendCommand(dst []byte, id uint64, command string, args any) ([]byte, error) {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		return dst, fmt.Errorf("QMP command %s: %w", command, err)
	}
	return append(append(dst, line...), '\n'), nil
}

// Parse parses one message. It keeps no part of b.
func Parse(b []byte) (Message, error) {
	var raw struct {
		QMP    json.RawMessage `json:"QMP"`
		Return json.RawMessage `json:"return"`
		Error  json.RawMessage `json:"error"`
		Event  json.RawMessage `json:"event"`
		Data   json.RawMessage `json:"data"`
		ID     json.RawMessage `json:"id"`
	}
	if err := json.Unmarshal(b, &raw); err != nil {
		return Message{}, fmt.Errorf("%w: %v", ErrCorrupt, err)
	}
	kinds := 0
	for _, part := range []json.RawMessage{raw.QMP, raw.Return, raw.Error, raw.Event} {
		if part != nil {
			kinds++
		}
	}
	if kinds != 1 {
		return Message{}, fmt.Errorf("%w: %d kinds in one message", ErrCorrupt, kinds)
	}
	m := Message{ID: NoID}
	var err error
	switch {
	case raw.QMP != nil:
		m.Kind = Greeting
		m.Version, err = parseGreeting(raw.QMP)
	case raw.Event != nil:
		m.Kind, m.Data = Event, bytes.Clone(raw.Data)
		m.Event, err = parseEvent(raw.Event)
	case raw.Error != nil:
		m.Kind = Failure
		m.Err, err = parseError(raw.Error)
	default:
		m.Kind, m.Return = Return, bytes.Clone(raw.Return)
	}
	if err == nil && (m.Kind == Return || m.Kind == Failure) {
		m.ID, err = parseID(raw.ID)
	}
	if err != nil {
		return Message{}, err
	}
	return m, nil
}

// parseID accepts only the ids that AppendCommand makes.
func parseID(raw json.RawMessage) (uint64, error) {
	if raw == nil {
		return NoID, nil
	}
	var id uint64
	if err := json.Unmarshal(raw, &id); err != nil || id == NoID || raw[0] == 'n' {
		return 0, fmt.Errorf("%w: id is not one of ours", ErrCorrupt)
	}
	return id, nil
}

func parseGreeting(raw json.RawMessage) (Version, error) {
	var g struct {
		Version *struct {
			QEMU *struct {
				Major int `json:"major"`
				Minor int `json:"minor"`
				Micro int `json:"micro"`
			} `json:"qemu"`
			Package string `json:"package"`
		} `json:"version"`
	}
	if err := json.Unmarshal(raw, &g); err != nil {
		return Version{}, fmt.Errorf("%w: greeting: %v", ErrCorrupt, err)
	}
	if g.Version == nil || g.Version.QEMU == nil {
		return Version{}, fmt.Errorf("%w: greeting without a version", ErrCorrupt)
	}
	q := g.Version.QEMU
	return Version{q.Major, q.Minor, q.Micro, g.Version.Package}, nil
}

func parseError(raw json.RawMessage) (*Error, error) {
	var e struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	}
	if err := json.Unmarshal(raw, &e); err != nil {
		return nil, fmt.Errorf("%w: error: %v", ErrCorrupt, err)
	}
	if e.Class == "" {
		return nil, fmt.Errorf("%w: error without a class", ErrCorrupt)
	}
	return &Error{e.Class, e.Desc}, nil
}

func parseEvent(raw json.RawMessage) (string, error) {
	var name string
	if err := json.Unmarshal(raw, &name); err != nil || name == "" {
		return "", fmt.Errorf("%w: event without a name", ErrCorrupt)
	}
	return name, nil
}
