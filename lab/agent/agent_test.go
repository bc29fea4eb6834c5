package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nestdbg/lab/wire"
)

func TestInitRolesStayOutOfOtherMachines(t *testing.T) {
	for _, args := range [][]string{nil, {"l1"}, {"l2"}, {"nobody"}} {
		if err := Main(args); err == nil {
			t.Errorf("Main(%q) did not refuse", args)
		}
	}
}

func TestConfigSurvivesTheCommandLine(t *testing.T) {
	for _, c := range []Config{
		{VMs: 1, VMCPUs: 1, VMMemory: 256 << 20},
		{VMs: 0, VMCPUs: 2, VMMemory: 64 << 20, VMAppend: "nokaslr"},
		{VMs: 8, VMCPUs: 1, VMMemory: 1 << 30, VMAppend: "a=b c  d=1,2"},
		{VMs: 4, VMCPUs: 1, VMMemory: 1 << 30, VMAppend: "nokaslr", Depth: 2},
		{VMs: 1, VMCPUs: 1, VMMemory: 1 << 30, Depth: 3},
	} {
		line := "console=ttyS0 panic=-1 quiet nowatchdog rcupdate.rcu_cpu_stall_suppress=1 " + c.CommandLine() + ` other.x="1 2" nokaslr` + "\n"
		got, err := ParseConfig(line)
		if err != nil || got != c {
			t.Errorf("%s gave %+v, %v; want %+v", line, got, err, c)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	for _, line := range []string{
		"", "nestdbg.vms=1", "nestdbg.vms=x nestdbg.vm_memory=1", "nestdbg.vms=99 nestdbg.vm_memory=1048576",
		"nestdbg.vms=-1 nestdbg.vm_memory=1", "nestdbg.vms=5 nestdbg.vm_memory=1 nestdbg.depth=2",
		"nestdbg.vms=0 nestdbg.vm_memory=1 nestdbg.depth=9", "nestdbg.vm_cpus=0 nestdbg.vm_memory=1", "nestdbg.vm_memory=-1",
	} {
		if c, err := ParseConfig(line); err == nil {
			t.Errorf("%q gave %+v", line, c)
		}
	}
}

// The names are in the order of the consoles, of which Linux has eight.
func TestNamesOfADeepLab(t *testing.T) {
	c := Config{Depth: 2}
	if got, want := strings.Join(c.Names(), " "), "vm0 vm1 vm2 vm3 vm0.vm0 vm1.vm0 vm2.vm0 vm3.vm0"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if inner := c.OfVM(); inner.Deeper() || inner.VMs != 1 || !Hosts("quiet "+inner.CommandLine()) {
		t.Errorf("%+v", inner)
	}
	if Hosts("quiet other.nestdbg.vms=1") {
		t.Error("a command line without a configuration has one")
	}
	line := strings.Join(vmCommand(3, Config{VMs: 4, VMCPUs: 1, VMMemory: 1 << 30, VMAppend: "nokaslr", Depth: 2}).Args, "\n")
	for _, want := range []string{
		"socket,id=agent,server=on,wait=off,path=/run/vm3.agent", "socket,id=vm0.console,server=on,wait=off,path=/run/vm3.vm0.console",
		"virtserialport,chardev=vm0.agent,name=nestdbg.vm0", `nestdbg.vms=1 nestdbg.vm_cpus=1 nestdbg.vm_memory=134217728 nestdbg.vm_append="nokaslr" nokaslr`,
	} {
		if !strings.Contains(line, want) {
			t.Errorf("no %q in\n%s", want, line)
		}
	}
}

func TestParseStat(t *testing.T) {
	rest := strings.Repeat(" 7", 34)
	for _, c := range []struct {
		in   string
		want Task
		ok   bool
	}{
		{"1 (init) S 0" + rest + " 0 8", Task{PID: 1, State: "S", Comm: "init"}, true},
		{"7 (a) b (c)) R 3" + rest + " 2 8", Task{PID: 7, PPID: 3, CPU: 2, State: "R", Comm: "a) b (c)"}, true},
		{"9 () Z 1" + rest + " 1", Task{PID: 9, PPID: 1, CPU: 1, State: "Z"}, true},
		{"9 (x) Z 1" + rest, Task{}, false},
		{"x (x) Z 1" + rest + " 1", Task{}, false},
		{"9 (x) Z y" + rest + " 1", Task{}, false},
		{"9 (x) Z 1" + rest + " y", Task{}, false},
		{")(", Task{}, false},
		{"", Task{}, false},
	} {
		got, err := parseStat([]byte(c.in))
		if (err == nil) != c.ok || got != c.want {
			t.Errorf("%q: %+v, %v", c.in, got, err)
		}
	}
}

func TestTasksComeBack(t *testing.T) {
	all, err := listTasks()
	if err != nil {
		t.Fatal(err)
	}
	self := slices.IndexFunc(all, func(t Task) bool { return t.PID == os.Getpid() })
	if self < 0 || all[self].TGID != os.Getpid() || all[self].PPID != os.Getppid() || all[self].Switches == 0 {
		t.Fatalf("own process missing or wrong among %d threads", len(all))
	}
	want := []Task{{1, 1, 0, "S", 0, 0, "a b"}, {2, 1, 0, "R", 3, 1 << 40, ""}, all[self]}
	var text strings.Builder
	for _, task := range want {
		text.WriteString(task.String() + "\n")
	}
	if got, err := ParseTasks([]byte(text.String())); err != nil || !slices.Equal(got, want) {
		t.Fatalf("%q gave %v, %v", text.String(), got, err)
	}
	for _, bad := range []string{"1 1 0 0 0 S\n", "1 x 0 0 0 S a\n", "1 1 0 0 -1 S a\n"} {
		if got, err := ParseTasks([]byte(bad)); err == nil {
			t.Errorf("%q gave %v", bad, got)
		}
	}
}

// TestCommands: the arguments of a process byte for byte, and none of threads of the kernel.
func TestCommands(t *testing.T) {
	out, err := commands()
	if err != nil {
		t.Fatal(err)
	}
	own := fmt.Sprintf("\n%d %x\n", os.Getpid(), strings.Join(os.Args, "\x00")+"\x00")
	if !strings.Contains("\n"+string(out), own) {
		t.Errorf("no line %q in\n%s", own, out)
	}
}

// ask sends one request to a channel and reads the answer.
func ask(t *testing.T, ch io.ReadWriter, id, text string) (string, error) {
	t.Helper()
	line, err := wire.Request{ID: id, Text: text}.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	go ch.Write(line)
	body, err := wire.ReadAnswer(bufio.NewReader(ch), id)
	return string(body), err
}

func TestServe(t *testing.T) {
	here, there := net.Pipe()
	defer here.Close()
	here.SetDeadline(time.Now().Add(10 * time.Second))
	var order []string
	verbs := verbs{
		"echo": simple(func(args string) ([]byte, error) { return []byte(args), nil }),
		"fail": simple(func(string) ([]byte, error) { return nil, errors.New("no luck") }),
		"late": func(string) ([]byte, func(), error) {
			return []byte("first"), func() { order = append(order, "after") }, nil
		},
		"order": simple(func(string) ([]byte, error) { return []byte(strings.Join(order, ",")), nil }),
	}
	ended := make(chan error, 1)
	go func() { ended <- serve(there, verbs) }()
	for i, c := range []struct{ request, want, refused string }{
		{"echo a b", "a b", ""},
		{"fail", "", "no luck"},
		{"nonsense x", "", `unknown request "nonsense"; there are: echo fail late order`},
		{"late", "first", ""},
		{"order", "after", ""},
	} {
		got, err := ask(t, here, "id"+string(rune('a'+i)), c.request)
		var refused *wire.RefusedError
		if c.refused != "" && (!errors.As(err, &refused) || refused.Text != c.refused) {
			t.Errorf("%s: %v, want %q", c.request, err, c.refused)
		}
		if c.refused == "" && (err != nil || got != c.want) {
			t.Errorf("%s: %q, %v; want %q", c.request, got, err, c.want)
		}
	}
	here.Close()
	if err := <-ended; err == nil {
		t.Error("serve ended without an error")
	}
}

func TestPattern(t *testing.T) {
	seen := make(map[uint64]bool)
	for addr := uint64(0x7f0000000000); addr < 0x7f0000000000+4096; addr += 8 {
		seen[PatternWord(addr)] = true
	}
	if len(seen) != 512 {
		t.Errorf("%d different words in a page, want 512", len(seen))
	}
	for _, c := range []struct {
		entry, want uint64
		ok          bool
	}{
		{1<<63 | 1<<61 | 0x1234, 0x1234000, true},
		{0x1234, 0, false},
		{1 << 63, 0, false},
	} {
		if got, err := pagemapPhys(c.entry); got != c.want || (err == nil) != c.ok {
			t.Errorf("%#x: %#x, %v", c.entry, got, err)
		}
	}
}

func TestHugeBytes(t *testing.T) {
	smaps := t.TempDir() + "/smaps"
	text := "1000-2000 rw-p 00000000 00:00 0\nRss: 4 kB\nAnonHugePages:         0 kB\n" +
		"200000-600000 rw-p 00000000 00:00 0 [x]\nAnonHugePages:      4096 kB\nVmFlags: rd\n"
	if err := os.WriteFile(smaps, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		addr, want uint64
		ok         bool
	}{{0x1800, 0, true}, {0x400000, 4 << 20, true}, {0x600000, 0, false}} {
		if got, err := hugeBytes(smaps, c.addr); got != c.want || (err == nil) != c.ok {
			t.Errorf("%#x: %d, %v", c.addr, got, err)
		}
	}
}

func TestOrphansAreReaped(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	c := newChildren()
	// The inner shell becomes ours when the outer one is gone, and ends later.
	out, err := runOutput(c, exec.Command("sh", "-c", "sh -c 'exec sleep 0.05' >/dev/null & echo $!"))
	if err != nil {
		t.Fatal(err)
	}
	orphan := "/proc/" + strings.TrimSpace(out)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(orphan); err != nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s is still there", orphan)
		}
	}
}

func runOutput(c *children, cmd *exec.Cmd) (string, error) {
	var b strings.Builder
	cmd.Stdout = &b
	err := c.run(cmd)
	return b.String(), err
}

func TestExecute(t *testing.T) {
	c := newChildren()
	if err := c.run(exec.Command("false")); err == nil {
		t.Error("exit status 1 was lost")
	}
	if err := c.run(exec.Command("/nonexistent")); err == nil {
		t.Error("a program that is not there was started")
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("7 (a) b (c)) R 3" + strings.Repeat(" 1", 35)))
	f.Add([]byte(")("))
	f.Fuzz(func(t *testing.T, in []byte) {
		if task, err := parseStat(in); err != nil && task != (Task{}) {
			t.Fatalf("both %+v and %v", task, err)
		}
	})
}

func FuzzParseConfig(f *testing.F) {
	f.Add(`nestdbg.vms=1 nestdbg.vm_memory=1048576 nestdbg.vm_append="a b"`)
	f.Fuzz(func(t *testing.T, line string) {
		c, err := ParseConfig(line)
		if err == nil && (c.VMs < 0 || c.VMs > c.MaxVMs() || c.VMCPUs < 1) {
			t.Fatalf("%q gave %+v", line, c)
		}
	})
}
