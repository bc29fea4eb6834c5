package tests

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"nestdbg/lab"
)

// TestMonitorGivesUp: what the monitor cannot do it says, and the lab says it too, at once.
func TestMonitorGivesUp(t *testing.T) {
	l, err := lab.Up(t.Context(), lab.Options{Kind: lab.MonitorKind, Name: *prefix + "-over", Append: "plant=page"})
	var boot *lab.BootError
	if !errors.As(err, &boot) {
		if l != nil {
			l.Down(context.Background())
		}
		t.Fatalf("one VM shares a page with none: %v", err)
	}
	defer boot.Lab.Down(context.Background())
	if want := "the monitor gave up: monitor: plant=page is of two VMs"; !strings.Contains(err.Error(), want) {
		t.Errorf("the lab says %v, want %q", err, want)
	}
	image := boot.Lab.Machines[0].Image
	for _, c := range []struct {
		name, line  string
		cpus        int
		memory, end string
	}{
		{"as a rule", "cpus=2", 2, "1G", "monitor: ready"},
		{"more CPUs than it has stacks for", "cpus=2", 18, "1G", "monitor: ready"},
		{"fewer CPUs than it shall use", "cpus=3", 2, "1G", "monitor: 2 CPUs have started, not 3"},
		{"less memory than it deals out", "", 1, "256M", "monitor: it needs memory from 0x800000 to 0x20000000"},
		{"more words than it keeps", strings.Repeat("x", 1024), 1, "1G", "monitor: a command line of 1024 bytes"},
	} {
		if said := wordsOf(t, image, c.line, c.cpus, c.memory); said[len(said)-1] != c.end {
			t.Errorf("%s: it said %q, want %q at the end", c.name, said[max(0, len(said)-3):], c.end)
		}
	}
}

// wordsOf starts the monitor in a QEMU of its own, and is what it says until it is ready or gives up.
func wordsOf(t *testing.T, image, line string, cpus int, memory string) (said []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", lab.DefaultCPUModel,
		"-smp", strconv.Itoa(cpus), "-m", memory, "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio",
		"-kernel", image, "-append", line)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cancel()
	for s := bufio.NewScanner(out); s.Scan(); {
		if s.Text() == "monitor: over" {
			break
		}
		if said = append(said, s.Text()); s.Text() == "monitor: ready" || strings.Contains(s.Text(), "exception") {
			break
		}
	}
	if len(said) == 0 {
		t.Fatal("the monitor said nothing")
	}
	return said
}

// TestMonitorLastWords: a monitor that runs into an exception while it has the serial line says which.
func TestMonitorLastWords(t *testing.T) {
	l, _ := bootMonitor(t, lab.Options{})
	script := filepath.Join(t.TempDir(), "script.gdb")
	// The identity mapping ends there. The number of the exception is among the first that it says.
	text := "inferior 1\ntbreak svm_answer\ncontinue\nset var speaker = 1\nset var $pc = 0x8000000000\ntbreak put_number\ncontinue\n" +
		"# expect hit Temporary breakpoint 2, .*put_number \\(n=14\n"
	if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	expectAll(t, text, monitorGDB(t, append([]string{"-t", strconv.Itoa(l.PID)}, imageFlags(l)...), script))
	eventually(t, "the monitor says what happened", 30*time.Second, func() bool {
		said, err := os.ReadFile(l.Machines[0].Log)
		return err == nil && strings.Contains(string(said), "\nmonitor: exception 14 on CPU 0; ")
	})
}
