package qmp_test

import (
	"errors"
	"strings"
	"testing"

	"nestdbg/internal/qmp"
	"nestdbg/internal/qmp/qmptest"
)

// check feeds in piece by piece and compares what comes out with want, one
// description per message; an error ends it.
func check(t *testing.T, in, want string) {
	t.Helper()
	for _, piece := range []int{1, 3, len(in) + 1} {
		if got := describeAll(in, piece); got != want {
			t.Errorf("%.80q in pieces of %d:\n got %s\nwant %s", in, piece, got, want)
		}
	}
}

func describeAll(in string, piece int) string {
	var p qmp.Parser
	var out []string
	for len(in) > 0 {
		n := min(piece, len(in))
		p.Feed([]byte(in[:n]))
		in = in[n:]
		for {
			m, ok, err := p.Next()
			if err != nil {
				if !errors.Is(err, qmp.ErrCorrupt) {
					return "wrong class: " + err.Error()
				}
				return strings.Join(append(out, "corrupt"), "; ")
			}
			if !ok {
				break
			}
			out = append(out, describe(m))
		}
	}
	return strings.Join(out, "; ")
}

func describe(m qmp.Message) string {
	s := m.Kind.String()
	if m.ID != qmp.NoID {
		s += " #" + string(rune('0'+m.ID%10))
	}
	switch m.Kind {
	case qmp.Greeting:
		s += " " + m.Version.String()
	case qmp.Return:
		s += " " + string(m.Return)
	case qmp.Failure:
		s += " " + m.Err.Class + ": " + m.Err.Error()
	case qmp.Event:
		s += " " + m.Event + " " + string(m.Data)
	}
	return s
}

func TestParser(t *testing.T) {
	check(t, qmptest.Greeting, "greeting 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)")
	check(t, "{\"return\": {}, \"id\": 1}\r\n{\"return\":[1,\"}\\\"{\"],\"id\":2}\n", "return #1 {}; return #2 [1,\"}\\\"{\"]")
	check(t, `{"id": 3, "error": {"class": "GenericError", "desc": "no"}}`, "error #3 GenericError: no")
	check(t, `{"error": {"class": "GenericError", "desc": "JSON parse error"}}`, "error GenericError: JSON parse error")
	check(t, `{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}`, "event STOP ")
	check(t, `{"event": "RESET", "data": {"guest": true}}`, `event RESET {"guest": true}`)
	check(t, "{\n    \"return\": {\n    },\n    \"id\": 4\n}\n", "return #4 {\n    }") // -qmp-pretty
	check(t, `{"return": null, "id": 5}`, "return #5 null")
	check(t, "", "")
	check(t, " \r\n\t", "")
	check(t, `{"return": {}`, "")
}

func TestParserRefuses(t *testing.T) {
	for _, in := range []string{
		"QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ", // HMP, not QMP
		`[]`, `}`, `{}`, `{"return": ]}`, `{"return": nil}`, `{"id": 1}`,
		`{"return": {}, "error": {"class": "a", "desc": "b"}}`,
		`{"return": {}, "id": "text"}`, `{"return": {}, "id": -1}`, `{"return": {}, "id": null}`,
		`{"error": {"desc": "b"}}`, `{"error": 1}`, `{"event": ""}`, `{"event": 5}`,
		`{"QMP": {}}`, `{"QMP": {"version": {"qemu": {"major": "7"}}}}`,
	} {
		check(t, in, "corrupt")
	}
	check(t, `{"return": {}, "id": 1}x`, "return #1 {}; corrupt")
}

func TestParserIsBounded(t *testing.T) {
	var p qmp.Parser
	p.Feed([]byte(`{"return": "`))
	piece := []byte(strings.Repeat("x", 1<<20))
	for fed := 0; fed <= qmp.MaxMessage; fed += len(piece) {
		p.Feed(piece)
		if _, _, err := p.Next(); err != nil {
			if !errors.Is(err, qmp.ErrCorrupt) || fed < qmp.MaxMessage-2*len(piece) {
				t.Fatalf("after %d bytes: %v", fed, err)
			}
			return
		}
	}
	t.Fatal("no limit")
}

func TestAppendCommand(t *testing.T) {
	got, err := qmp.AppendCommand(nil, 7, "human-monitor-command", map[string]string{"command-line": "x/1 \"a\"\n"})
	want := `{"execute":"human-monitor-command","arguments":{"command-line":"x/1 \"a\"\n"},"id":7}` + "\n"
	if err != nil || string(got) != want {
		t.Errorf("got %s, %v", got, err)
	}
	if got, err := qmp.AppendCommand([]byte("a"), 0, "stop", nil); err != nil || string(got) != "a{\"execute\":\"stop\",\"id\":0}\n" {
		t.Errorf("got %s, %v", got, err)
	}
	if _, err := qmp.AppendCommand(nil, 0, "x", func() {}); err == nil {
		t.Error("a function became JSON")
	}
}

func FuzzParser(f *testing.F) {
	f.Add([]byte(qmptest.Greeting), 1)
	f.Add([]byte("{\"return\": {}, \"id\": 1}\r\n{\"event\":\"STOP\"}"), 2)
	f.Add([]byte(`{"error": {"class": "GenericError", "desc": "\u0000\"}"}}`), 5)
	f.Fuzz(func(t *testing.T, in []byte, piece int) {
		if piece <= 0 {
			piece = 1
		}
		whole, split := describeAll(string(in), len(in)+1), describeAll(string(in), piece)
		if whole != split {
			t.Errorf("at once %q, in pieces of %d %q", whole, piece, split)
		}
	})
}
