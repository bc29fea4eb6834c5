package tidy

import (
	"fmt"
	"go/ast"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const matrix = "docs/support-matrix.md"

// verdict is how a cell of the matrix begins.
var verdict = regexp.MustCompile(`^(yes|part|no|not run): *(.*)$`)

// proofs is what the cells of the matrix may cite.
type proofs struct {
	tests []string // "package.TestName", packages named as in the tables here
	files []string // paths from the root
}

// checkMatrix checks the cells of every table: each has a verdict; a claim cites
// a proof that exists, anything less than a claim has a reason.
func checkMatrix(have proofs) func(*file) []string {
	return func(f *file) (problems []string) {
		for _, c := range cells(string(f.text)) {
			m := verdict.FindStringSubmatch(c.text)
			if m == nil {
				problems = append(problems, fmt.Sprintf("line %d: %q is no verdict", c.line, c.text))
				continue
			}
			cited := codeSpan.FindAllStringSubmatch(m[2], -1)
			for _, p := range cited {
				if name := p[1]; !slices.Contains(have.tests, name) && !(strings.HasPrefix(name, "lab/") && slices.Contains(have.files, name)) {
					problems = append(problems, fmt.Sprintf("line %d: there is no test %s", c.line, name))
				}
			}
			claims := m[1] == "yes" || m[1] == "part"
			reason := strings.Trim(codeSpan.ReplaceAllString(m[2], ""), " ,;")
			switch {
			case claims && len(cited) == 0:
				problems = append(problems, fmt.Sprintf("line %d: %q without a test", c.line, c.text))
			case m[1] != "yes" && reason == "":
				problems = append(problems, fmt.Sprintf("line %d: %q without a reason", c.line, c.text))
			}
		}
		return problems
	}
}

// cell is one cell of a table, but for the first of each row.
type cell struct {
	line int
	text string
}

// cells returns the cells of all tables behind their header and its ruler.
func cells(text string) (out []cell) {
	number, row := 0, 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			row = 0
			continue
		}
		if row++; row <= 2 {
			continue
		}
		for i, c := range strings.Split(strings.Trim(line, "|"), "|") {
			if i > 0 {
				out = append(out, cell{number, strings.TrimSpace(c)})
			}
		}
	}
	return out
}

func TestMatrix(t *testing.T) {
	var have proofs
	for _, f := range files(t, anyFile) {
		have.files = append(have.files, f.path)
		if !goFile(f) || !f.isTest() {
			continue
		}
		functionsOf(f, func(name string, decl *ast.FuncDecl, _ int) {
			if decl.Recv == nil && testName.MatchString(decl.Name.Name) {
				have.tests = append(have.tests, name)
			}
		})
	}
	each(t, named(matrix), checkMatrix(have))
	if len(cells(document(t, matrix))) == 0 {
		t.Error("no cells found")
	}
}

var testName = regexp.MustCompile(`^(Test|Fuzz|Benchmark)[A-Z]`)

func TestMatrixFires(t *testing.T) {
	const head = "| | stage 1 |\n|---|---|\n"
	have := proofs{tests: []string{"paging.TestTower", "lab/tests.TestStatus"}, files: []string{"lab/demo.sh", "README.md"}}
	fires(t, checkMatrix(have), []sample{
		{"test", "m.md", head + "| x86 | yes: `paging.TestTower` |\n", ""},
		{"lab test", "m.md", head + "| x86 | yes: `lab/tests.TestStatus` |\n", ""},
		{"script", "m.md", head + "| x86 | yes: `lab/demo.sh` |\n", ""},
		{"not run", "m.md", head + "| x86 | not run: no such host |\n", ""},
		{"part", "m.md", head + "| x86 | part: `paging.TestTower`; not live |\n", ""},
		{"gone", "m.md", head + "| x86 | yes: `paging.TestTowers` |\n", "no test paging.TestTowers"},
		{"no script", "m.md", head + "| x86 | yes: `README.md` |\n", "no test README.md"},
		{"bare claim", "m.md", head + "| x86 | yes: of course |\n", "without a test"},
		{"part of what", "m.md", head + "| x86 | part: `paging.TestTower` |\n", "without a reason"},
		{"bare no", "m.md", head + "| x86 | no: |\n", "without a reason"},
		{"empty", "m.md", head + "| x86 | |\n", "is no verdict"},
		{"second table", "m.md", head + "\n" + head + "| x86 | perhaps |\n", "line 6"},
	})
}
