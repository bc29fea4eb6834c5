// Package tests tries nestdbg on real nested guests: QEMU, L1 a Linux with KVM,
// L2 a Linux in it. Nothing is skipped here: what cannot run, fails.
//
//	go test ./lab/tests -count=1
//	go test ./lab/tests -count=1 -run Status -keep
//
// With -keep the labs stay up in the person's own state directory, for the next
// run to use ("nestdbg lab list" shows them, "nestdbg lab down NAME" ends one).
package tests

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"nestdbg/internal/session"
	"nestdbg/internal/target"
	"nestdbg/lab"
)

var (
	keep   = flag.Bool("keep", false, "leave the labs up and use them again")
	prefix = flag.String("prefix", "test", "what the names of the labs begin with")
)

// suite is what all tests share. TestMain sets it up. The tests run one after the
// other: there are two processors, and one lab can use both.
var suite struct {
	binary   string // the program under test
	labs     map[string]*sharedMachine
	patterns map[string]*pattern // by lab and guest; see patternOf
	// crashed are the machines of labs that a test ended: no casualties of QEMU.
	crashed map[*lab.Lab][]string
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(runAll(m))
}

// runAll sets up, runs the tests and leaves nothing behind.
func runAll(m *testing.M) int {
	dir, err := os.MkdirTemp("", "nd-") // short, for the paths of sockets
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	suite.binary = filepath.Join(dir, "bin", "nestdbg")
	build := exec.Command("go", "build", "-trimpath", "-o", suite.binary, "nestdbg/cmd/nestdbg")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // the lab runs it as init of its machines
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		os.RemoveAll(dir)
		fmt.Fprintln(os.Stderr, "build nestdbg:", err)
		return 1
	}
	if !*keep {
		os.Setenv("XDG_STATE_HOME", dir)
	}
	undertaker, err := startUndertaker(dir)
	if err != nil {
		os.RemoveAll(dir)
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	suite.labs, suite.patterns, suite.crashed = sharedLabs(), make(map[string]*pattern), make(map[*lab.Lab][]string)
	status := m.Run()
	if err := undertaker(); err != nil {
		fmt.Fprintln(os.Stderr, "end the labs:", err)
		return 1
	}
	return status
}

// startUndertaker starts a process that ends all labs and removes dir as soon as
// this process is gone, however it goes: done, a panic, a timeout, Ctrl-C. The
// function it returns lets it work and waits for it.
func startUndertaker(dir string) (func() error, error) {
	script := `cat; "$1/bin/nestdbg" lab down --all; status=$?; rm -rf "$1"; exit $status`
	if *keep {
		script = `cat; rm -rf "$1"`
	}
	cmd := exec.Command("sh", "-c", script, "undertaker", dir)
	cmd.Stderr = os.Stderr
	// Not in the terminal's process group: Ctrl-C is not for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe() // it ends when the last copy of this end is closed
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() error { return errors.Join(in.Close(), cmd.Wait()) }, nil
}

// sharedMachine is a lab for all tests that want one like it. It is booted for
// the first of them. While no test uses it, it stands still: the others need the
// processors.
type sharedMachine struct {
	options lab.Options

	mu    sync.Mutex
	lab   *lab.Lab // nil: not booted, or lost; guarded by mu
	users int      // guarded by mu
}

// sharedLabs are the labs that tests can ask for, by name.
func sharedLabs() map[string]*sharedMachine {
	out := make(map[string]*sharedMachine)
	for name, o := range map[string]lab.Options{
		// L1 with two CPUs, one VM, KASLR in both.
		"kaslr": {},
		// The same kernel at the same virtual addresses in L1 and in the VM.
		"samekaslr": {Append: "nokaslr", VMAppend: "nokaslr"},
		// RAM with a hole below 4 GiB, two VMs of two CPUs.
		"two": {Memory: 5 << 30, VMs: 2, VMCPUs: 2},
		// KVM in the VM too, and a Linux in that.
		"deep": {Depth: 3},
	} {
		out[name] = newShared(name, o)
	}
	for name, o := range otherKernels {
		out[name] = newShared(name, o)
	}
	return out
}

func newShared(name string, o lab.Options) *sharedMachine {
	o.Name, o.Agent = *prefix+"-"+name, suite.binary
	return &sharedMachine{options: o}
}

// bootShared boots a lab, or finds the one that -keep left.
func bootShared(o lab.Options) (*lab.Lab, error) {
	if *keep {
		if l, err := lab.Open("", o.Name); err == nil && l.Running {
			return l, nil
		}
	}
	for attempt := 1; ; attempt++ {
		begin := time.Now()
		l, err := lab.Up(context.Background(), o)
		var boot *lab.BootError
		if errors.As(err, &boot) {
			err = fmt.Errorf("%w\n%s", err, boot.Tail)
		}
		fmt.Printf("lab %s: %.1f s to boot, %v\n", o.Name, time.Since(begin).Seconds(), err)
		// QEMU loses a boot now and then; see lab.Start.
		if boot == nil || attempt == 3 {
			return l, err
		}
		if err := boot.Lab.Down(context.Background()); err != nil {
			return nil, err
		}
	}
}

// sharedLab is the lab of this name, running: "kaslr", "samekaslr", "two", "deep" or that of
// another kernel, such as "6.12". A
// test leaves it as it was, but for what its guests did meanwhile.
func sharedLab(t testing.TB, name string) *lab.Lab {
	t.Helper()
	s := suite.labs[name]
	if s == nil {
		t.Fatalf("there is no shared lab %q", name)
	}
	l := s.enter(t)
	t.Cleanup(func() { s.leave(t) })
	return l
}

// enter lets a test use the lab, which is booted if need be.
func (s *sharedMachine) enter(t testing.TB) *lab.Lab {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lab == nil {
		l, err := bootShared(s.options)
		if err != nil {
			t.Fatalf("boot lab %s: %v", s.options.Name, err)
		}
		s.lab = l
	}
	if s.users++; s.users == 1 {
		qmpCommand(t, s.lab, "cont")
	}
	return s.lab
}

// endShared ends a lab that no further test wants, unless it is to be kept.
func endShared(t testing.TB, name string) {
	t.Helper()
	s := suite.labs[name]
	s.mu.Lock()
	defer s.mu.Unlock()
	if *keep || s.lab == nil || s.users > 0 {
		return
	}
	if err := s.lab.Down(context.Background()); err != nil {
		t.Errorf("end lab %s: %v", s.lab.Name, err)
	}
	s.lab = nil
}

// leave stops the lab when its last user goes. A lab whose guest died is not for
// others: the next test boots another.
func (s *sharedMachine) leave(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users > 0 {
		return
	}
	if !autopsy(t, s.lab) {
		pause(t, s.lab)
		return
	}
	maps.DeleteFunc(suite.patterns, func(key string, _ *pattern) bool { return strings.HasPrefix(key, s.lab.Name+"/") })
	if err := s.lab.Down(context.Background()); err != nil {
		t.Errorf("end lab %s: %v", s.lab.Name, err)
	}
	s.lab = nil
}

// pause stops a lab's machine at a moment at which that is no risk; see
// session.Peeker.
func pause(t testing.TB, l *lab.Lab) {
	t.Helper()
	live, err := target.Open(context.Background(), fmt.Sprint(l.PID))
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	session.New(live).ExpectStop(context.Background())
	if _, err := live.Pause(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// ownLab boots a lab for one test, which may break it.
func ownLab(t testing.TB, o lab.Options) *lab.Lab {
	t.Helper()
	o.Agent = suite.binary
	l := lab.Start(t, o)
	t.Cleanup(func() {
		if t.Failed() {
			autopsy(t, l)
		}
	})
	return l
}

// askLimit bounds the wait for an agent's answer: nested guests on a busy
// machine take their time.
const askLimit = 90 * time.Second

// ask asks the agent of a machine, or fails the test.
func ask(t testing.TB, l *lab.Lab, machine, request string) string {
	t.Helper()
	// Not t.Context, which is over when Cleanup functions ask.
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	go func() { // who is dead does not answer; that is no reason to wait for all of it
		for ctx.Err() == nil && deadByWord(l) == "" {
			time.Sleep(time.Second)
		}
		time.Sleep(pingLimit) // it may be the other guest
		cancel()
	}()
	begin := time.Now()
	answer, err := l.Ask(ctx, machine, request)
	if err != nil {
		t.Fatalf("%v; the machines' last words:\n%s", err, l.Tail())
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Logf("%s took %.1f s for %q", machine, took.Seconds(), request)
	}
	return string(answer)
}

// keepBusy makes a guest repeat a command until the end of the test. No longer: a
// guest that computes is the one that a stop can cost; see session.Peeker.
func keepBusy(t testing.TB, l *lab.Lab, guest, command string) {
	t.Helper()
	pid := strings.TrimSpace(ask(t, l, guest, "exec (while :; do "+command+"; done) > /dev/null 2>&1 & echo $!"))
	t.Cleanup(func() { ask(t, l, guest, "exec kill -9 "+pid) })
}

// eventually waits until ok is true, or fails the test.
func eventually(t testing.TB, what string, limit time.Duration, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// socketDir is a directory for sockets, whose paths must be short.
func socketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// result is what a command left behind.
type result struct {
	stdout, stderr string
	status         int
}

// commandLimit bounds a command that answers a question.
const commandLimit = 2 * time.Minute

// nestdbg runs the program under test to its end.
func nestdbg(t testing.TB, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, suite.binary, args...)
	var out, errOut lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || ctx.Err() != nil) {
		t.Fatalf("nestdbg %q: %v\n%s%s", args, errors.Join(err, ctx.Err()), &out, &errOut)
	}
	return result{out.String(), errOut.String(), cmd.ProcessState.ExitCode()}
}

// on is nestdbg's arguments for a lab's QEMU.
func on(l *lab.Lab, args ...string) []string {
	return append([]string{"-t", fmt.Sprint(l.PID)}, args...)
}

// must is nestdbg on a lab, which has to succeed and to say nothing on stderr.
func must(t testing.TB, l *lab.Lab, args ...string) string {
	t.Helper()
	r := nestdbg(t, on(l, args...)...)
	if r.status != 0 || r.stderr != "" {
		t.Fatalf("nestdbg %q: status %d, %s", args, r.status, r.stderr)
	}
	return r.stdout
}

// lockedBuffer takes output of a process while a test looks at it.
type lockedBuffer struct {
	mu   sync.Mutex
	text []byte // guarded by mu
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text = append(b.text, p...)
	return len(p), nil
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.text)
}

var _ io.Writer = (*lockedBuffer)(nil)
