package cli

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

func TestSplitPrint(t *testing.T) {
	for in, want := range map[string]string{
		"print 1 - 1":               "print -- 1 - 1",
		"p/x -1":                    "print -- /x -1",
		"p /x -1":                   "print -- /x -1",
		"-t 7 -m l1 p x ->pid":      "-t 7 -m l1 print -- x ->pid",
		"print x -m l1 --json":      "print -m l1 --json -- x",
		"print --cpu=1 x -- --json": "print --cpu=1 -- x --json",
		"print --jsn x":             "print --jsn -- x",
		"print --x":                 "print -- --x",
		"struct rq.nr -x -1":        "struct -x -- rq.nr -1",
		"print -- -h":               "print -- -h",
		"print x -m":                "print -m -- x",
		"status print":              "",
		"-t print status":           "",
		"regs":                      "", "": "", "-t": "", "x/4gx p": "",
	} {
		got, ok := splitPrint(strings.Fields(in))
		if ok != (want != "") || ok && strings.Join(got, " ") != want {
			t.Errorf("%q: %q, %v, want %q", in, got, ok, want)
		}
	}
}

func TestStructArgs(t *testing.T) {
	for in, want := range map[string][]string{
		"list_head":                {"list_head", "", ""},
		"struct list_head":         {"struct list_head", "", ""},
		"task_struct.pid,se.on_rq": {"task_struct", "pid,se.on_rq", ""},
		"union foo.bar[2] $sp + 8": {"union foo", "bar[2]", "$sp + 8"},
		"struct 0x10":              {"struct 0x10", "", ""},
		"list_head current(0)":     {"list_head", "", "current(0)"},
	} {
		name, paths, where, err := structArgs(strings.Fields(in))
		if got := []string{name, strings.Join(paths, ","), where}; err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
	}
	if name, _, where, err := structArgs([]string{"struct list_head", "1", "+", "1"}); name != "struct list_head" || where != "1 + 1" || err != nil {
		t.Errorf("%q, %q, %v", name, where, err)
	}
	for _, in := range []string{".pid", "x.", "x.a,,b"} {
		if _, _, _, err := structArgs([]string{in}); !isUsage(err) {
			t.Errorf("%q: %v", in, err)
		}
	}
}

// Wrong words that need no target.
func TestPrintUsage(t *testing.T) {
	for _, args := range []string{"print", "p/x", "struct", "print /q 1", "print/xx 1", "print --jsn 1", "print --depth 0 1", "struct .x", "struct x. 1"} {
		var out, errOut bytes.Buffer
		status := Run(t.Context(), strings.Fields(args), strings.NewReader(""), &out, &errOut)
		if status != exitUsage || out.Len() > 0 || strings.Count(errOut.String(), "\n") != 1 {
			t.Errorf("%s: status %d, %q, %q", args, status, &out, &errOut)
		}
	}
}

func TestWrap(t *testing.T) {
	if got := wrap("aa bb cc  dddddd e", 5); got != "aa bb\ncc\ndddddd\ne" {
		t.Errorf("%q", got)
	}
}
