package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nestdbg/lab/wire"
)

// fakeQEMU makes the test binary play QEMU: its value says how it behaves.
const fakeQEMU = "NESTDBG_LAB_FAKE_QEMU"

func TestMain(m *testing.M) {
	if how := os.Getenv(fakeQEMU); how != "" {
		os.Exit(playQEMU(how))
	}
	os.Exit(m.Run())
}

// playQEMU opens the agents' sockets in the working directory and answers
// "ping", or does not.
func playQEMU(how string) int {
	fmt.Fprintln(os.Stderr, "fake QEMU, "+how)
	if how == "refuses to start" {
		return 1
	}
	for _, machine := range []string{"vm0", L1} {
		l, err := net.Listen("unix", agentSocket(machine))
		if err != nil {
			return 2
		}
		go playAgent(l, machine, how)
	}
	if how == "dies while it boots" {
		time.Sleep(50 * time.Millisecond)
		return 3
	}
	select {}
}

func playAgent(l net.Listener, machine, how string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		r := bufio.NewReader(conn)
		for line, err := r.ReadBytes('\n'); err == nil; line, err = r.ReadBytes('\n') {
			req, ok := wire.ParseRequest(line)
			switch {
			case !ok || machine != L1 && how != "boots" && how != "loses its VM":
			case machine != L1 && how == "loses its VM":
				wire.WriteAnswer(conn, req.ID, nil, errors.New("vm0 is not running"))
			default:
				wire.WriteAnswer(conn, req.ID, []byte("6.1.0-"+machine+"\n"), nil)
			}
		}
		conn.Close()
	}
}

// startFake starts the fake in the place of QEMU, as Up would, but without
// kernels.
func startFake(t *testing.T, how string, o Options) (*Lab, Options) {
	t.Helper()
	t.Setenv(fakeQEMU, how)
	// Not t.TempDir: paths of sockets are short.
	home, err := os.MkdirTemp("", "lab-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	o.StateHome = home
	o, err = o.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	l := &Lab{Name: o.Name, Kind: o.Kind, Dir: filepath.Join(home, o.Name)}
	l.Machines = o.machines(l.Dir, &Kernel{Release: "6.1.0"}, &Kernel{Release: "6.1.0"})
	if err := os.Mkdir(l.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.startQEMU(o, files{qemu: self}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Down(context.Background()) })
	return l, o
}

func TestLabLife(t *testing.T) {
	var said []string
	l, o := startFake(t, "boots", Options{Progress: func(text string) { said = append(said, text) }})
	if err := l.wait(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if len(said) != 3 || !strings.Contains(strings.Join(said, "\n"), "vm0 reached userspace after") {
		t.Errorf("progress %q", said)
	}
	if err := checkFree(l.Dir); err == nil || !strings.Contains(err.Error(), "running already") {
		t.Errorf("a second lab of the same name: %v", err)
	}
	again, err := Open(o.StateHome, o.Name)
	if err != nil || !again.Running || again.PID != l.PID || again.Machine("vm0").Release != "6.1.0-vm0" {
		t.Fatalf("read back %+v, %v", again, err)
	}
	if got, err := again.Ask(t.Context(), "vm0", "ping"); err != nil || string(got) != "6.1.0-vm0\n" {
		t.Errorf("asked another time: %q, %v", got, err)
	}
	if err := again.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{l.Dir, l.MemoryFile} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is still there", path)
		}
	}
	if labs, err := List(o.StateHome); err != nil || len(labs) != 0 {
		t.Errorf("labs afterwards: %v, %v", labs, err)
	}
}

func TestLabThatDoesNotBoot(t *testing.T) {
	for how, want := range map[string]string{
		"refuses to start":    "QEMU ended: exit status 1",
		"dies while it boots": "QEMU ended: exit status 3",
		"loses its VM":        "vm0 is not running",
		"never answers":       "not up after 300ms",
	} {
		t.Run(how, func(t *testing.T) {
			l, o := startFake(t, how, Options{Timeout: 300 * time.Millisecond})
			err := l.wait(t.Context(), o)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
			if strings.Contains(fmt.Sprint(err), "\n") {
				t.Errorf("the error has more than a line: %q", err)
			}
			if !strings.Contains(l.Tail(), "fake QEMU, "+how) {
				t.Errorf("log tail %q", l.Tail())
			}
			if err := l.Down(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDeadLab(t *testing.T) {
	l, o := startFake(t, "refuses to start", Options{})
	waitFor(t, "its end", func() bool { return !l.process().alive() })
	if err := checkFree(l.Dir); err == nil || !strings.Contains(err.Error(), "dead") {
		t.Errorf("another lab in its place: %v", err)
	}
	labs, err := List(o.StateHome)
	if err != nil || len(labs) != 1 || labs[0].Running {
		t.Fatalf("labs %v, %v", labs, err)
	}
	if _, err := labs[0].Ask(t.Context(), L1, "ping"); err == nil || !strings.Contains(err.Error(), "not running") {
		t.Errorf("asked the dead: %v", err)
	}
	if err := labs[0].Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(l.MemoryFile); err == nil {
		t.Error("its memory file is still there")
	}
}

func TestIncompleteLab(t *testing.T) {
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, "half"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := Open(home, "half")
	if err != nil || !l.Incomplete || l.Running {
		t.Fatalf("%+v, %v", l, err)
	}
	if err := l.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(home, "half"); !errors.Is(err, ErrNotFound) {
		t.Errorf("after its end: %v", err)
	}
}

func TestAskErrors(t *testing.T) {
	l, _ := startFake(t, "never answers", Options{})
	if err := l.waitSocket(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := l.Ask(ctx, "vm0", "ping"); !errors.Is(err, ErrBusy) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer: %v", err)
	}
	for _, machine := range []string{"", "vm8", "vm-1", "../x", "l2"} {
		if _, err := l.Ask(t.Context(), machine, "ping"); !errors.Is(err, ErrNotFound) {
			t.Errorf("machine %q: %v", machine, err)
		}
	}
	if _, err := l.Ask(t.Context(), "vm0", "two\nlines"); err == nil {
		t.Error("a request of two lines was sent")
	}
}

func TestDownRemovesOnlyItsOwn(t *testing.T) {
	dir := t.TempDir()
	precious := filepath.Join(dir, "precious")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, l := range []Lab{
		{Name: "x", Dir: filepath.Join(dir, "x"), MemoryFile: precious},
		{Name: "x", Dir: dir},
	} {
		if err := l.Down(t.Context()); err == nil {
			t.Errorf("%+v was removed", l)
		}
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
}

func TestMemoryFile(t *testing.T) {
	small, big := t.TempDir(), t.TempDir()
	path, err := createMemoryFile(small, big, "x", 1<<20)
	if err != nil || filepath.Dir(path) != small {
		t.Fatalf("%s, %v", path, err)
	}
	if st, err := os.Stat(path); err != nil || st.Size() != 1<<20 || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if err := errors.Join(removeMemoryFile(path), removeMemoryFile(path), removeMemoryFile("")); err != nil {
		t.Error(err)
	}
	if path, err = createMemoryFile("/nonexistent", big, "x", 1<<20); err != nil || filepath.Dir(path) != big {
		t.Errorf("fall-back: %s, %v", path, err)
	}
	if _, err := createMemoryFile(small, big, "x", 1<<62); err == nil {
		t.Error("found room for 4 EiB")
	}
}

func TestBrokenStateFile(t *testing.T) {
	home := t.TempDir()
	if err := writeFile(filepath.Join(home, "x", stateFile), []byte("{")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(home, "x"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if _, err := Open(home, "../x"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a name with a slash: %v", err)
	}
}

func TestConsoleKeys(t *testing.T) {
	for in, want := range map[string]string{
		"ls\n": "ls\n", "a\x1db": "a", "\x1d": "", "": "",
	} {
		var out strings.Builder
		if err := copyKeys(&out, strings.NewReader(in)); err != nil || out.String() != want {
			t.Errorf("%q: %q, %v", in, out.String(), err)
		}
	}
	broken := errors.New("hung up")
	if err := copyKeys(io.Discard, errReader{broken}); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// fakeTB records what Start says to a test.
type fakeTB struct {
	failed  bool
	logs    []string
	cleanup []func()
}

func (f *fakeTB) Helper()           {}
func (f *fakeTB) Name() string      { return "TestX" }
func (f *fakeTB) Failed() bool      { return f.failed }
func (f *fakeTB) Cleanup(fn func()) { f.cleanup = append(f.cleanup, fn) }
func (f *fakeTB) Logf(format string, args ...any) {
	f.logs = append(f.logs, fmt.Sprintf(format, args...))
}
func (f *fakeTB) Fatalf(format string, args ...any) {
	f.failed = true
	f.Logf(format, args...)
}

func TestStartReportsFailure(t *testing.T) {
	f := &fakeTB{}
	Start(f, Options{Name: "no/slash"})
	for _, fn := range slices.Backward(f.cleanup) {
		fn()
	}
	if !f.failed || !strings.Contains(strings.Join(f.logs, "\n"), `name "no/slash"`) {
		t.Errorf("failed %v, logs %q", f.failed, f.logs)
	}
}

func TestFinishTellsHowToReproduce(t *testing.T) {
	l, o := startFake(t, "never answers", Options{Append: "nokaslr"})
	waitFor(t, "its log", func() bool { return l.Tail() != "" })
	f := &fakeTB{failed: true}
	finish(f, l, o)
	all := strings.Join(f.logs, "\n")
	for _, want := range []string{"fake QEMU, never answers", "nestdbg lab up --append nokaslr", "-name nestdbg-lab-default"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not in %s", want, all)
		}
	}
	if l.process().alive() {
		t.Error("the lab is still running")
	}
}
