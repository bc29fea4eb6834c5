package gdbserver_test

import (
	"bufio"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"nestdbg/internal/gdbserver"
	"nestdbg/internal/gdbserver/gdbservertest"
)

// These tests run the gdb that is installed against toy machines.

// tool finds a program that the tests cannot do without.
func tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("this test needs %s in the PATH: %v", name, err)
	}
	return path
}

// assemble makes an ELF file of assembler source, relocatable or linked like a
// kernel: ET_EXEC, at the address of x86-64's kernel text.
func assemble(t *testing.T, name, source string, relocatable bool) string {
	t.Helper()
	dir := t.TempDir()
	in, out := filepath.Join(dir, name+".S"), filepath.Join(dir, name)
	if err := os.WriteFile(in, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-g", "-o", out, in}
	if relocatable {
		args = append(args, "-c")
	} else {
		args = append(args, "-nostdlib", "-static", "-no-pie", "-Wl,--build-id,-z,noexecstack,-Ttext=0xffffffff81000000,-e,_text")
	}
	if b, err := exec.Command(tool(t, "gcc"), args...).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, b)
	}
	return out
}

// boot makes a machine that runs the kernel in file, moved by slide.
func boot(t *testing.T, pid int, file string, slide uint64) *gdbservertest.Machine {
	t.Helper()
	f, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m := gdbservertest.NewMachine(pid, 1, f.Entry+slide)
	m.File, m.SlideBy = file, slide
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		data := make([]byte, p.Memsz)
		if _, err := io.ReadFull(p.Open(), data[:p.Filesz]); err != nil {
			t.Fatal(err)
		}
		m.Memory = append(m.Memory, gdbservertest.Segment{Base: p.Vaddr + slide, Data: data})
		if m.Text == 0 {
			m.Text = p.Vaddr + slide
		}
	}
	return m
}

// load puts a relocatable file's allocated sections into a machine, from base on.
func load(t *testing.T, m *gdbservertest.Machine, file string, base uint64) {
	t.Helper()
	f, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l := gdbserver.Library{Path: file}
	for _, s := range f.Sections {
		if s.Flags&elf.SHF_ALLOC != 0 {
			l.Sections = append(l.Sections, base)
			base += 0x1000
		}
	}
	m.Libraries = append(m.Libraries, l)
}

const (
	kernel1 = `
	.globl _text, work1, shared
	.type work1, @function
	.type shared, @function
	_text:	call work1
		call shared
		jmp _text
	work1:	nop
		nop
		ret
	.size work1, .-work1
	shared:	nop
		ret
	.size shared, .-shared
	.data
	.globl counter
	counter: .quad 0x1111
	`
	kernel2 = `
	.globl _text, work2, shared
	.type work2, @function
	.type shared, @function
	_text:	nop
		call shared
		call work2
		jmp _text
	shared:	nop
		nop
		ret
	.size shared, .-shared
	work2:	nop
		ret
	.size work2, .-work2
	.data
	.globl counter
	counter: .quad 0x2222
	`
	module = `
	.globl module_function
	.type module_function, @function
	module_function: nop
		ret
	.size module_function, .-module_function
	.data
	.globl module_data
	module_data: .quad 1
	`
)

// serveSocket serves f on a new socket, one client after the other, until the test
// ends.
func serveSocket(t testing.TB, target gdbserver.Target) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "gdb")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if err := gdbserver.Serve(ctx, conn, target, gdbserver.Options{}); err != nil && ctx.Err() == nil {
				t.Errorf("serve: %v", err)
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		l.Close()
		<-done
	})
	return path
}

// gdb is a running gdb that reads its commands from a pipe.
type gdb struct {
	t     testing.TB
	cmd   *exec.Cmd
	in    io.Writer
	lines chan string
	count int
}

// startGDB runs gdb with the settings of an init script as nestdbg writes it.
func startGDB(t testing.TB) *gdb {
	t.Helper()
	g := &gdb{t: t, cmd: exec.Command(tool(t, "gdb"), "-nx", "-q"), lines: make(chan string, 1000)}
	g.cmd.Env = append(os.Environ(), "TERM=dumb", "HOME="+t.TempDir())
	in, err := g.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	g.in, g.cmd.Stderr = in, g.cmd.Stdout
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(g.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			g.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		g.cmd.Process.Kill()
		in.Close()
		for range g.lines { // until gdb is gone
		}
		<-read
		g.cmd.Wait()
	})
	for _, c := range []string{
		"set confirm off", "set pagination off", "set width 0", "set height 0", "set debuginfod enabled off",
		"set remotetimeout 10", "set auto-connect-native-target off", "set schedule-multiple on", "set sysroot",
	} {
		g.do(c)
	}
	return g
}

// do runs one command and returns what gdb prints for it.
func (g *gdb) do(command string) string {
	g.t.Helper()
	return g.finish(g.begin(command))
}

// begin sends a command without waiting; it returns the line that marks its end.
func (g *gdb) begin(command string) (mark string) {
	g.t.Helper()
	g.count++
	mark = fmt.Sprintf("---%d---", g.count)
	if _, err := fmt.Fprintf(g.in, "%s\necho \\n%s\\n\n", command, mark); err != nil {
		g.t.Fatalf("gdb does not take %q: %v", command, err)
	}
	return mark
}

func (g *gdb) finish(mark string) string {
	g.t.Helper()
	var out strings.Builder
	deadline := time.After(20 * time.Second)
	for {
		select {
		case line, ok := <-g.lines:
			if !ok {
				g.t.Fatalf("gdb ended before %s:\n%s", mark, out.String())
			}
			line = strings.ReplaceAll(line, "(gdb) ", "")
			if line == mark {
				return out.String()
			}
			out.WriteString(line + "\n")
		case <-deadline:
			g.t.Fatalf("no %s from gdb:\n%s", mark, out.String())
		}
	}
}

// want runs a command and fails unless the output matches all patterns.
func (g *gdb) want(command string, patterns ...string) string {
	g.t.Helper()
	out := g.do(command)
	for _, p := range patterns {
		if !regexp.MustCompile(p).MatchString(out) {
			g.t.Errorf("(gdb) %s\n%swant %s", command, out, p)
		}
	}
	return out
}

const (
	slide1 = 0x0a000000
	slide2 = 0x1c000000
)

// toyTower is two machines with kernels of their own, and a socket that serves them.
func toyTower(t *testing.T) (*gdbservertest.Fake, string) {
	t.Helper()
	f := gdbservertest.New(
		boot(t, 1, assemble(t, "vmlinux1", kernel1, false), slide1),
		boot(t, 2, assemble(t, "vmlinux2", kernel2, false), slide2))
	// One file, but two names: see gdbserver.Library.
	ko := assemble(t, "toy.ko", module, true)
	if err := os.Symlink(ko, ko+".2"); err != nil {
		t.Fatal(err)
	}
	load(t, f.Machines[1], ko, 0xffffffffc0000000)
	load(t, f.Machines[2], ko+".2", 0xffffffffc0100000)
	return f, serveSocket(t, f.Target())
}

// attachAll is what the init script does.
func (g *gdb) attachAll(socket string) {
	g.t.Helper()
	g.want("target extended-remote "+socket, "^Remote debugging using")
	g.want("attach 1", "Attaching to")
	g.do("add-inferior")
	g.do("inferior 2")
	g.want("attach 2", "Attaching to")
}

// waitFor waits until the condition holds; it is called under the fake's lock.
func waitFor(t *testing.T, f *gdbservertest.Fake, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		f.Lock()
		ok := condition()
		calls := strings.Join(f.Calls[max(0, len(f.Calls)-10):], "|")
		f.Unlock()
		if ok {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("it does not happen; last calls: %s", calls)
		}
	}
}
