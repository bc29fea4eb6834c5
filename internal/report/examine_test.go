package report_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
	"nestdbg/internal/report"
)

func TestParseFormat(t *testing.T) {
	for text, want := range map[string]report.Format{
		"":          {Count: 1, Letter: 'x', Size: 8},
		"16gx":      {Count: 16, Letter: 'x', Size: 8},
		"8i":        {Count: 8, Letter: 'i', Size: 8},
		"s":         {Count: 1, Letter: 's', Size: 8},
		"4wd":       {Count: 4, Letter: 'd', Size: 4},
		"dw":        {Count: 1, Letter: 'd', Size: 4},
		"c":         {Count: 1, Letter: 'c', Size: 1},
		"cw":        {Count: 1, Letter: 'c', Size: 4},
		"2wa":       {Count: 2, Letter: 'a', Size: 8},
		"16777216b": {Count: 1 << 24, Letter: 'x', Size: 1},
	} {
		if got, err := report.ParseFormat(text); got != want || err != nil {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		"0x": "from 1 on", "q": "no format letter", "4gz": "no format letter", "-1x": "no format letter",
		"16777217b": "at most", "2097153g": "at most", "99999999999999999999x": "from 1 on", "x4": "no format letter",
	} {
		if _, err := report.ParseFormat(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// from reads bytes that begin at base, with a fault behind them.
func from(base uint64, b []byte) func([]byte, uint64) (int, error) {
	return func(p []byte, a uint64) (int, error) {
		n := 0
		if a >= base && a-base < uint64(len(b)) {
			n = copy(p, b[a-base:])
		}
		if n < len(p) {
			return n, &mem.FaultError{Space: "memory", Addr: a + uint64(n)}
		}
		return n, nil
	}
}

func TestExamine(t *testing.T) {
	const base = 0x1000
	bytes8 := []byte{0xff, 0xfe, 0x02, 0x80, 0x61, 0x00, 0x0a, 0x7f}
	symbol := func(a uint64) string {
		if a == base {
			return "start"
		}
		return ""
	}
	for _, c := range []struct {
		format, data, want string
	}{
		{"gx", string(bytes8), "0x1000 <start>:\t0x7f0a00618002feff\n"},
		{"2wx", string(bytes8), "0x1000 <start>:\t0x8002feff\t0x7f0a0061\n"},
		{"2wd", string(bytes8), "0x1000 <start>:\t-2147287297\t2131361889\n"},
		{"hu", string(bytes8), "0x1000 <start>:\t65279\n"},
		{"2bo", string(bytes8), "0x1000 <start>:\t0377\t0376\n"},
		{"bt", "\x05", "0x1000 <start>:\t00000101\n"},
		{"2c", "a\xff", "0x1000 <start>:\t97 'a'\t-1 '\\u00ff'\n"},
		{"a", "\x00\x10\x00\x00\x00\x00\x00\x00", "0x1000 <start>:\t0x1000 start\n"},
		{"2s", "vmx\x00svm\x00", "0x1000 <start>:\t\"vmx\"\n0x1004:\t\"svm\"\n"},
		{"2i", "\x90\xc3" + strings.Repeat("\x90", 15), "0x1000 <start>:\tnop\n0x1001:\tretq\n"},
		// What there is before a fault is shown; a part of a unit is not.
		{"3gx", string(bytes8) + "1234", "0x1000 <start>:\t0x7f0a00618002feff\nmemory: cannot read 0x100c\n"},
		{"2s", "vmx\x00sv", "0x1000 <start>:\t\"vmx\"\nmemory: cannot read 0x1006\n"},
		{"2i", "\x90", "0x1000 <start>:\tnop\nmemory: cannot read 0x1001\n"},
		{"gx", "", "memory: cannot read 0x1000\n"},
	} {
		f, err := report.ParseFormat(c.format)
		if err != nil {
			t.Fatal(err)
		}
		m := &report.Memory{Machine: "l1", Space: "va"}
		e := report.Examiner{Arch: arch.X86, Read: from(base, []byte(c.data)), Symbol: symbol}
		e.Examine(m, f, base)
		var out bytes.Buffer
		if m.Text(&out); out.String() != c.want {
			t.Errorf("%s of %q:\n%swant\n%s", c.format, c.data, &out, c.want)
		}
	}
}

func TestLinesOfWords(t *testing.T) {
	m := &report.Memory{}
	e := report.Examiner{Arch: arch.X86, Read: from(0, make([]byte, 40))}
	e.Examine(m, report.Format{Count: 5, Letter: 'x', Size: 8}, 0)
	var got []string
	for _, l := range m.Lines {
		got = append(got, fmt.Sprintf("%s %d", l.Addr, len(l.Values)))
	}
	if want := "[0x0 2 0x10 2 0x20 1]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %s", got, want)
	}
}
