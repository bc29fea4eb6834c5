package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// What is run again, at most: a nestdbg that kills guests has to fail.
const (
	mostFailed      = 8 // tests of the first run
	mostUnexplained = 2 // of those, with guests that live
	mostRounds      = 5 // runs of a test that loses its guest each time
	passes          = 2 // that a test needs which failed with a guest that lives
)

// showLines bounds what is shown of a test that failed, from its begin and its end.
const showLines = 80

// suite runs tests until it is known of each whether it passes.
type suite struct {
	out io.Writer
	// run runs all tests, or those of these names. It fails if one of them does.
	run func(names []string, each func(event)) error

	died        map[string][]string // of what, by test
	unexplained []string            // tests that failed once with a guest that lives
}

// all reports whether all tests pass.
func (s *suite) all() bool {
	s.died = make(map[string][]string)
	r := s.round(nil)
	if r.ok() {
		return s.verdict(nil)
	}
	lost, alive := r.split()
	if r.broken || len(r.failed) > mostFailed || len(alive) > mostUnexplained {
		return s.verdict(r)
	}
	s.unexplained = alive
	for range passes {
		if !s.again(alive) {
			return false
		}
	}
	return s.again(lost) && s.verdict(nil)
}

// again runs tests on fresh labs until they pass. One that fails with a guest that
// lives ends it.
func (s *suite) again(names []string) bool {
	for n := 2; len(names) > 0; n++ {
		fmt.Fprintf(s.out, "labtests: once more: %s\n", strings.Join(names, " "))
		r := s.round(names)
		lost, alive := r.split()
		if r.broken || len(alive) > 0 || n == mostRounds && len(lost) > 0 {
			return s.verdict(r)
		}
		names = lost
	}
	return true
}

// verdict says how it ended: with r, which failed, or well if that is nil.
func (s *suite) verdict(r *round) bool {
	for _, name := range slices.Sorted(maps.Keys(s.died)) {
		fmt.Fprintf(s.out, "labtests: %s lost its guest: %s\n", name, strings.Join(s.died[name], "; "))
	}
	if r == nil {
		for _, name := range s.unexplained {
			fmt.Fprintf(s.out, "labtests: %s failed once while its guests lived, and passed %d times since: why is not known\n", name, passes)
		}
		return true
	}
	if r.broken {
		fmt.Fprintln(s.out, "labtests: the tests did not come to their end")
	}
	lost, alive := r.split()
	if len(alive) > 0 {
		fmt.Fprintf(s.out, "labtests: failed: %s\n", strings.Join(alive, " "))
	}
	if len(lost) > 0 {
		fmt.Fprintf(s.out, "labtests: lost their guests: %s\n", strings.Join(lost, " "))
	}
	return false
}

// round runs tests. What passes is shown as it ends, with what it measured; what
// failed is shown behind all that, so that it is found.
func (s *suite) round(names []string) *round {
	r := &round{out: s.out, said: make(map[string]*strings.Builder), failed: make(map[string]bool), lost: make(map[string]string)}
	err := s.run(names, r.take)
	// A process that ends without a word of the test that failed has died itself.
	r.broken = r.broken || len(r.said) > 0 || err != nil && len(r.failed) == 0
	for _, name := range slices.Sorted(maps.Keys(r.said)) {
		fmt.Fprint(s.out, shortened(r.said[name].String()))
	}
	fmt.Fprint(s.out, r.failures.String())
	for name, why := range r.lost {
		s.died[name] = append(s.died[name], why)
	}
	return r
}

// round is one run of tests.
type round struct {
	out      io.Writer
	said     map[string]*strings.Builder // by tests that have not ended, "" for the package
	failures strings.Builder             // what failed tests said
	failed   map[string]bool
	lost     map[string]string // why a guest died, by test
	broken   bool
}

func (r *round) ok() bool { return !r.broken && len(r.failed) == 0 }

// split tells tests that failed with a dead guest from the others.
func (r *round) split() (lost, alive []string) {
	for _, name := range slices.Sorted(maps.Keys(r.failed)) {
		if _, dead := r.lost[name]; dead {
			lost = append(lost, name)
		} else {
			alive = append(alive, name)
		}
	}
	return lost, alive
}

// take takes an event. Those of subtests belong to their test.
func (r *round) take(e event) {
	name, sub, isSub := strings.Cut(e.Test, "/")
	switch e.Action {
	case "output", "build-output":
		r.say(name, sub, e.Output)
	case "pass", "fail", "skip":
		if isSub {
			return
		}
		text := r.said[name]
		delete(r.said, name)
		if text == nil {
			text = new(strings.Builder)
		}
		r.end(name, e, text.String())
	}
}

// end takes the end of a test, or, without a name, of all.
func (r *round) end(name string, e event, text string) {
	switch {
	case name == "" && e.Action == "fail" && len(r.failed) == 0:
		r.said[""] = new(strings.Builder) // something else failed than a test
		r.said[""].WriteString(text)
	case name == "":
		fmt.Fprint(r.out, text)
	case e.Action == "pass":
		fmt.Fprint(r.out, text)
	default: // a test that does not run is no test that passes
		r.failed[name] = true
		r.failures.WriteString(shortened(text))
	}
}

// say takes a line of a test.
func (r *round) say(name, sub, line string) {
	trimmed := strings.TrimSpace(line)
	if rest, ok := strings.CutPrefix(trimmed, "casualty: "); ok {
		test, why, _ := strings.Cut(rest, ": ")
		r.lost[test] = why
	}
	if strings.HasPrefix(line, "panic: ") { // also "test timed out"; tests are missing that never ran
		r.broken = true
	}
	if trimmed == "" || strings.HasPrefix(trimmed, "=== ") || sub != "" && strings.HasPrefix(trimmed, "--- PASS") {
		return
	}
	if r.said[name] == nil {
		r.said[name] = new(strings.Builder)
	}
	r.said[name].WriteString(line)
}

// shortened is the text of a test without what is in the middle of much of it.
func shortened(text string) string {
	lines := strings.SplitAfter(text, "\n")
	left := len(lines) - 2*showLines
	if left <= 0 {
		return text
	}
	return strings.Join(lines[:showLines], "") + fmt.Sprintf("[%d lines]\n", left) + strings.Join(lines[len(lines)-showLines:], "")
}
