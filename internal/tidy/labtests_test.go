package tidy

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestLabTestsRunAgain runs scripts/labtests with a "go" that says what it is
// told: only tests that lost a guest get another chance, and three at most.
func TestLabTestsRunAgain(t *testing.T) {
	const lost = "--- FAIL: TestA (1.00s)\n    --- FAIL: TestA/sub (0.10s)\n    a_test.go:1: x\ncasualty: TestA: lab x: vm0 says \"Oops\"\n"
	for _, c := range []struct {
		name, first, second string // outputs; one with FAIL in it ends with status 1
		runs                int
		ok                  bool
	}{
		{"all pass", "--- PASS: TestA (1.00s)\nPASS\n", "", 1, true},
		{"a failure", "--- FAIL: TestA (1.00s)\nFAIL\n", "", 1, false},
		{"a guest died", lost, "--- PASS: TestA (1.00s)\nPASS\n", 2, true},
		{"it died again and again", lost, lost, 4, false},
		{"another failed too", lost + "--- FAIL: TestB (1.00s)\nFAIL\n", "", 1, false},
		{"not all ran", lost + "panic: test timed out after 1s\n", "", 1, false},
		{"many died", lost + strings.ReplaceAll(lost, "TestA", "TestB") + strings.ReplaceAll(lost, "TestA", "TestC") +
			strings.ReplaceAll(lost, "TestA", "TestD") + strings.ReplaceAll(lost, "TestA", "TestE") +
			strings.ReplaceAll(lost, "TestA", "TestF") + strings.ReplaceAll(lost, "TestA", "TestG") + strings.ReplaceAll(lost, "TestA", "TestH") +
			strings.ReplaceAll(lost, "TestA", "TestI"), "", 1, false},
		{"no test failed", "build FAILed\n", "", 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for i, text := range []string{c.first, c.second, c.second, c.second} {
				write(t, filepath.Join(dir, fmt.Sprint("out", i+1)), text, 0o600)
			}
			// It counts its runs and keeps its arguments.
			write(t, filepath.Join(dir, "go"), `#!/bin/sh
echo "$@" >> `+dir+`/args
out=`+dir+`/out$(wc -l < `+dir+`/args)
cat "$out"
! grep -q FAIL "$out"
`, 0o700)
			cmd := exec.Command("bash", "../../scripts/labtests", "./lab/tests")
			cmd.Env = append(os.Environ(), "GO="+filepath.Join(dir, "go"))
			out, err := cmd.CombinedOutput()
			if (err == nil) != c.ok {
				t.Errorf("%v\n%s", err, out)
			}
			args, _ := os.ReadFile(filepath.Join(dir, "args"))
			runs := strings.Split(strings.TrimSpace(string(args)), "\n")
			if len(runs) != c.runs {
				t.Errorf("%d runs, want %d", len(runs), c.runs)
			}
			if len(runs) == 2 && !strings.Contains(runs[1], "-run ^(TestA)$") {
				t.Errorf("the second run is %q", runs[1])
			}
		})
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}
