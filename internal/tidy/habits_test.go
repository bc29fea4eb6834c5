package tidy

import (
	"fmt"
	"go/ast"
	"slices"
	"strings"
	"testing"
)

// front are the packages that speak to the person: they may print and exit.
var front = []string{"cmd/nestdbg", "cli", "lab/agent", "lab/bench", "lab/labtests"}

// standardFiles are what belongs to the front packages.
var standardFiles = strings.Fields("os.Exit os.Stdin os.Stdout os.Stderr fmt.Print fmt.Printf fmt.Println log.Fatal log.Fatalf")

// checkHabits refuses what makes a package depend on more than its arguments:
// functions that run by being imported, the process's own files and exit.
func checkHabits(f *file) (problems []string) {
	for _, d := range f.code.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
			problems = append(problems, fmt.Sprintf("line %d: no init functions", f.line(fn.Pos())))
		}
	}
	if slices.Contains(front, f.dir()) {
		return problems
	}
	ast.Inspect(f.code, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		pkg, ok := sel.X.(*ast.Ident)
		if name := ""; ok {
			name = pkg.Name + "." + sel.Sel.Name
			if slices.Contains(standardFiles, name) {
				problems = append(problems, fmt.Sprintf("line %d: %s belongs to the front ends", f.line(n.Pos()), name))
			}
		}
		return true
	})
	return problems
}

func TestHabits(t *testing.T) { each(t, production, checkHabits) }

func TestHabitsFires(t *testing.T) {
	fires(t, checkHabits, []sample{
		{"init", "internal/qemu/a.go", "package qemu\nfunc init() {}", "line 2: no init"},
		{"method called init", "internal/qemu/a.go", "package qemu\nfunc (t T) init() {}", ""},
		{"print", "internal/qemu/a.go", "package qemu\nfunc f() { fmt.Println() }", "fmt.Println belongs"},
		{"exit", "internal/report/a.go", "package report\nfunc f() { os.Exit(1) }", "os.Exit belongs"},
		{"front", "internal/cli/a.go", "package cli\nfunc f() { fmt.Println() }", ""},
		{"writer", "internal/report/a.go", "package report\nfunc f() { fmt.Fprintln(w) }", ""},
	})
}
