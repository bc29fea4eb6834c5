package tests

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// checkRefused checks that a command was answered like wrong input: one line on
// stderr that holds all of the words, nothing on stdout, exit status 2.
func checkRefused(t testing.TB, r result, words ...string) {
	t.Helper()
	line := strings.TrimSuffix(r.stderr, "\n")
	ok := r.status == 2 && r.stdout == "" && line != "" && !strings.Contains(line, "\n")
	for _, w := range words {
		ok = ok && strings.Contains(line, w)
	}
	if !ok {
		t.Errorf("status %d, stdout %.200q, stderr %q; want status 2 and a line with %q", r.status, r.stdout, r.stderr, words)
	}
}

// TestWrongInput asks for what cannot be, of a lab that is there.
func TestWrongInput(t *testing.T) {
	l := sharedLab(t, "kaslr")
	freeze(t, l)
	for _, c := range []struct {
		args  string
		words []string // of the answer
	}{
		{"regs -m vm7", []string{`"vm7"`, "l1", "vm0"}},
		{"vtop -m l2 0", []string{`"l2"`, "l1", "vm0"}},
		{"x 0x10", []string{"0x10", "not present", "level"}},
		{"x 0xdead000000000000", []string{"0xdead000000000000", "canonical"}},
		{"x pa:0xfffffff000000", []string{"0xfffffff000000"}},
		{"x -m l1 pa:0xfffffff000000", []string{"0xfffffff000000", "RAM"}},
		{"write 0x10 00", []string{"0x10", "not present"}},
		{"write _text 0", []string{"hexadecimal"}},
		{"write _text 0x90", []string{"hexadecimal"}},
		{"write _text", []string{"write"}},
		{"x/16q _text", []string{"16q", "format"}},
		{"x/0x _text", []string{"count"}},
		{"x/99999999gx _text", []string{"at most"}},
		{"x", []string{"ADDRESS"}},
		{"x no_such_symbol", []string{"no_such_symbol", "vm0"}},
		{"x _text+abc", []string{"abc"}},
		{"x $nope", []string{"nope"}},
		{"x --cpu 9 _text", []string{"CPU 9"}},
		{"vtop", []string{"an address"}},
		{"vtop 1 2", []string{"an address"}},
		{"maps --stage 3", []string{"--stage", "3"}},
		{"maps -m l1 --stage 2", []string{"second stage"}},
		{"status vm0", []string{"no arguments"}},
		{"statsu", []string{"statsu", "--help"}},
		{"status --jsno", []string{"--jsno"}},
		{"regs --cpu x", []string{"--cpu"}},
		{"serve --listen nowhere", []string{"nowhere", "unix:PATH"}},
		{"serve --listen 0.0.0.0:0", []string{"0.0.0.0:0", "--allow-remote"}},
		{"serve --listen :0", []string{"--allow-remote"}},
		{"serve --listen [::]:0", []string{"--allow-remote"}},
		{"serve --listen unix:/no/such/dir/gdb", []string{"/no/such/dir/gdb"}},
		{"gdb --gdb /no/such/gdb", []string{"/no/such/gdb", "install gdb"}},
	} {
		t.Run(c.args, func(t *testing.T) { checkRefused(t, nestdbg(t, on(l, strings.Fields(c.args)...)...), c.words...) })
	}
	if got := runState(t, l); got != "paused" {
		t.Errorf("the machine is %s, it was paused", got)
	}
}

// TestUnmappedAddressShowsTheWalk: where the answer is a walk, what there is of it
// is shown, and the exit status says that it leads nowhere.
func TestUnmappedAddressShowsTheWalk(t *testing.T) {
	l := sharedLab(t, "kaslr")
	freeze(t, l)
	for where, stage := range map[string]string{"0x10": "stage 1", "pa:0xfe000000": "stage 2"} {
		r := nestdbg(t, on(l, "vtop", where)...)
		if r.status != 2 || !strings.Contains(r.stdout+r.stderr, stage) || !strings.Contains(r.stdout+r.stderr, "not present") {
			t.Errorf("vtop %s: %+v", where, r)
		}
		r = nestdbg(t, on(l, "vtop", "--json", where)...)
		v := decode[vtopReport](t, r.stdout)
		if r.status != 2 || !strings.Contains(v.Fault, stage) || !strings.Contains(v.Fault, "level") || len(v.Steps) == 0 ||
			v.FileOffset != nil {
			t.Errorf("vtop --json %s: status %d, %+v", where, r.status, v)
		}
	}
}

// TestWrongTarget names what is no QEMU, or one that cannot be asked.
func TestWrongTarget(t *testing.T) {
	l := sharedLab(t, "kaslr")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mute := muteQEMU(t)
	for _, c := range []struct {
		target string
		words  []string
	}{
		{fmt.Sprint(os.Getpid()), []string{fmt.Sprint(os.Getpid()), "tests.test"}},
		{"4194305", []string{"no process 4194305"}},
		{"/no/such/socket", []string{"/no/such/socket"}},
		{file, []string{file, "it is empty", "no memory of a machine"}},
		{"example.com:4444", []string{"not on this machine"}},
		{fmt.Sprint(mute), []string{fmt.Sprint(mute), "-qmp unix:PATH"}},
	} {
		t.Run(c.target, func(t *testing.T) { checkRefused(t, nestdbg(t, "-t", c.target, "status"), c.words...) })
	}
	// Two QEMUs, and nobody says which: all are listed, none is taken.
	r := nestdbg(t, "status")
	for _, pid := range []int{l.PID, mute} {
		if r.status != 2 || r.stdout != "" || !strings.Contains(r.stderr, fmt.Sprint(pid)) || !strings.Contains(r.stderr, "-t") {
			t.Errorf("several QEMUs: %+v; want status 2 and %d in the list", r, pid)
		}
	}
}

// muteQEMU starts a QEMU without QMP and returns its PID.
func muteQEMU(t testing.TB) int {
	t.Helper()
	cmd := exec.Command("qemu-system-x86_64", "-M", "none", "-display", "none", "-nodefaults")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	eventually(t, "QEMU is there", 10*time.Second, func() bool {
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", cmd.Process.Pid))
		return strings.Contains(exe, "qemu-system")
	})
	return cmd.Process.Pid
}

// TestNoPermission runs nestdbg as somebody who may not touch this QEMU.
func TestNoPermission(t *testing.T) {
	l := sharedLab(t, "kaslr")
	const nobody = 65534
	dir := socketDir(t)
	binary := filepath.Join(dir, "nestdbg")
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(suite.binary)
	if err == nil {
		err = os.WriteFile(binary, program, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, on(l, "status")...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	var out, errOut lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatalf("run as nobody (make test needs root): %v", err)
	}
	checkRefused(t, result{out.String(), errOut.String(), cmd.ProcessState.ExitCode()}, "permission", "root")
}

// TestTakenQMPSocket: QEMU serves one client of the socket at a time; the others
// are told who that is.
func TestTakenQMPSocket(t *testing.T) {
	l := sharedLab(t, "kaslr")
	conn := holdQMP(t, l)
	defer conn.Close()
	greeting := make([]byte, 4096)
	if _, err := conn.Read(greeting); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	r := nestdbg(t, on(l, "status")...)
	checkRefused(t, r, l.QMPPath, fmt.Sprint(os.Getpid()), "tests.test")
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("it took %v to say so", took)
	}
	conn.Close()
	if r := nestdbg(t, on(l, "status")...); r.status != 0 {
		t.Errorf("the socket is free again, and status says %q", r.stderr)
	}
}

// TestListens checks where serve listens: a private unix socket, a named one, TCP
// on this machine.
func TestListens(t *testing.T) {
	l := sharedLab(t, "kaslr")
	s := serve(t, l)
	for path, mode := range map[string]os.FileMode{s.addr: 0o600, filepath.Dir(s.addr): 0o700} {
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: mode %v, %v, want %v", path, st.Mode(), err, mode)
		}
	}
	s.signal(os.Interrupt)
	if status := s.waitExit(10 * time.Second); status != 0 {
		t.Errorf("serve ended with %d", status)
	}
	if _, err := os.Stat(filepath.Dir(s.addr)); !os.IsNotExist(err) {
		t.Errorf("%s is left behind: %v", filepath.Dir(s.addr), err)
	}
	path := filepath.Join(socketDir(t), "gdb")
	if s := serve(t, l, "--listen", "unix:"+path); s.addr != path {
		t.Errorf("listens on %s, want %s", s.addr, path)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer free.Close()
	checkRefused(t, nestdbg(t, on(l, "serve", "--listen", free.Addr().String())...), free.Addr().String(), "in use")
	tcp := serve(t, l, "--listen", "127.0.0.1:0")
	c := connect(t, tcp.addr)
	c.attach(1)
	if _, err := c.conn.Write([]byte("$k#6b")); err != nil && err != io.EOF {
		t.Error(err)
	}
}
