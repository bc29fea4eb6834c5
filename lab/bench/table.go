package main

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// row answers one question.
type row struct {
	question string
	ours     string // what nestdbg needs
	theirs   string // what it is compared with needs
	ratio    string
	target   string
	verdict  verdict
	notes    []string // how it was measured and how much it varied
}

// note puts a note before the others.
func (r *row) note(text string) { r.notes = append([]string{text}, r.notes...) }

// verdict says whether a target was reached.
type verdict int

const (
	noTarget verdict = iota
	reached
	notReached
	notMeasured
)

func (v verdict) String() string {
	return [...]string{"", "ok", "not reached", "NOT MEASURED"}[v]
}

// judge is the verdict on a target.
func judge(ok bool) verdict {
	if ok {
		return reached
	}
	return notReached
}

var head = [...]string{"question", "nestdbg", "compared with", "ratio", "target", "ok?"}

func (r row) cells() [len(head)]string {
	return [...]string{r.question, r.ours, r.theirs, r.ratio, r.target, r.verdict.String()}
}

// writeTable writes the rows in columns that are as wide as they must be, and
// the notes below.
func writeTable(w io.Writer, rows []row) {
	lines := [][len(head)]string{head}
	for _, r := range rows {
		lines = append(lines, r.cells())
	}
	var width [len(head)]int
	for _, line := range lines {
		for i, cell := range line {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	for n, line := range lines {
		var b strings.Builder
		for i, cell := range line {
			fmt.Fprintf(&b, "| %-*s ", width[i], cell)
		}
		fmt.Fprintln(w, b.String()+"|")
		if n == 0 {
			for _, k := range width {
				fmt.Fprint(w, "|", strings.Repeat("-", k+2))
			}
			fmt.Fprintln(w, "|")
		}
	}
	for _, r := range rows {
		if len(r.notes) > 0 {
			fmt.Fprintf(w, "\n%s:\n", r.question)
		}
		for _, note := range r.notes {
			fmt.Fprintln(w, "  "+note)
		}
	}
}

// spread says how much the runs of something varied.
func spread(what string, s series) string {
	best, median, worst := s.best(), s.median(), s.worst()
	text := fmt.Sprintf("%s: %s best, %s median, %s worst of %d", what,
		brief(best.wall), brief(median.wall), brief(worst.wall), len(s))
	if median.cpu > 0 {
		text += fmt.Sprintf("; processors %s best, %s median", brief(best.cpu), brief(median.cpu))
	}
	return text
}

// brief is a duration with three digits.
func brief(d time.Duration) string {
	switch s := d.Seconds(); {
	case s >= 1 || s <= -1:
		return fmt.Sprintf("%.3g s", s)
	case s >= 1e-3 || s <= -1e-3:
		return fmt.Sprintf("%.3g ms", s*1e3)
	}
	return fmt.Sprintf("%.3g µs", d.Seconds()*1e6)
}

// rate is how often something of this duration fits into a second.
func rate(d time.Duration) float64 { return 1 / d.Seconds() }

// perSecond is bytes in a duration as a rate.
func perSecond(bytes int, d time.Duration) string {
	r := float64(bytes) / d.Seconds()
	if r >= 1e9 {
		return fmt.Sprintf("%.2f GB/s", r/1e9)
	}
	return fmt.Sprintf("%.3g MB/s", r/1e6)
}
