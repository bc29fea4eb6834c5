package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

// fakeProc is a proc file system of fixtures.
type fakeProc struct {
	t   *testing.T
	dir string
}

func newFakeProc(t *testing.T) fakeProc {
	f := fakeProc{t, t.TempDir()}
	f.write("self/comm", "test\n")
	f.write("sys/kernel", "not a process")
	return f
}

func (f fakeProc) fs() procFS { return procFS(f.dir) }

func (f fakeProc) write(name, text string) {
	f.t.Helper()
	path := filepath.Join(f.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

// process makes a process with a command line and the descriptors from 0 on.
func (f fakeProc) process(pid int, args string, links ...string) {
	f.t.Helper()
	dir := fmt.Sprint(pid)
	f.write(dir+"/cmdline", strings.ReplaceAll(args, " ", "\x00")+"\x00")
	f.write(dir+"/comm", filepath.Base(strings.Fields(args)[0])+"\n")
	f.write(dir+"/net/unix", netUnix)
	f.write(dir+"/net/tcp", netTCP)
	f.link(dir+"/cwd", "/home/user")
	for fd, link := range links {
		f.link(fmt.Sprintf("%s/fd/%d", dir, fd), link)
	}
}

func (f fakeProc) link(name, target string) {
	f.t.Helper()
	path := filepath.Join(f.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		f.t.Fatal(err)
	}
}

const netUnix = `Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01   101 /run/a b/qmp
0000000000000000: 00000003 00000000 00000000 0001 03   102 /run/a b/qmp
0000000000000000: 00000002 00000000 00010000 0001 01   103 gdb
0000000000000000: 00000002 00000000 00010000 0001 01   104 @hidden
0000000000000000: 00000003 00000000 00000000 0001 03   105
0000000000000000: 00000002 00000000 00010000 0001 01   201 /run/other
short line
`

const netTCP = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:04D2 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 301 1 0 100 0 0 10 0
   1: 0100007F:04D2 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 302 1 0 100 0 0 10 0
   2: 0100007F:C350 0100007F:04D2 01 00000000:00000000 00:00000000 00000000     0        0 303 1 0 100 0 0 10 0
   3: 00000000:115C 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 304 1 0 100 0 0 10 0
`

func TestProcesses(t *testing.T) {
	sockets := []string{"socket:[101]", "socket:[103]", "socket:[104]", "socket:[301]", "socket:[304]", "anon_inode:[eventfd]"}
	tests := []struct {
		args      string
		name      string
		qmp, stub string
	}{
		{"qemu-system-x86_64 -qmp unix:/run/other,server", "", "none", "none"}, // QEMU does not listen there
		{"/usr/bin/qemu-system-aarch64 -name guest=one,debug-threads=on -qmp unix:hidden,abstract=on,server -s", "one", "unix:@hidden", "tcp:127.0.0.1:1234"},
		{"qemu-kvm -name two -qmp tcp::4444,server=on -gdb unix:gdb,server=on", "two", "tcp:127.0.0.1:4444", "unix:/home/user/gdb"},
		{"kvm -chardev socket,id=m,path=hidden,abstract=on,server=on -mon m,mode=control -gdb tcp::1234", "", "unix:@hidden", "tcp:127.0.0.1:1234"},
		{"qemu-system-x86_64 -append -qmp -qmp stdio -qmp-pretty tcp:0.0.0.0:4444,server", "", "tcp:127.0.0.1:4444", "none"},
		{"qemu-system-x86_64 -monitor unix:gdb,server -mon chardev=gone,mode=control -S -s -gdb none", "", "none", "none"},
		{"qemu-system-x86_64 -chardev socket,id=m,fd=2,server=on -mon chardev=m,mode=control", "", "unix:@hidden", "none"},
		{"qemu-system-x86_64 -chardev socket,id=m,path=gdb -mon chardev=m,mode=readline", "", "none", "none"},
	}
	for _, tt := range tests {
		f := newFakeProc(t)
		f.process(7, tt.args, sockets...)
		f.process(8, "bash -c qemu-system-x86_64")
		f.write("9/cmdline", "") // a kernel thread
		got, err := f.fs().processes(os.Getuid())
		if err != nil || len(got) != 1 || got[0].PID != 7 {
			t.Errorf("%s: %v, %v", tt.args, got, err)
			continue
		}
		if p := got[0]; p.Name != tt.name || p.QMP.String() != tt.qmp || p.Stub.String() != tt.stub {
			t.Errorf("%s: %v, stub %v", tt.args, p, p.Stub)
		}
	}
}

func TestAmbiguous(t *testing.T) {
	f := newFakeProc(t)
	f.process(12, "qemu-system-x86_64 -name one -qmp tcp::4444,server=on", "socket:[304]")
	f.process(5, "qemu-system-x86_64")
	all, err := f.fs().processes(0)
	if err != nil {
		t.Fatal(err)
	}
	want := "2 QEMU processes run here, choose one with -t, by its PID or QMP socket:\n" +
		"  PID 5  no QMP socket\n  PID 12  name \"one\"  QMP tcp:127.0.0.1:4444"
	if got := (&AmbiguousError{all}).Error(); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if _, err := all[0].target(); err == nil || !strings.Contains(err.Error(), "start it with -qmp unix:PATH,server=on,wait=off") {
		t.Errorf("target: %v", err)
	}
	if others, err := f.fs().processes(os.Getuid() + 1); err != nil || len(others) != 0 {
		t.Errorf("of another user: %v, %v", others, err)
	}
}

func TestTCPClients(t *testing.T) {
	f := newFakeProc(t)
	f.process(7, "qemu-system-x86_64", "socket:[301]", "socket:[302]")
	f.process(8, "gdb", "socket:[303]")
	a := Address{"tcp", "127.0.0.1:1234"}
	if got := f.fs().holders(7, a, 0); !reflect.DeepEqual(got, []Holder{{8, "gdb"}}) {
		t.Errorf("holders %v", got)
	}
	if got := f.fs().holders(7, a, 303); len(got) != 0 {
		t.Errorf("holders besides us %v", got)
	}
	if got := f.fs().holders(7, Address{"tcp", "127.0.0.1:4444"}, 0); len(got) != 0 {
		t.Errorf("holders of another port %v", got)
	}
	if got := f.fs().holders(99, a, 0); len(got) != 0 {
		t.Errorf("holders of a process that is not there %v", got)
	}
}

// TestUnixPeers compares what the kernel tells with a connection that we know.
func TestUnixPeers(t *testing.T) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	var inodes [2]uint64
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		inodes[i] = inodeOf(c)
	}
	peers, err := unixPeers()
	if err != nil || peers[inodes[0]] != inodes[1] || peers[inodes[1]] != inodes[0] {
		t.Errorf("sockets %v have the peers %v and %v, %v", inodes, peers[inodes[0]], peers[inodes[1]], err)
	}
}

func TestParseMaps(t *testing.T) {
	const text = `7f0000000000-7f0000001000 r--p 00000000 fd:01 1234   /usr/lib/a b.so
7f0000001000-7f0000003000 rw-s 00002000 00:1b 2      /dev/shm/x (deleted)
7f0000003000-7f0000004000 rw-s 00004000 00:1b 2      /dev/shm/x (deleted)
7f0000004000-7f0000005000 rw-s 00005000 00:1b 3      /dev/shm/y
7f0000006000-7f0000007000 rw-p 00000000 00:00 0
7f0000007000-7f0000008000 rw-p 00000000 00:00 0      [heap]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0      [vsyscall]
`
	maps, err := parseMaps(strings.NewReader(text))
	if err != nil || len(maps) != 7 {
		t.Fatalf("%d, %v", len(maps), err)
	}
	if m := maps[0]; m.path != "/usr/lib/a b.so" || m.shared || m.dev != 0xfd01 || m.inode != 1234 || m.name != "7f0000000000-7f0000001000" {
		t.Errorf("%+v", m)
	}
	tests := []struct {
		addr, size uint64
		want       string // offset, inode; "" for an error
	}{
		{0x7f0000001000, 0x3000, "0x2000 2"}, // split by the kernel
		{0x7f0000002800, 0x1000, "0x3800 2"},
		{0x7f0000001000, 0x4000, ""}, // runs into another file
		{0x7f0000006000, 0x2000, "0x0 0"},
		{0x7f0000005000, 0x1000, ""}, // a hole
		{0x7f0000007000, 0x2000, ""}, // ends in a hole
		{0x1000, 0x1000, ""},
	}
	for _, tt := range tests {
		m, err := spanAt(maps, tt.addr, tt.size)
		got := ""
		if err == nil {
			got = fmt.Sprintf("%#x %d", m.offset, m.inode)
		}
		if got != tt.want || err == nil && (m.start != tt.addr || m.end != tt.addr+tt.size) {
			t.Errorf("%#x+%#x: %+v, %v", tt.addr, tt.size, m, err)
		}
	}
	for _, bad := range []string{"x", "1-2 rw-p 0 0:0", "2-1 rw-p 00000000 00:00 0", "1-2 rw 00000000 00:00 0", "1-g rw-p 00000000 00:00 0"} {
		if _, err := parseMaps(strings.NewReader(bad + "\n")); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}

func TestParseOpts(t *testing.T) {
	tests := map[string]map[string]string{
		"unix:/a,,b=c,server,nowait": {"first": "unix:/a,b=c", "server": "on", "wait": "off"},
		"guest=x,debug-threads=on":   {"guest": "x", "debug-threads": "on"},
		"q35":                        {"first": "q35"},
		"":                           {"first": ""},
		"a,b=,c=d=e":                 {"first": "a", "b": "", "c": "d=e"},
	}
	for in, want := range tests {
		if got := parseOpts(in, "first"); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
}

func TestAccel(t *testing.T) {
	for in, want := range map[string]string{
		"":                               "tcg",
		"-accel kvm":                     "kvm",
		"-accel tcg,thread=multi":        "tcg",
		"-machine q35,accel=kvm:tcg":     "kvm:tcg",
		"-M accel=qtest":                 "qtest",
		"-append accel -kernel -accel x": "tcg",
	} {
		if got := parseOptions(strings.Fields(in)).accel(); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func FuzzParseMaps(f *testing.F) {
	f.Add("7f0000001000-7f0000003000 rw-s 00002000 00:1b 2      /dev/shm/x (deleted)\n", uint64(0x7f0000001000), uint64(0x1000))
	f.Add("0-ffffffffffffffff rw-p 00000000 00:00 0\n", uint64(1), uint64(1<<63))
	f.Fuzz(func(t *testing.T, text string, addr, size uint64) {
		maps, err := parseMaps(strings.NewReader(text))
		if err != nil {
			return
		}
		if m, err := spanAt(maps, addr, size); err == nil && (m.start != addr || m.end != addr+size) {
			t.Errorf("asked for %#x+%#x, got %+v", addr, size, m)
		}
	})
}

func FuzzUnixDiag(f *testing.F) {
	f.Add(diagRequest(1, showPeer)) // TCP_ESTABLISHED
	f.Fuzz(func(t *testing.T, b []byte) {
		parseUnixDiag(b, attrPeer, map[uint64]uint64{})
	})
}

func FuzzSockets(f *testing.F) {
	f.Add(netUnix)
	f.Add(netTCP)
	f.Fuzz(func(t *testing.T, text string) {
		parseUnixSockets(strings.NewReader(text))
		parseTCPSockets(strings.NewReader(text))
	})
}

// TestOpenMapped opens a file of this process as if QEMU had it mapped.
func TestOpenMapped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ram")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	st := fi.Sys().(*syscall.Stat_t)
	through := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
	check := func(name string, m mapping, want string) {
		t.Helper()
		got, err := proc.openMapped(os.Getpid(), m)
		if err == nil {
			got.f.Close()
		}
		if got.path != want {
			t.Errorf("%s: %q, %v; want %q", name, got.path, err, want)
		}
	}
	same := mapping{dev: st.Dev, inode: st.Ino, path: path, name: "0-1"}
	check("by path", same, path)
	other := same
	other.dev++
	check("another device", other, through)
	if err := os.Rename(path, path+"2"); err != nil {
		t.Fatal(err)
	}
	check("renamed since", same, "")
	same.path += "2"
	check("renamed", same, path+"2")
	if err := os.Remove(path + "2"); err != nil {
		t.Fatal(err)
	}
	same.path += " (deleted)"
	check("deleted", same, through)
	same.inode++
	check("another file of that name", same, "")
}

// A socket of somebody else, relative to a directory that may not be looked up.
func TestSocketOfSomebodyElse(t *testing.T) {
	_, err := Process{PID: 7, QMP: Address{"unix", "qmp"}}.target()
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "as root") {
		t.Errorf("error %v", err)
	}
}
