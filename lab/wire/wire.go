// Package wire is the protocol between the lab on L0 and the agents inside its
// machines: one line per request, one framed answer with length and checksum.
//
// A channel outlives its users. A client may die halfway through an answer and
// the next one then finds the rest of it; a request carries an ID that nobody
// else uses, and a reader skips whatever does not bear its own.
//
//	request  "\nnestdbg:ID:TEXT\n"
//	answer   "\nnestdbg:ID:STATUS:SIZE:CRC\n" and SIZE bytes
//
// STATUS is ok or error, SIZE is decimal and counts the bytes that follow, CRC
// is the IEEE CRC-32 of those bytes in hex. Nothing is compressed: the senders
// are emulated CPUs, and 4 MB of kallsyms cost a nested one 1.6 s as they are
// and 2.2 s with gzip. The format is ours.
package wire

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"
)

const (
	prefix = "nestdbg:"

	// MaxRequest is the longest TEXT of a request, in bytes.
	MaxRequest = 4096
	// MaxAnswer bounds an answer, in bytes.
	MaxAnswer = 256 << 20

	maxID = 32
	// maxStale bounds what a reader skips in search of its answer, in bytes.
	maxStale = 2 * MaxAnswer
)

// ErrCorrupt is the class of answers that were damaged on their way.
var ErrCorrupt = errors.New("corrupt answer")

// RefusedError is an agent's own answer that it could not do what was asked.
type RefusedError struct{ Text string }

func (e *RefusedError) Error() string { return e.Text }

// Request is one question to an agent.
type Request struct {
	ID   string // chosen by the asker, never used twice
	Text string // verb and arguments, without line breaks
}

// Append adds the request's bytes to b. It fails when the request would not
// be read as one.
func (r Request) Append(b []byte) ([]byte, error) {
	if !validID(r.ID) {
		return b, fmt.Errorf("request ID %q is not made of letters and digits", r.ID)
	}
	if len(r.Text) > MaxRequest {
		return b, fmt.Errorf("request of %d bytes, at most %d fit", len(r.Text), MaxRequest)
	}
	if strings.ContainsAny(r.Text, "\r\n") {
		return b, errors.New("request contains a line break")
	}
	return append(b, "\n"+prefix+r.ID+":"+r.Text+"\n"...), nil
}

// ParseRequest reads one line, with or without its line break. Anything that
// is not a request gives false: noise on a channel is not answered.
func ParseRequest(line []byte) (Request, bool) {
	rest, ok := strings.CutPrefix(strings.TrimRight(string(line), "\r\n"), prefix)
	if !ok {
		return Request{}, false
	}
	id, text, ok := strings.Cut(rest, ":")
	if !ok || !validID(id) || len(text) > MaxRequest {
		return Request{}, false
	}
	return Request{ID: id, Text: text}, true
}

// validID reports whether id can stand between two colons of a header.
func validID(id string) bool {
	if id == "" || len(id) > maxID {
		return false
	}
	for _, c := range []byte(id) {
		if !('0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z') {
			return false
		}
	}
	return true
}

// WriteAnswer sends the answer to the request called id: err's text if err is
// not nil, otherwise body. The error it returns is the channel's.
func WriteAnswer(w io.Writer, id string, body []byte, err error) error {
	status := "ok"
	if err != nil {
		status, body = "error", []byte(err.Error())
	}
	header := fmt.Sprintf("\n%s%s:%s:%d:%08x\n", prefix, id, status, len(body), crc32.ChecksumIEEE(body))
	_, werr := w.Write(append([]byte(header), body...))
	return werr
}

// ReadAnswer reads until the answer to the request called id has come and
// returns its body. A *RefusedError is the agent's, an error in the class
// ErrCorrupt is damage, anything else is r's.
func ReadAnswer(r *bufio.Reader, id string) ([]byte, error) {
	want := []byte(prefix + id + ":")
	skipped := 0
	for skipped <= maxStale {
		line, err := r.ReadSlice('\n')
		if err != nil && err != bufio.ErrBufferFull {
			return nil, err
		}
		if err == nil && bytes.HasPrefix(line, want) {
			h, err := parseHeader(string(line[len(want) : len(line)-1]))
			if err != nil {
				return nil, err
			}
			return h.readBody(r)
		}
		skipped += len(line)
	}
	return nil, fmt.Errorf("%w: no answer in %d bytes", ErrCorrupt, skipped)
}

// header is what stands behind the ID in an answer's first line.
type header struct {
	refused bool
	size    int
	crc     uint32
}

func parseHeader(s string) (header, error) {
	bad := fmt.Errorf("%w: header %.80q", ErrCorrupt, s)
	f := strings.Split(s, ":")
	if len(f) != 3 || f[0] != "ok" && f[0] != "error" {
		return header{}, bad
	}
	size, errSize := strconv.ParseUint(f[1], 10, 32)
	crc, errCRC := strconv.ParseUint(f[2], 16, 32)
	if errSize != nil || errCRC != nil || size > MaxAnswer {
		return header{}, bad
	}
	return header{refused: f[0] == "error", size: int(size), crc: uint32(crc)}, nil
}

// readBody reads and checks what follows the header.
func (h header) readBody(r io.Reader) ([]byte, error) {
	// Not io.ReadFull into make(size): a header may lie about what follows.
	body, err := io.ReadAll(io.LimitReader(r, int64(h.size)))
	if err != nil {
		return nil, err
	}
	if len(body) != h.size {
		return nil, io.ErrUnexpectedEOF
	}
	if got := crc32.ChecksumIEEE(body); got != h.crc {
		return nil, fmt.Errorf("%w: checksum %#08x, expected %#08x", ErrCorrupt, got, h.crc)
	}
	if h.refused {
		return nil, &RefusedError{Text: string(body)}
	}
	return body, nil
}
