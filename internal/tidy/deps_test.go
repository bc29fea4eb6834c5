package tidy

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// debian is a made-up machine for scripts/deps: programs in a directory that is
// all of PATH, a cache with or without the lab's kernel, an apt-get that notes
// what it is asked for.
type debian struct {
	t               *testing.T
	programs, cache string
	aptLog          string
}

// systemTools are what the script itself is made of.
var systemTools = strings.Fields("bash cat env find grep id ldd")

// wanted are programs that the script looks for. Files it looks for are those
// of the machine that runs the test, which had them to get so far.
var wanted = strings.Fields("go qemu-system-x86_64 gdb gcc make readelf crash drgn makedumpfile patchelf kill git")

func newDebian(t *testing.T) *debian {
	d := &debian{t: t, programs: t.TempDir(), cache: t.TempDir()}
	d.aptLog = filepath.Join(d.cache, "apt.log")
	for _, name := range append(systemTools, "busybox") {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(d.programs, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range wanted {
		d.program(name, "exit 0")
	}
	d.program("sudo", `exec "$@"`)
	d.program("apt-cache", "echo Package: linux-image-cloud-amd64")
	d.program("apt-get", `echo "$@" >>`+d.aptLog)
	kernel := filepath.Join(d.cache, "nestdbg/lab/kernels/k")
	if err := os.MkdirAll(kernel, 0o755); err != nil {
		t.Fatal(err)
	}
	d.write(filepath.Join(d.cache, "nestdbg/lab/resolved/linux-image-cloud-amd64"), "kernels/k", 0o644)
	return d
}

func (d *debian) program(name, script string) {
	d.write(filepath.Join(d.programs, name), "#!/usr/bin/env bash\n"+script+"\n", 0o755)
}

func (d *debian) write(path, text string, mode os.FileMode) {
	d.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		d.t.Fatal(err)
	}
}

func (d *debian) remove(name string) {
	d.t.Helper()
	if err := os.Remove(filepath.Join(d.programs, name)); err != nil {
		d.t.Fatal(err)
	}
}

// deps runs the script; apt is what it asked apt-get for.
func (d *debian) deps() (out, apt string, ok bool) {
	cmd := exec.Command("bash", filepath.Join(root, "scripts/deps"))
	cmd.Env = []string{"PATH=" + d.programs, "XDG_CACHE_HOME=" + d.cache}
	b, err := cmd.CombinedOutput()
	asked, _ := os.ReadFile(d.aptLog) // not there if it asked for nothing
	return string(b), string(asked), err == nil
}

func TestDeps(t *testing.T) {
	const update = "-qq -o APT::Update::Error-Mode=any update\n"
	const install = "-qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends "
	for _, c := range []struct {
		name    string
		change  func(*debian)
		out     string // part of what it says; "" for nothing at all
		apt     string
		failure bool
	}{
		{name: "everything is there", change: func(*debian) {}},
		{name: "two are missing", change: func(d *debian) { d.remove("gdb"); d.remove("gcc") },
			out: "deps: apt-get install gdb gcc\n", apt: update + install + "gdb gcc\n"},
		{name: "says why", change: func(d *debian) { d.remove("gdb") },
			out: "gdb is missing: the debugger in front", apt: update + install + "gdb\n"},
		{name: "no network", change: func(d *debian) { d.remove("gdb"); d.program("apt-get", "exit 100") },
			out: "deps: apt-get update failed, is there a network? missing: gdb\n", failure: true},
		{name: "no kernel known", change: func(d *debian) {
			os.RemoveAll(filepath.Join(d.cache, "nestdbg"))
			d.program("apt-cache", "exit 100")
		}, out: "deps: apt-get update\n", apt: update},
		{name: "no kernel, no network", change: func(d *debian) {
			os.RemoveAll(filepath.Join(d.cache, "nestdbg"))
			d.program("apt-cache", "exit 100")
			d.program("apt-get", "exit 100")
		}, out: "the lab may not find its kernel"},
		{name: "install fails", change: func(d *debian) {
			d.remove("gdb")
			d.program("apt-get", `case $* in *install*) exit 100;; esac`)
		}, out: "apt-get install failed; missing: gdb\n", failure: true},
		{name: "no apt", change: func(d *debian) { d.remove("gdb"); d.remove("apt-get") },
			out: "install by hand the equivalents of: gdb\n", failure: true},
		{name: "no go", change: func(d *debian) { d.remove("go") }, out: "no go in the PATH", failure: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDebian(t)
			c.change(d)
			out, apt, ok := d.deps()
			if c.out == "" && out != "" || !strings.Contains(out, c.out) {
				t.Errorf("said %q, want %q", out, c.out)
			}
			if apt != c.apt {
				t.Errorf("asked apt-get for %q, want %q", apt, c.apt)
			}
			if ok == c.failure {
				t.Errorf("success is %v", ok)
			}
		})
	}
}
