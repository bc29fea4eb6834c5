package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"nestdbg/internal/debugfile"
	"nestdbg/internal/gdbserver"
	"nestdbg/internal/gdbserver/gdbservertest"
	"nestdbg/internal/report"
	"nestdbg/internal/session"
)

// toyMonitor answers what the hook asks, for toy machines; one with a file has a kernel.
type toyMonitor struct {
	*gdbservertest.Fake
	asked int // how often; guarded by the fake's lock
}

// Monitor implements gdbserver.Monitor.
func (m *toyMonitor) Monitor(_ context.Context, _, _ int, command string, out io.Writer) error {
	if command != "status --json" {
		return fmt.Errorf("monitor %q", command)
	}
	m.Lock()
	defer m.Unlock()
	m.asked++
	var st report.Status
	for pid, toy := range m.Machines {
		x := report.Machine{Name: fmt.Sprintf("toy%d", pid), Process: pid, VCPUs: make([]report.VCPU, len(toy.CPUs))}
		if toy.File != "" {
			x.Kernel = &report.Kernel{}
		}
		st.Machines = append(st.Machines, x)
	}
	return json.NewEncoder(out).Encode(st)
}

// toyFile is an ELF file that gdb can read, linked like a kernel.
func toyFile(t *testing.T) string {
	t.Helper()
	in := filepath.Join(t.TempDir(), "vmlinux.S")
	if err := os.WriteFile(in, []byte(".globl _text\n_text: nop\n jmp _text\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := strings.TrimSuffix(in, ".S")
	c := exec.Command("gcc", "-o", out, in, "-nostdlib", "-static", "-no-pie", "-Wl,--build-id,-z,noexecstack,-Ttext=0xffffffff81000000,-e,_text")
	if b, err := c.CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, b)
	}
	return out
}

// promptGDB is an interactive gdb with nestdbg's scripts, on pipes.
type promptGDB struct {
	t     *testing.T
	in    io.Writer
	lines chan string
	count int
}

func startPromptGDB(t *testing.T, target gdbserver.Target, numbers ...int) *promptGDB {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "gdb"))
	if err != nil {
		t.Fatal(err)
	}
	s := newScripts(l.Addr().String())
	if err := errors.Join(s.writeInit(), s.writeMachines(numbers)); err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		if conn, err := l.Accept(); err == nil {
			gdbserver.Serve(ctx, conn, target, gdbserver.Options{})
		}
	})
	c := exec.Command("gdb", "-nx", "-q", "-ex", "set width 0", "-ex", "set debuginfod enabled off", "-x", s.init)
	c.Env = append(os.Environ(), "TERM=dumb", "HOME="+t.TempDir())
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = c.Stdout
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	g := &promptGDB{t: t, in: in, lines: make(chan string, 1000)}
	go func() {
		defer close(g.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			g.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		c.Process.Kill()
		for range g.lines { // until gdb is gone
		}
		c.Wait()
		cancel()
		l.Close()
		served.Wait()
	})
	return g
}

// do runs a command and returns what gdb prints until the next prompt.
func (g *promptGDB) do(command string) string {
	g.t.Helper()
	g.count++
	mark := fmt.Sprintf("---%d---", g.count)
	fmt.Fprintf(g.in, "%s\necho \\n%s\\n\n", command, mark)
	var text strings.Builder
	late := time.After(30 * time.Second)
	for {
		select {
		case line, ok := <-g.lines:
			line = strings.ReplaceAll(line, "(gdb) ", "")
			switch {
			case line == mark:
				return text.String()
			case !ok:
				g.t.Fatalf("gdb ended at %q:\n%s", command, &text)
			}
			fmt.Fprintln(&text, line)
		case <-late:
			g.t.Fatalf("gdb does not answer %q:\n%s", command, &text)
		}
	}
}

// toy is a machine with two CPUs that execute what toyFile holds.
func toy(pid int) *gdbservertest.Machine {
	return gdbservertest.NewMachine(pid, 2, 0xffffffff81000000,
		gdbservertest.Segment{Base: 0xffffffff81000000, Data: []byte{0x90, 0xeb, 0xfd, 0}})
}

// TestGDBFollowsMachines is a session at gdb's prompt while machines come, boot and end.
func TestGDBFollowsMachines(t *testing.T) {
	file := toyFile(t)
	first, err := debugfile.FirstSegment(file)
	if err != nil {
		t.Fatal(err)
	}
	f := gdbservertest.New(toy(1), toy(2))
	monitor := &toyMonitor{Fake: f}
	target := f.Target()
	target.Monitor = monitor
	asked := 0
	f.OnResume = func([]gdbserver.Action, <-chan struct{}) (gdbserver.Stop, error) {
		return gdbserver.Stop{PID: 2, Reason: gdbserver.Exited}, nil
	}
	g := startPromptGDB(t, target, 1, 2)
	for _, step := range []struct {
		what     string
		before   func() // under the fake's lock
		commands []string
		want     string // what gdb prints last
		attached []int
	}{
		{"the script attaches", nil, []string{"info inferiors"}, `1 +process 1 .*\n\* 2 +process 2 `, []int{1, 2}},
		{"what was detached stays so", nil, []string{"detach", "print 1", "info inferiors"}, `\* 2 +<null>`, []int{1}},
		{"a machine appears", func() { f.Machines[3] = toy(3) }, []string{"thread 1.2", "print 1", "info inferiors"},
			`\* 1 +process 1 .*\n +2 +<null> .*\n +3 +process 3 `, []int{1, 3}},
		{"what was selected stays so", nil, []string{"thread"}, `^\[Current thread is 1\.2 `, []int{1, 3}},
		{"it has no symbols", nil, []string{"inferior 3", "info symbol $pc"}, "No symbol matches", []int{1, 3}},
		{"its kernel comes up", func() { f.Machines[3].File, f.Machines[3].Text = file, first },
			[]string{"inferior 1", "print 1"}, `= 1`, []int{1, 3}},
		{"and has symbols", nil, []string{"inferior 3", "info symbol $pc"}, "^_text in section", []int{1, 3}},
		{"the person attaches", nil, []string{"inferior 2", "attach 2", "info inferiors"}, `\* 2 +process 2 `, []int{1, 2, 3}},
		{"a machine ends", func() { delete(f.Machines, 2); delete(f.Attached, 2) }, []string{"continue", "info inferiors"},
			`\* 2 +<null>`, []int{1, 3}},
		{"its inferior goes", nil, []string{"inferior 1", "print 1", "info inferiors"},
			`^ +Num .*\n\* 1 +process 1 .*\n +3 +process 3 .*\n+$`, []int{1, 3}},
		{"the only one", func() { f.Machines[1].File, f.Machines[1].Text = file, first },
			[]string{"detach inferiors 3", "inferior 3", "inferior 1"}, "", []int{1}},
		{"everything is detached", func() { asked = monitor.asked }, []string{"detach", "print 1", "print 2", "info inferiors"},
			`\* 1 +<null> .*\n +3 +<null>`, nil},
	} {
		f.Lock()
		if step.before != nil {
			step.before()
		}
		f.Unlock()
		var out string
		for _, c := range step.commands {
			out = g.do(c)
		}
		if !regexp.MustCompile(step.want).MatchString(out) {
			t.Errorf("%s: gdb says\n%swant %s", step.what, out, step.want)
		}
		f.Lock()
		for pid := range 4 {
			if f.Attached[pid] != slices.Contains(step.attached, pid) {
				t.Errorf("%s: machine %d is attached: %v", step.what, pid, f.Attached[pid])
			}
		}
		f.Unlock()
	}
	// Detached machines run, and are not even looked at. The prompt before may have come
	// after we counted.
	if f.Lock(); monitor.asked > asked+1 {
		t.Errorf("nothing is attached, and monitor was asked %d times", monitor.asked-asked)
	}
	f.Unlock()
}

// held is a target that somebody else controls.
type held struct {
	described
	by error
}

func (h held) CheckStub(context.Context) error { return h.by }

// TestServeHeld: who has the gdbstub is said at once, and not when gdb attaches.
func TestServeHeld(t *testing.T) {
	a, _ := opened(t)
	var said strings.Builder
	a.errOut = &said
	for _, err := range []error{nil, errors.New("taken by somebody"), session.ErrGone} {
		a.target = held{by: err}
		if got := a.sayHolder(t.Context()); (got != nil) != errors.Is(err, session.ErrGone) {
			t.Errorf("%v: %v", err, got)
		}
	}
	if want := "nestdbg: nobody can attach now: taken by somebody\n"; said.String() != want {
		t.Errorf("said %q, want %q", &said, want)
	}
}
