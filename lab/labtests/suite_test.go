package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// script is what runs of tests do, one after the other: for each test that is run
// "pass", "fail", "lost", "skip" or "panic". Tests without a word pass.
type script []map[string]string

// play runs a suite of these tests, and returns whether it passed, what was run, and
// what it printed.
func (s script) play(tests ...string) (ok bool, runs [][]string, out string) {
	var text strings.Builder
	failed := errors.New("exit status 1")
	x := suite{out: &text, run: func(names []string, each func(event)) (err error) {
		n := len(runs)
		runs = append(runs, names)
		if names == nil {
			names = tests
		}
		for _, name := range names {
			does := "pass"
			if n < len(s) && s[n][name] != "" {
				does = s[n][name]
			}
			each(event{Action: "run", Test: name})
			each(event{Action: "output", Test: name + "/part", Output: "    a_test.go:1: measured by " + name + "\n"})
			switch does {
			case "panic":
				each(event{Action: "output", Test: name, Output: "panic: no\n"})
				return failed
			case "lost":
				each(event{Action: "output", Test: name, Output: fmt.Sprintf("casualty: %s: lab x: vm0 is silent\n", name)})
				does, err = "fail", failed
			case "fail", "skip":
				err = failed
			}
			each(event{Action: "output", Test: name, Output: fmt.Sprintf("--- %s: %s (0.01s)\n", strings.ToUpper(does), name)})
			each(event{Action: does, Test: name})
		}
		if err != nil {
			each(event{Action: "output", Output: "FAIL\n"})
			each(event{Action: "fail"})
		}
		return err
	}}
	ok = x.all()
	return ok, runs, text.String()
}

func TestPolicy(t *testing.T) {
	lostAll := make(map[string]string)
	for _, name := range strings.Split("ABCDEFGHI", "") { // one more than mostFailed
		lostAll[name] = "lost"
	}
	for name, c := range map[string]struct {
		script script
		ok     bool
		runs   []string // names after the first run, "|" between runs
		says   string
	}{
		"all pass":             {ok: true, says: "measured by A"},
		"one fails":            {script: script{{"B": "fail"}, {"B": "fail"}}, runs: []string{"B"}, says: "labtests: failed: B"},
		"fails, passes twice":  {script: script{{"B": "fail"}}, ok: true, runs: []string{"B", "B"}, says: "B failed once while its guests lived"},
		"fails, passes once":   {script: script{{"B": "fail"}, {}, {"B": "fail"}}, runs: []string{"B", "B"}, says: "labtests: failed: B"},
		"a guest is lost":      {script: script{{"A": "lost"}}, ok: true, runs: []string{"A"}, says: "A lost its guest: lab x: vm0 is silent"},
		"lost and lost":        {script: script{{"A": "lost", "C": "lost"}, {"C": "lost"}, {}}, ok: true, runs: []string{"A C", "C"}},
		"lost each time":       {script: script{{"A": "lost"}, {"A": "lost"}, {"A": "lost"}, {"A": "lost"}, {"A": "lost"}}, runs: []string{"A", "A", "A", "A"}, says: "lost their guests: A"},
		"lost, then fails":     {script: script{{"A": "lost"}, {"A": "fail"}}, runs: []string{"A"}, says: "labtests: failed: A"},
		"too many fail":        {script: script{{"A": "fail", "B": "fail", "C": "fail"}}, says: "labtests: failed: A B C"},
		"too many lose guests": {script: script{lostAll}},
		"a skipped test fails": {script: script{{"A": "skip"}, {"A": "skip"}}, runs: []string{"A"}, says: "labtests: failed: A"},
		"a panic":              {script: script{{"B": "panic"}}, says: "did not come to their end"},
		"a panic after a loss": {script: script{{"A": "lost", "B": "panic"}}, says: "did not come to their end"},
		"a panic later":        {script: script{{"A": "lost"}, {"A": "panic"}}, runs: []string{"A"}, says: "did not come to their end"},
	} {
		t.Run(name, func(t *testing.T) {
			ok, runs, out := c.script.play(strings.Split("ABCDEFGHI", "")...)
			var again []string
			for _, r := range runs[1:] {
				again = append(again, strings.Join(r, " "))
			}
			if ok != c.ok || !slices.Equal(again, c.runs) || !strings.Contains(out, c.says) {
				t.Errorf("passed %v, want %v; ran again %q, want %q; said, without %q:\n%s", ok, c.ok, again, c.runs, c.says, out)
			}
		})
	}
}

// What failed comes behind what passed; a build that failed is no test.
func TestRoundShows(t *testing.T) {
	_, _, out := script{{"A": "fail"}}.play("A", "B")
	if a, b := strings.Index(out, "--- FAIL: A"), strings.Index(out, "--- PASS: B"); a < b || b < 0 {
		t.Error(out)
	}
	var text strings.Builder
	s := suite{out: &text, run: func(_ []string, each func(event)) error {
		return errors.Join(events(strings.NewReader(`{"ImportPath":"x","Action":"build-output","Output":"a.go:1: wrong\n"}
{"Action":"fail","Package":"x"}
no JSON
`), each), errors.New("exit status 1"))
	}}
	if s.all() || !strings.Contains(text.String(), "a.go:1: wrong") || !strings.Contains(text.String(), "no JSON") {
		t.Error(text.String())
	}
}

func TestShortened(t *testing.T) {
	if got := shortened(strings.Repeat("x\n", 100)); strings.Count(got, "\n") != 100 {
		t.Errorf("%q", got)
	}
	got := shortened("first\n" + strings.Repeat("x\n", 1000) + "last\n")
	if strings.Count(got, "\n") > 2*showLines+1 || !strings.HasPrefix(got, "first\n") || !strings.HasSuffix(got, "last\n") {
		t.Errorf("%q", got)
	}
}
