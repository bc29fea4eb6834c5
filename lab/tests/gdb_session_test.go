package tests

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"nestdbg/lab"
)

// gdbLimit bounds one session; the first that reads a vmlinux takes longest.
const gdbLimit = 5 * time.Minute

// TestGDBSessions runs the scripts in testdata/gdb through "nestdbg gdb" with the
// gdb of this machine. A line "# expect RE" of a script must match what gdb
// prints, after the match of the one before. A script with the line "# session:
// no symbols" is run without debug information.
func TestGDBSessions(t *testing.T) {
	scripts, err := filepath.Glob("testdata/gdb/*.gdb")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	l := sharedLab(t, "kaslr")
	symbols, err := l.SymbolsDir(t.Context(), "vm0", "", func(s string) { t.Log(s) })
	if err != nil {
		t.Fatalf("debug symbols of L2's kernel: %v", err)
	}
	for _, script := range scripts {
		t.Run(strings.TrimSuffix(filepath.Base(script), ".gdb"), func(t *testing.T) {
			text, err := os.ReadFile(script)
			if err != nil {
				t.Fatal(err)
			}
			dir := symbols
			if strings.Contains(string(text), "# session: no symbols") {
				dir = t.TempDir()
			}
			expectAll(t, string(text), runGDB(t, l, dir, script))
		})
	}
	ask(t, l, "l1", "ping")
	ask(t, l, "vm0", "ping")
}

// runGDB runs a script and returns everything that was printed.
func runGDB(t *testing.T, l *lab.Lab, symbols, script string) string {
	t.Helper()
	out := new(lockedBuffer)
	cmd := exec.Command(suite.binary, on(l, "--symbols", symbols, "gdb", "--", "-batch", "-nh",
		"-ex", "set width 0", "-ex", "set height 0", "-ex", "set breakpoint pending off", "-x", script)...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(gdbLimit, func() { cmd.Process.Signal(os.Interrupt) })
	defer late.Stop()
	if err := cmd.Wait(); err != nil {
		t.Errorf("nestdbg gdb: %v", err)
	}
	return out.String()
}

// expectAll checks the expectations of a script.
func expectAll(t *testing.T, script, transcript string) {
	t.Helper()
	rest, count := transcript, 0
	for line := range strings.Lines(script) {
		want, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "# expect ")
		if !ok {
			continue
		}
		count++
		at := regexp.MustCompile("(?m)" + want).FindStringIndex(rest)
		if at == nil {
			t.Fatalf("expectation %d, %q, is not met behind the ones before; the transcript:\n%s", count, want, transcript)
		}
		rest = rest[at[1]:]
	}
	if count == 0 {
		t.Fatal("the script expects nothing")
	}
}
