package agent

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"

	"nestdbg/lab/wire"
)

// verb answers one kind of request. after, if not nil, is done when the answer
// is on its way: what it does may be the last thing the machine does.
type verb func(args string) (body []byte, after func(), err error)

// verbs are the requests an agent understands, by their first word.
type verbs map[string]verb

// serve answers requests from ch, one at a time, until ch fails.
func serve(ch io.ReadWriter, verbs verbs) error {
	r := bufio.NewReaderSize(ch, wire.MaxRequest+256)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil && err != bufio.ErrBufferFull {
			return fmt.Errorf("read the request channel: %w", err)
		}
		req, ok := wire.ParseRequest(line)
		if !ok {
			continue
		}
		body, after, err := verbs.answer(req.Text)
		if err := wire.WriteAnswer(ch, req.ID, body, err); err != nil {
			return fmt.Errorf("write the request channel: %w", err)
		}
		if after != nil {
			after()
		}
	}
}

// answer runs the verb that text begins with.
func (v verbs) answer(text string) ([]byte, func(), error) {
	name, args, _ := strings.Cut(strings.TrimSpace(text), " ")
	f, ok := v[name]
	if !ok {
		return nil, nil, fmt.Errorf("unknown request %q; there are: %s", name, strings.Join(v.names(), " "))
	}
	return f(strings.TrimSpace(args))
}

func (v verbs) names() []string {
	var out []string
	for name := range v {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// simple makes a verb of a function that only answers.
func simple(f func(args string) ([]byte, error)) verb {
	return func(args string) ([]byte, func(), error) {
		body, err := f(args)
		return body, nil, err
	}
}
