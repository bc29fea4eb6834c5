package wire

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

func answer(t *testing.T, id string, body []byte, err error) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := WriteAnswer(&b, id, body, err); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestAnswerSurvivesWhatPrecedesIt(t *testing.T) {
	long := bytes.Repeat([]byte("ffffffff81000000 T _text\n"), 1000)
	for _, c := range []struct {
		name   string
		before []byte
		body   []byte
	}{
		{"nothing", nil, []byte("6.1.0")},
		{"empty body", nil, nil},
		{"long", nil, long},
		{"rest of a line", []byte("half an ans"), []byte("x")},
		{"another answer", answer(t, "b0", long, nil), []byte("x")},
		{"half of another answer", answer(t, "b0", long, nil)[40:90], []byte("x")},
		{"a line longer than the buffer", bytes.Repeat([]byte("z"), 9000), []byte("x")},
		{"body that looks like a header", nil, []byte("\nnestdbg:a1:ok:1:0\n")},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := append(append([]byte{}, c.before...), answer(t, "a1", c.body, nil)...)
			got, err := ReadAnswer(bufio.NewReader(bytes.NewReader(in)), "a1")
			if err != nil || !bytes.Equal(got, c.body) {
				t.Fatalf("got %.40q, %v; want %.40q", got, err, c.body)
			}
		})
	}
}

func TestAnswerErrors(t *testing.T) {
	good := answer(t, "a1", []byte("hello"), nil)
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	for _, c := range []struct {
		name string
		in   []byte
		want error
	}{
		{"cut off", good[:len(good)-1], io.ErrUnexpectedEOF},
		{"silence", nil, io.EOF},
		{"for somebody else", answer(t, "a2", nil, nil), io.EOF},
		{"damaged", flipped, ErrCorrupt},
		{"few fields", []byte("nestdbg:a1:ok:5\nhello"), ErrCorrupt},
		{"size too large", []byte("nestdbg:a1:ok:4000000000:0\n"), ErrCorrupt},
		{"negative size", []byte("nestdbg:a1:ok:-1:0\n"), ErrCorrupt},
		{"unknown status", []byte("nestdbg:a1:maybe:0:0\n"), ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, err := ReadAnswer(bufio.NewReader(bytes.NewReader(c.in)), "a1"); !errors.Is(err, c.want) {
				t.Fatalf("got %q, %v; want %v", got, err, c.want)
			}
		})
	}
	in := answer(t, "a1", nil, errors.New("no such verb"))
	_, err := ReadAnswer(bufio.NewReader(bytes.NewReader(in)), "a1")
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Text != "no such verb" {
		t.Fatalf("got %v, want a refusal", err)
	}
}

func TestRequest(t *testing.T) {
	for _, c := range []struct {
		name string
		in   Request
		ok   bool
	}{
		{"plain", Request{"a1", "kallsyms"}, true},
		{"colons", Request{"a1", "exec echo a:b"}, true},
		{"empty", Request{"a1", ""}, true},
		{"no ID", Request{"", "x"}, false},
		{"ID with a colon", Request{"a:1", "x"}, false},
		{"two lines", Request{"a1", "x\ny"}, false},
		{"too long", Request{"a1", strings.Repeat("x", MaxRequest+1)}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := c.in.Append(nil)
			if (err == nil) != c.ok {
				t.Fatalf("Append: %v, want ok %v", err, c.ok)
			}
			if !c.ok {
				return
			}
			if got, ok := ParseRequest(b[1:]); !ok || got != c.in {
				t.Fatalf("got %v %v, want %v", got, ok, c.in)
			}
		})
	}
	for _, noise := range []string{"", "login:", "nestdbg:", "nestdbg:a1", "nestdbg::x", "xnestdbg:a:b"} {
		if r, ok := ParseRequest([]byte(noise)); ok {
			t.Errorf("%q was read as request %v", noise, r)
		}
	}
}

func FuzzReadAnswer(f *testing.F) {
	f.Add([]byte("\nnestdbg:a1:ok:5:3610a686\nhello"))
	f.Add([]byte("nestdbg:a1:error:1:e8b7be43\na"))
	f.Add([]byte("noise\n\nnestdbg:a1:ok:99999999:0\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		body, err := ReadAnswer(bufio.NewReader(bytes.NewReader(in)), "a1")
		if err != nil && body != nil {
			t.Fatalf("both a body and %v", err)
		}
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := WriteAnswer(&b, "a1", body, nil); err != nil {
			t.Fatal(err)
		}
		again, err := ReadAnswer(bufio.NewReader(&b), "a1")
		if err != nil || !bytes.Equal(again, body) {
			t.Fatalf("%q came back as %q, %v", body, again, err)
		}
	})
}

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte("nestdbg:a1:kallsyms\n"))
	f.Add([]byte("nestdbg:a1:exec echo a:b\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, ok := ParseRequest(in)
		if !ok {
			return
		}
		if line, err := r.Append(nil); err == nil {
			if again, ok := ParseRequest(line[1:]); !ok || again != r {
				t.Fatalf("%+v came back as %+v, %v", r, again, ok)
			}
		}
	})
}
