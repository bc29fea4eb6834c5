package tidy

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// document reads a file of the repository.
func document(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func markdown(f *file) bool { return path.Ext(f.path) == ".md" }

// codeSpan is text between backticks; a code block is indented by four spaces.
var codeSpan = regexp.MustCompile("`([^`\n]+)`")

// commands returns the shell commands of a document: lines of code blocks and
// text between backticks, without prompt and comment.
func commands(text string) []string {
	var out []string
	add := func(s string) {
		s, _, _ = strings.Cut(s, " # ")
		out = append(out, strings.TrimPrefix(strings.TrimSpace(s), "$ "))
	}
	for line := range strings.Lines(text) {
		if block, ok := strings.CutPrefix(line, "    "); ok {
			add(block)
			continue
		}
		for _, m := range codeSpan.FindAllStringSubmatch(line, -1) {
			add(m[1])
		}
	}
	return out
}

var target = regexp.MustCompile(`(?m)^([a-z][a-z-]*):`)

// checkTargets finds "make X" for which the Makefile has no X.
func checkTargets(makefile string) func(*file) []string {
	var targets []string
	for _, m := range target.FindAllStringSubmatch(makefile, -1) {
		targets = append(targets, m[1])
	}
	return func(f *file) (problems []string) {
		for _, c := range commands(string(f.text)) {
			words := strings.Fields(c)
			if len(words) > 1 && words[0] == "make" && !slices.Contains(targets, words[1]) {
				problems = append(problems, fmt.Sprintf("the Makefile has no target for %q", c))
			}
		}
		return problems
	}
}

func TestTargets(t *testing.T) {
	each(t, markdown, checkTargets(document(t, "Makefile")))
	for _, c := range []string{"demo", "test"} {
		if !slices.Contains(commands(document(t, "README.md")), "make "+c) {
			t.Errorf("README.md does not say make %s", c)
		}
	}
	if !strings.Contains(document(t, ".ci/run"), "make test\n") {
		t.Error(".ci/run does not run what README.md says")
	}
}

func TestTargetsFires(t *testing.T) {
	fires(t, checkTargets("build: x\n\tgo build\ntest:\n"), []sample{
		{"there", "a.md", "`make build`\n\n    make test   # all\n", ""},
		{"span", "a.md", "see `make tests`\n", `no target for "make tests"`},
		{"block", "a.md", "    make demo      # show\n", `no target for "make demo"`},
		{"prose", "a.md", "make sure of it\n", ""},
	})
}

// checkUsage finds nestdbg commands and flags in a document that the command
// line does not have. source is the text of package cli.
func checkUsage(source string) func(*file) []string {
	return func(f *file) (problems []string) {
		for _, c := range commands(string(f.text)) {
			words := strings.Fields(c)
			if len(words) < 2 || words[0] != "nestdbg" {
				continue
			}
			own, _, _ := strings.Cut(c, " -- ") // what follows is gdb's
			for _, w := range strings.Fields(own)[1:] {
				flag, isFlag := strings.CutPrefix(w, "--")
				if isFlag && flag != "help" && !strings.Contains(source, `"`+flag+`"`) {
					problems = append(problems, fmt.Sprintf("no flag --%s for %q", flag, c))
				}
			}
			word, _, _ := strings.Cut(words[1], "/") // x/16gx
			use := regexp.MustCompile(`Use: *"` + regexp.QuoteMeta(word) + `[ "]`)
			if !strings.HasPrefix(word, "-") && !use.MatchString(source) {
				problems = append(problems, fmt.Sprintf("no command for %q", c))
			}
		}
		return problems
	}
}

func TestUsage(t *testing.T) {
	var source strings.Builder
	for _, f := range files(t, func(f *file) bool { return production(f) && f.dir() == "cli" }) {
		source.Write(f.text)
	}
	each(t, markdown, checkUsage(source.String()))
}

func TestUsageFires(t *testing.T) {
	fires(t, checkUsage(`Use: "status" Use:   "x [/FORMAT] ADDRESS" "stage"`), []sample{
		{"there", "a.md", "    $ nestdbg status\n    nestdbg x/8i --stage 2\n    nestdbg --help\n", ""},
		{"command", "a.md", "`nestdbg stat`\n", "no command"},
		{"flag", "a.md", "    nestdbg status --stages 2\n", "no flag --stages"},
		{"of another program", "a.md", "    nestdbg x -- --batch\n", ""},
	})
}

// architectureLimit is the longest that ARCHITECTURE.md may get, in lines.
const architectureLimit = 300

// checkMap finds packages that ARCHITECTURE.md does not name.
func checkMap(dirs []string) func(*file) []string {
	return func(f *file) (problems []string) {
		if n := f.lines(); n > architectureLimit {
			problems = append(problems, fmt.Sprintf("%d lines, at most %d", n, architectureLimit))
		}
		for _, d := range dirs {
			if !strings.Contains(string(f.text), "`"+d+"`") {
				problems = append(problems, "does not name package "+d)
			}
		}
		return problems
	}
}

func TestMap(t *testing.T) {
	var dirs []string
	for _, f := range files(t, goFile) {
		if _, helper := helps(f.dir()); !helper && !slices.Contains(dirs, f.dir()) {
			dirs = append(dirs, f.dir())
		}
	}
	each(t, named("ARCHITECTURE.md"), checkMap(dirs))
}

func TestMapFires(t *testing.T) {
	fires(t, checkMap([]string{"mem", "lab/wire"}), []sample{
		{"all", "a.md", "`mem` and `lab/wire`\n", ""},
		{"one missing", "a.md", "`mem` and the lab\n", "package lab/wire"},
		{"long", "a.md", "`mem` `lab/wire`" + strings.Repeat("\n", architectureLimit+1), "301 lines"},
	})
}

// module is the part of an import path that names a module on the hosts we use.
func module(importPath string) string {
	parts := strings.SplitN(importPath, "/", 4)
	return strings.Join(parts[:min(3, len(parts))], "/")
}

// checkDependencies finds modules that nobody gave a reason for.
func checkDependencies(modules []string) func(*file) []string {
	return func(f *file) (problems []string) {
		for _, m := range modules {
			if !strings.Contains(string(f.text), "`"+m+"`") {
				problems = append(problems, "does not say what "+m+" saves")
			}
		}
		return problems
	}
}

func TestDependencies(t *testing.T) {
	modules := slices.Clone(testModules)
	for _, row := range allowed {
		for _, name := range strings.Fields(row) {
			if first, _, _ := strings.Cut(name, "/"); strings.Contains(first, ".") {
				modules = append(modules, module(name))
			}
		}
	}
	slices.Sort(modules)
	each(t, named("CONTRIBUTING.md"), checkDependencies(slices.Compact(modules)))
}

func TestDependenciesFires(t *testing.T) {
	modules := []string{module("golang.org/x/sys/unix"), module("example.com/a/b/v2/c")}
	fires(t, checkDependencies(modules), []sample{
		{"both", "a.md", "`golang.org/x/sys` `example.com/a/b`", ""},
		{"one", "a.md", "`golang.org/x/sys`", "example.com/a/b"},
	})
}
