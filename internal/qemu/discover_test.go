package qemu

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestFindSpec names one QEMU in all the ways there are.
func TestFindSpec(t *testing.T) {
	t.Parallel()
	port := freePort()
	q := start(t, "-M", "none", "-name", "a,,b", "-qmp", "tcp:localhost:"+port+",server=on,wait=off")
	pid := q.cmd.Process.Pid
	here, _ := os.Getwd()
	relative, err := filepath.Rel(here, q.qmp)
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(q.qmp, link); err != nil {
		t.Fatal(err)
	}
	for _, spec := range []string{fmt.Sprint(pid), q.qmp, relative, link, "127.0.0.1:" + port, ":" + port, "localhost:" + port} {
		target, err := Find(deadline(t, 5*time.Second), spec)
		if err != nil || target.PID != pid || target.Name != "a,b" {
			t.Errorf("%q: %+v, %v", spec, target, err)
		}
	}
	gone := exec.Command("true")
	gone.Run()
	for _, spec := range []string{
		"1", fmt.Sprint(gone.Process.Pid), "/nowhere/qmp", q.dir, "192.0.2.1:4444", "nonsense", "@nobody",
	} {
		if target, err := Find(deadline(t, 5*time.Second), spec); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %+v, %v", spec, target, err)
		}
	}
}

// TestFindInheritedSocket opens the QMP socket as libvirt does it: QEMU's parent
// binds it and hands it down.
func TestFindInheritedSocket(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "qmp"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	q := startWith(t, []string{"-M", "q35", "-m", "32M",
		"-chardev", "socket,id=mon0,fd=3,server=on,wait=off", "-mon", "chardev=mon0,id=m,mode=control"}, []*os.File{f})
	for _, spec := range []string{fmt.Sprint(q.cmd.Process.Pid), filepath.Join(dir, "qmp")} {
		target, err := Find(deadline(t, 5*time.Second), spec)
		if err != nil || target.PID != q.cmd.Process.Pid || target.QMP.Addr != filepath.Join(dir, "qmp") {
			t.Errorf("%s: %+v, %v", spec, target, err)
		}
	}
	q.open(t)
}
