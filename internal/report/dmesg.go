package report

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"nestdbg/internal/linux"
)

// Log is a kernel's log, or what was added to it.
type Log struct {
	Machine  string      `json:"machine"`
	Records  []LogRecord `json:"records"`
	Lost     []LostRun   `json:"lost,omitempty"`
	Problems []string    `json:"problems,omitempty"`

	decode bool
}

// LogRecord is one message. Time is since the kernel's start. Caller is who wrote
// it, a thread (T12) or a CPU (C0).
type LogRecord struct {
	Seq          uint64 `json:"seq"`
	TimeNs       uint64 `json:"time_ns"`
	Level        int    `json:"level"`
	LevelName    string `json:"level_name"`
	Facility     int    `json:"facility"`
	FacilityName string `json:"facility_name"`
	Caller       string `json:"caller,omitempty"`
	Continued    bool   `json:"continued,omitempty"`
	Subsystem    string `json:"subsystem,omitempty"`
	Device       string `json:"device,omitempty"`
	Text         string `json:"text"`
}

// LostRun are records that were overwritten before they could be read, both ends
// included.
type LostRun struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

// The names of levels and facilities, as in syslog(3); dmesg has the same.
var (
	levelNames    = []string{"emerg", "alert", "crit", "err", "warn", "notice", "info", "debug"}
	facilityNames = []string{"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp",
		"cron", "authpriv", "ftp", "res0", "res1", "res2", "res3",
		"local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"}
)

func nameOf(names []string, i int) string {
	if i >= 0 && i < len(names) {
		return names[i]
	}
	return strconv.Itoa(i)
}

// LogFilter chooses records. The zero value takes all.
type LogFilter struct {
	levels, facilities []int // empty: all
}

// NewLogFilter reads the lists of names that dmesg takes: "err,warn", "warn+" for
// warn and what is more severe, "+notice" for notice and what is less. Numbers
// serve as names. An empty list is all.
func NewLogFilter(levels, facilities string) (LogFilter, error) {
	var f LogFilter
	var err error
	if f.levels, err = parseNames("level", levelNames, levels, true); err != nil {
		return f, err
	}
	f.facilities, err = parseNames("facility", facilityNames, facilities, false)
	return f, err
}

func parseNames(what string, names []string, list string, ranges bool) ([]int, error) {
	if list == "" {
		return nil, nil
	}
	var out []int
	for word := range strings.SplitSeq(list, ",") {
		name, up := strings.CutSuffix(word, "+")
		name, down := strings.CutPrefix(name, "+")
		i := slices.Index(names, name)
		if n, err := strconv.Atoi(name); err == nil && n < len(names) {
			i = n
		}
		if i < 0 || (up || down) && !ranges {
			return nil, fmt.Errorf("no %s %q; there are: %s", what, word, strings.Join(names, " "))
		}
		first, last := i, i
		if up {
			first = 0
		}
		if down {
			last = len(names) - 1
		}
		for ; first <= last; first++ {
			out = append(out, first)
		}
	}
	return out, nil
}

func (f *LogFilter) takes(r *linux.LogRecord) bool {
	return (len(f.levels) == 0 || slices.Contains(f.levels, r.Level)) &&
		(len(f.facilities) == 0 || slices.Contains(f.facilities, r.Facility))
}

// NewLog reports on records of a machine's log; decode adds facility and level to
// its text.
func NewLog(machine string, b linux.LogBatch, f LogFilter, decode bool) *Log {
	l := &Log{Machine: machine, Records: []LogRecord{}, decode: decode}
	for i := range b.Records {
		r := &b.Records[i]
		if !f.takes(r) {
			continue
		}
		out := LogRecord{Seq: r.Seq, TimeNs: r.TimeNs, Level: r.Level, LevelName: nameOf(levelNames, r.Level),
			Facility: r.Facility, FacilityName: nameOf(facilityNames, r.Facility), Continued: r.Continued,
			Subsystem: r.Subsystem, Device: r.Device, Text: r.Text}
		if r.Caller.Known {
			out.Caller = r.Caller.String()
		}
		l.Records = append(l.Records, out)
	}
	for _, x := range b.Lost {
		l.Lost = append(l.Lost, LostRun{x.From, x.To})
	}
	for _, p := range b.Problems {
		l.Problems = append(l.Problems, p.Error())
	}
	return l
}

// Empty reports whether there is nothing to show.
func (l *Log) Empty() bool { return len(l.Records)+len(l.Lost)+len(l.Problems) == 0 }

// Text implements Report: lines as dmesg writes them.
func (l *Log) Text(w io.Writer) {
	lost := l.Lost
	for i := range l.Records {
		r := &l.Records[i]
		for len(lost) > 0 && lost[0].From < r.Seq {
			lost[0].text(w)
			lost = lost[1:]
		}
		r.text(w, l.decode)
	}
	for i := range lost {
		lost[i].text(w)
	}
	for _, p := range l.Problems {
		fmt.Fprintf(w, "not read: %s\n", p)
	}
}

func (x *LostRun) text(w io.Writer) {
	fmt.Fprintf(w, "lost: %d records, %d to %d, were overwritten before they could be read\n", x.To-x.From+1, x.From, x.To)
}

// text writes a record; further lines of its text stand under the first.
func (r *LogRecord) text(w io.Writer, decode bool) {
	prefix := fmt.Sprintf("[%5d.%06d] ", r.TimeNs/1e9, r.TimeNs%1e9/1000)
	if decode {
		prefix = fmt.Sprintf("%-6s:%-6s: ", r.FacilityName, r.LevelName) + prefix
	}
	for line := range strings.SplitSeq(strings.TrimSuffix(r.Text, "\n"), "\n") {
		fmt.Fprintf(w, "%s%s\n", prefix, printable(line))
		prefix = strings.Repeat(" ", len(prefix))
	}
}

// printable escapes what a terminal would not show, or obey, as dmesg does.
func printable(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		c, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case c == '\t' || unicode.IsPrint(c) && (c != utf8.RuneError || n > 1):
			b.WriteString(s[i : i+n])
		default:
			for _, x := range []byte(s[i : i+n]) {
				fmt.Fprintf(&b, `\x%02x`, x)
			}
		}
		i += n
	}
	return b.String()
}
