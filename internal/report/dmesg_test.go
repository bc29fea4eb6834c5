package report

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nestdbg/internal/linux"
)

func testLog() linux.LogBatch {
	b := linux.LogBatch{Records: []linux.LogRecord{
		{Seq: 3, TimeNs: 1234567890, Level: 6, Text: "first"},
		{Seq: 4, TimeNs: 1234568999, Level: 3, Facility: 1, Text: "two\nlines \x1b[31m\xff é\t"},
		{Seq: 9, TimeNs: 123456 * 1e9, Level: 4, Facility: 99},
	}}
	// The batch's own type for losses is not for this package.
	b.Lost = append(b.Lost, struct{ From, To uint64 }{5, 8})
	return b
}

func TestLogText(t *testing.T) {
	for _, tt := range []struct {
		name, levels, facilities string
		decode                   bool
		want                     string
	}{
		{"plain", "", "", false, "[    1.234567] first\n" +
			"[    1.234568] two\n               lines \\x1b[31m\\xff é\t\n" +
			"lost: 4 records, 5 to 8, were overwritten before they could be read\n[123456.000000] \n"},
		{"decoded", "info,err", "", true, "kern  :info  : [    1.234567] first\n" +
			"user  :err   : [    1.234568] two\n                              lines \\x1b[31m\\xff é\t\n" +
			"lost: 4 records, 5 to 8, were overwritten before they could be read\n"},
		{"and more severe", "warn+", "kern", false,
			"lost: 4 records, 5 to 8, were overwritten before they could be read\n"},
		{"and less severe", "+info", "0", false, "[    1.234567] first\n" +
			"lost: 4 records, 5 to 8, were overwritten before they could be read\n"},
	} {
		f, err := NewLogFilter(tt.levels, tt.facilities)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		NewLog("vm0", testLog(), f, tt.decode).Text(&b)
		if diff := cmp.Diff(tt.want, b.String()); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}

func TestLogFilter(t *testing.T) {
	for _, tt := range []struct{ levels, facilities string }{
		{"loud", ""}, {"err,", ""}, {"8", ""}, {"-1", ""}, {"", "kernel"}, {"", "kern+"},
	} {
		if _, err := NewLogFilter(tt.levels, tt.facilities); err == nil {
			t.Errorf("%+v is taken", tt)
		}
	}
}

// TestLogProblems: what could not be read is said behind what could, and a log of
// nothing but that is not empty.
func TestLogProblems(t *testing.T) {
	// The batch's own type for problems is not for this package.
	var b linux.LogBatch
	b.Problems = append(b.Problems, struct {
		Seq uint64
		Err error
	}{7, errors.New("text outside the ring")})
	l := NewLog("vm0", b, LogFilter{}, false)
	var text strings.Builder
	l.Text(&text)
	if want := "not read: record 7: text outside the ring\n"; text.String() != want || l.Empty() {
		t.Errorf("%q, empty %v", text.String(), l.Empty())
	}
	if !NewLog("vm0", linux.LogBatch{}, LogFilter{}, false).Empty() {
		t.Error("nothing is something")
	}
	// A level and a facility that no kernel has are numbers.
	b = testLog()
	b.Records[0].Level, b.Records[0].Facility = 12, 200
	text.Reset()
	NewLog("vm0", b, LogFilter{}, true).Text(&text)
	if first, _, _ := strings.Cut(text.String(), "\n"); !strings.HasPrefix(first, "200   :12    : [") {
		t.Errorf("%q", first)
	}
}
