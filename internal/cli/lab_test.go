package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nestdbg/lab"
)

// runLab runs "nestdbg lab ARGS" for a person who has no labs but those in the
// directory that is returned.
func runLab(t *testing.T, prepare func(home string), args ...string) (status int, out, errOut string) {
	t.Helper()
	state := t.TempDir()
	t.Setenv("XDG_STATE_HOME", state)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	home := filepath.Join(state, "nestdbg/lab")
	if err := os.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	if prepare != nil {
		prepare(home)
	}
	var o, e bytes.Buffer
	status = Run(t.Context(), append([]string{"lab"}, args...), strings.NewReader(""), &o, &e)
	return status, o.String(), e.String()
}

func TestLabErrors(t *testing.T) {
	for _, c := range []struct {
		args   string
		status int
		want   string
	}{
		{"up --vms 99", exitUsage, "at most 8"},
		{"up --memory 1T", exitUsage, "write 512M or 2G"},
		{"up --memory 256M", exitUsage, "give --memory 704M"},
		{"up --name a/b", exitUsage, "name"},
		{"up --l1-kernel ./no/such", exitUsage, "no such file"},
		{"up --l1-kernel no/such.deb", exitUsage, "no such file"},
		{"up --l1-kernel no-such-package", exitUsage, "no package"},
		{"down", exitUsage, "nestdbg lab up"},
		{"down x --all", exitUsage, "either"},
		{"console x vm0", exitUsage, "not found"},
		{"symbols", exitUsage, "not found"},
		{"agent l2", exitFailed, "init of a lab machine only"},
		{"agent l1", exitFailed, "init of a lab machine only"},
	} {
		status, out, errOut := runLab(t, nil, strings.Fields(c.args)...)
		if status != c.status || out != "" || !strings.Contains(errOut, c.want) {
			t.Errorf("lab %s: status %d, %q, %q; want status %d and %q",
				c.args, status, out, errOut, c.status, c.want)
		}
		if strings.Count(strings.TrimSpace(errOut), "\n") > 0 {
			t.Errorf("lab %s: the error has more than a line: %q", c.args, errOut)
		}
	}
}

// TestLabOfAnother: a lab that is there already, and a machine that a lab does not have.
func TestLabOfAnother(t *testing.T) {
	dead := func(home string) {
		dir := filepath.Join(home, "dead")
		b, err := json.Marshal(lab.Lab{Name: "dead", Dir: dir, Machines: []lab.Machine{{Name: "l1"}, {Name: "vm0"}}})
		if err == nil {
			err = os.Mkdir(dir, 0o700)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "lab.json"), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args   string
		status int
		want   string
	}{
		{"up --name dead", exitUsage, "nestdbg: lab dead is dead but still there: first nestdbg lab down dead\n"},
		{"console dead vm7 --command ping", exitUsage, "nestdbg: machine \"vm7\": not found in lab dead: there are l1, vm0\n"},
		{"console dead vm99 --command ping", exitUsage, "nestdbg: machine \"vm99\": not found: there are l1, vm0, vm1, ..., vm0.vm0, ...\n"},
		{"console dead vm0 --command ping", exitFailed, "nestdbg: ask vm0: lab dead is not running: nestdbg lab down dead; nestdbg lab up\n"},
	} {
		status, out, errOut := runLab(t, dead, strings.Fields(c.args)...)
		if status != c.status || out != "" || errOut != c.want {
			t.Errorf("lab %s: status %d, %q, %q; want %d, %q", c.args, status, out, errOut, c.status, c.want)
		}
	}
}

func TestLabListAndDownOfTheIncomplete(t *testing.T) {
	half := func(home string) {
		if err := os.Mkdir(filepath.Join(home, "half"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	status, out, _ := runLab(t, half, "list")
	if status != exitDone || !strings.Contains(out, "half  incomplete") {
		t.Errorf("list: %d, %q", status, out)
	}
	if status, out, _ := runLab(t, nil, "list", "--json"); status != exitDone || out != "[]\n" {
		t.Errorf("list --json of nothing: %d, %q", status, out)
	}
	var home string
	status, _, errOut := runLab(t, func(h string) { home = h; half(h) }, "down", "--all")
	if left, _ := os.ReadDir(home); status != exitDone || len(left) != 0 {
		t.Errorf("down --all: %d, %q, left %v", status, errOut, left)
	}
	status, _, errOut = runLab(t, half, "down", "other")
	if status != exitUsage || !strings.Contains(errOut, "there are: half") {
		t.Errorf("down other: %d, %q", status, errOut)
	}
}

func TestSplitMachine(t *testing.T) {
	for _, c := range []struct{ args, machine, names string }{
		{"", "vm0", ""},
		{"l1", "l1", ""},
		{"vm3", "vm3", ""},
		{"mine", "vm0", "mine"},
		{"mine vm1", "vm1", "mine"},
		{"vm1 vm2", "vm2", "vm1"},
	} {
		machine, names := splitMachine(strings.Fields(c.args))
		if machine != c.machine || strings.Join(names, " ") != c.names {
			t.Errorf("%q: %s, %q", c.args, machine, names)
		}
	}
}

func TestPrintLab(t *testing.T) {
	l := &lab.Lab{Name: "x", PID: 7, Dir: "/d", Machines: []lab.Machine{
		{Name: "l1", Release: "6.1.0", BootSeconds: 7.04},
		{Name: "vm0", Kernel: lab.Kernel{Release: "6.12"}},
	}}
	want := "lab x is up: QEMU 7, /d\n" +
		"l1   Linux 6.1.0  userspace after 7.0 s\n" +
		"vm0  booting Linux 6.12\n"
	var out bytes.Buffer
	if err := printLab(&out, l); err != nil || out.String() != want {
		t.Errorf("got %q, %v", out.String(), err)
	}
}
