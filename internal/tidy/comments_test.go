package tidy

import (
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// wellKnown are methods whose meaning is that of a standard interface.
var wellKnown = []string{"Error", "Unwrap", "String", "Len", "Less", "Swap"}

// checkComments wants a comment at everything that is exported. Methods of
// unexported types are not: they implement an interface that has the comment.
func checkComments(f *file) (problems []string) {
	lacks := func(at token.Pos, what string) {
		problems = append(problems, fmt.Sprintf("line %d: exported %s has no comment", f.line(at), what))
	}
	var above comment
	for _, d := range f.code.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			r := receiver(d)
			hidden := r != "" && (!ast.IsExported(r) || slices.Contains(wellKnown, d.Name.Name))
			above = above.next(f, d)
			if d.Name.IsExported() && !hidden && !above.covers(d.Name.Name) {
				lacks(d.Pos(), d.Name.Name)
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				if name := exportedBare(d, s); name != "" {
					lacks(s.Pos(), name)
				}
			}
		}
	}
	return problems
}

// comment is the comment that counts for a function: its own, or that over the
// functions directly above it, if it names this one too.
type comment struct {
	text    string
	own     bool
	through int // the last line it counts for so far
}

// next is the comment that counts for the next function of the file.
func (c comment) next(f *file, fn *ast.FuncDecl) comment {
	switch {
	case fn.Doc != nil:
		return comment{text: fn.Doc.Text(), own: true, through: f.line(fn.End())}
	case c.text != "" && f.line(fn.Pos()) == c.through+1:
		return comment{text: c.text, through: f.line(fn.End())}
	}
	return comment{}
}

func (c comment) covers(name string) bool {
	words := strings.FieldsFunc(c.text, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
	return c.own || slices.Contains(words, name)
}

// exportedBare returns the exported name in a declaration that no comment
// explains, "" if there is none. One comment over a group is enough.
func exportedBare(d *ast.GenDecl, s ast.Spec) string {
	if d.Doc != nil {
		return ""
	}
	switch s := s.(type) {
	case *ast.TypeSpec:
		if s.Name.IsExported() && s.Doc == nil && s.Comment == nil {
			return s.Name.Name
		}
	case *ast.ValueSpec:
		for _, n := range s.Names {
			if n.IsExported() && s.Doc == nil && s.Comment == nil {
				return n.Name
			}
		}
	}
	return ""
}

func TestComments(t *testing.T) {
	each(t, func(f *file) bool { return production(f) && f.code.Name.Name != "main" }, checkComments)
}

func TestCommentsFires(t *testing.T) {
	fires(t, checkComments, []sample{
		{"function", "a.go", "package a\nfunc F() {}", "line 2: exported F"},
		{"with comment", "a.go", "package a\n// F does.\nfunc F() {}", ""},
		{"unexported", "a.go", "package a\nfunc f() {}", ""},
		{"method", "a.go", "package a\nfunc (t *T) M() {}", "exported M"},
		{"pair", "a.go", "package a\n// A and B are.\nfunc A() {}\nfunc B() {}", ""},
		{"pair, one named", "a.go", "package a\n// A is.\nfunc A() {}\nfunc B() {}", "exported B"},
		{"pair, apart", "a.go", "package a\n// A and B are.\nfunc A() {}\n\nfunc B() {}", "exported B"},
		{"method of an unexported type", "a.go", "package a\nfunc (t *t) M() {}", ""},
		{"method that all know", "a.go", "package a\nfunc (t T) Error() string { return \"\" }", ""},
		{"type", "a.go", "package a\ntype T int", "exported T"},
		{"variable", "a.go", "package a\nvar A, b = 1, 2", "exported A"},
		{"group", "a.go", "package a\n// Colours.\nconst (\nA = 1\nB = 2\n)", ""},
		{"group without", "a.go", "package a\nconst (\nA = 1 // red\nB = 2\n)", "exported B"},
	})
}

// packageComments returns the directories without a package comment. Where
// there is code that is not a test, the comment is there.
func packageComments(files []*file) (bare []string) {
	has, production := make(map[string]bool), make(map[string]bool)
	for _, f := range files {
		production[path.Dir(f.path)] = production[path.Dir(f.path)] || !f.isTest()
	}
	for _, f := range files {
		dir := path.Dir(f.path)
		if f.isTest() == !production[dir] && f.code.Doc != nil {
			has[dir] = true
		}
	}
	for dir := range production {
		if !has[dir] {
			bare = append(bare, dir)
		}
	}
	slices.Sort(bare)
	return bare
}

func TestPackageComments(t *testing.T) {
	for _, dir := range packageComments(files(t, goFile)) {
		t.Errorf("%s: no package comment", dir)
	}
}

func TestPackageCommentsFires(t *testing.T) {
	var made []*file
	for name, text := range map[string]string{
		"good/a.go":       "// Package good is.\npackage good",
		"good/b.go":       "package good",
		"bare/a.go":       "package bare",
		"bare/a_test.go":  "// Package bare is commented at the wrong place.\npackage bare",
		"tests/a_test.go": "// Package tests has tests only.\npackage tests",
	} {
		f, err := newFile(name, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, f)
	}
	if got := packageComments(made); !slices.Equal(got, []string{"bare"}) {
		t.Errorf("got %q, want bare alone", got)
	}
}
