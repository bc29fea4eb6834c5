package tidy

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// root is the repository; go test runs in the package's directory.
const root = "../.."

// file is one file of the repository.
type file struct {
	path string // from the root, with slashes
	text []byte
	code *ast.File // nil unless it is Go
	fset *token.FileSet
}

// newFile parses the file if it is Go.
func newFile(name string, text []byte) (*file, error) {
	f := &file{path: name, text: text, fset: token.NewFileSet()}
	if path.Ext(name) != ".go" {
		return f, nil
	}
	var err error
	f.code, err = parser.ParseFile(f.fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
	return f, err
}

// dir is the directory as the tables here name it: without internal/.
func (f *file) dir() string { return short(path.Dir(f.path)) }

// short names a directory of the repository as the tables here do.
func short(dir string) string { return strings.TrimPrefix(dir, "internal/") }

func (f *file) isTest() bool { return strings.HasSuffix(f.path, "_test.go") }

func (f *file) line(p token.Pos) int { return f.fset.Position(p).Line }

// lines is the number of lines of the file.
func (f *file) lines() int { return strings.Count(string(f.text), "\n") }

// tree is every file that is in the repository or would be after "git add .".
var tree = sync.OnceValues(func() ([]*file, error) {
	out, err := exec.Command("git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		return nil, fmt.Errorf("git ls-files: %w", err)
	}
	names := strings.FieldsFunc(string(out), func(r rune) bool { return r == 0 })
	slices.Sort(names)
	var files []*file
	for _, name := range slices.Compact(names) {
		text, err := os.ReadFile(filepath.Join(root, name))
		if os.IsNotExist(err) {
			continue // removed, and the removal is not committed yet
		}
		if err != nil {
			return nil, err
		}
		f, err := newFile(name, text)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
})

// files returns the files of the repository that keep accepts, at least one:
// a rule about nothing is a rule that stopped working.
func files(t *testing.T, keep func(*file) bool) []*file {
	t.Helper()
	all, err := tree()
	if err != nil {
		t.Fatal(err)
	}
	var out []*file
	for _, f := range all {
		if keep(f) {
			out = append(out, f)
		}
	}
	if len(out) == 0 {
		t.Fatal("no such file in the repository")
	}
	return out
}

func anyFile(*file) bool    { return true }
func goFile(f *file) bool   { return f.code != nil }
func testFile(f *file) bool { return goFile(f) && f.isTest() }

// production is Go that ends up in programs, and the helpers of tests.
func production(f *file) bool { return goFile(f) && !f.isTest() }

func named(name string) func(*file) bool { return func(f *file) bool { return f.path == name } }

// each applies a checker to every file that keep accepts.
func each(t *testing.T, keep func(*file) bool, check func(*file) []string) {
	t.Helper()
	for _, f := range files(t, keep) {
		for _, problem := range check(f) {
			t.Errorf("%s: %s", f.path, problem)
		}
	}
}

// sample is a made-up file and what a checker must say of it.
type sample struct {
	name, path, text string
	want             string // part of the only problem, or "" for none
}

// fires shows that a checker finds what it is for, and lets pass what is right.
func fires(t *testing.T, check func(*file) []string, samples []sample) {
	t.Helper()
	for _, s := range samples {
		t.Run(s.name, func(t *testing.T) {
			f, err := newFile(s.path, []byte(s.text))
			if err != nil {
				t.Fatal(err)
			}
			got := check(f)
			switch {
			case s.want == "" && len(got) != 0:
				t.Errorf("unexpected: %q", got)
			case s.want != "" && (len(got) != 1 || !strings.Contains(got[0], s.want)):
				t.Errorf("got %q, want one problem with %q", got, s.want)
			}
		})
	}
}
