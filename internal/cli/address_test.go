package cli

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/session"
	"nestdbg/internal/target"
)

// opened is an invocation whose target is open, and its output.
func opened(t *testing.T) (*app, *bytes.Buffer) {
	t.Helper()
	w := nestedtest.New()
	s := session.New(nestedtest.NewStill(w, w.Host(0, nestedtest.Text+0x20, nestedtest.Text+0x100)))
	if _, err := s.Look(t.Context(), session.Full); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	return &app{in: strings.NewReader(""), out: &out, errOut: io.Discard, session: s}, &out
}

func TestResolve(t *testing.T) {
	a, _ := opened(t)
	m, err := a.session.Machine("l1")
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]address{
		"0x1f": {false, 0x1f}, "1f": {false, 0x1f}, "ffffffff81000000": {false, nestedtest.Text},
		"pa:0x1000": {true, 0x1000}, "va:10": {false, 0x10}, "pa:10+16": {true, 0x20}, "0x10-0x8": {false, 8},
		"0x10-0x11": {false, ^uint64(0)}, "0xffffffffffffffff+1": {false, 0},
		"$pc": {false, nestedtest.Text + 0x20}, "$rip+4": {false, nestedtest.Text + 0x24},
		"$sp-0x100": {false, nestedtest.Text}, "pa:$vm_hsave": {true, 0x206000},
	} {
		got, err := a.resolve(m, m.CPUs[0], text)
		if strings.HasPrefix(text, "pa:$") && err == nil {
			want.value = got.value // where the page is does not matter
		}
		if got != want || err != nil {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		"": "no number", "face": "no kernel", "0xzz": "no kernel", "$nope": "no register", "$rbx": "not known",
		"0x10+zz": `"zz" is no number`, "10000000000000000": "no kernel", "pa:": "no number", "schedule+0x10": "no kernel",
	} {
		_, err := a.resolve(m, m.CPUs[0], text)
		if err == nil || !isUsage(err) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestSplitExamine(t *testing.T) {
	for in, want := range map[string]string{
		"x/16gx 0x1000":      "x /16gx 0x1000",
		"-m l1 x/s banner":   "-m l1 x /s banner",
		"x/ 0x1000":          "x / 0x1000",
		"x 0x1000":           "x 0x1000",
		"-m x/1x status":     "-m x/1x status",
		"-t x/1x x/i $pc":    "-t x/1x x /i $pc",
		"gdb -- x/16gx":      "gdb -- x/16gx",
		"x//16gx 0x1000":     "x//16gx 0x1000",
		"x/16gx x/s":         "x /16gx x/s",
		"--symbols x/s vtop": "--symbols x/s vtop",
	} {
		if got := strings.Join(splitExamine(strings.Fields(in)), " "); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// Wrong words are wrong usage: one line, status 2. None of them needs a target.
func TestUsageErrors(t *testing.T) {
	for _, args := range []string{
		"nonsense", "--nonsense", "status x", "vtop", "vtop 1 2", "x", "x/q 0", "x 1 2", "x/0x 1", "maps 1 2 3", "regs x",
		"write 0x1000", "write 0x1000 zz", "write 0x1000 abc", "serve x", "regs --cpu", "regs --cpu x", "foreign",
	} {
		var out, errOut bytes.Buffer
		status := Run(t.Context(), strings.Fields(args), strings.NewReader(""), &out, &errOut)
		if status != exitUsage || out.Len() > 0 || strings.Count(errOut.String(), "\n") != 1 {
			t.Errorf("%s: status %d, %q, %q", args, status, &out, &errOut)
		}
	}
}

func TestListenerRefuses(t *testing.T) {
	for listen, want := range map[string]string{
		"0.0.0.0:0": "--allow-remote", ":0": "--allow-remote", "[::]:0": "--allow-remote", "192.0.2.1:1": "--allow-remote",
		"example.com:1": "--allow-remote", "nonsense": "neither", "127.0.0.1": "neither", "127.0.0.1:99999": "99999",
		"unix:/no/such/directory/gdb": "no such file",
	} {
		l, _, err := listener(listen, false)
		if err == nil || !isUsage(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", listen, err, want)
		}
		if l != nil {
			l.Close()
		}
	}
}

func TestListener(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	socket := filepath.Join(t.TempDir(), "gdb")
	for _, c := range []struct {
		listen string
		remote bool
	}{{"", false}, {"unix:" + socket, false}, {"127.0.0.1:0", false}, {"localhost:0", false}, {":0", true}} {
		l, clean, err := listener(c.listen, c.remote)
		if err != nil {
			t.Errorf("%q: %v", c.listen, err)
			continue
		}
		path := l.Addr().String()
		if l.Addr().Network() == "unix" {
			st, err := os.Stat(path)
			dir, dirErr := os.Stat(filepath.Dir(path))
			if err != nil || dirErr != nil || st.Mode().Perm() != 0o600 || c.listen == "" && dir.Mode().Perm() != 0o700 {
				t.Errorf("%q: %v, %v", c.listen, st, err)
			}
		}
		l.Close()
		clean()
		if _, err := os.Stat(filepath.Dir(path)); c.listen == "" && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left", path)
		}
	}
}

func TestMonitor(t *testing.T) {
	a, _ := opened(t)
	d := session.NewDebugger(a.session, nil, a.log())
	m := &monitor{app: a, debugger: d}
	for command, want := range map[string]string{
		"foreign":                    "0 foreign hits passed\n",
		"x/1bx pa:0x1000":            "0x1000:\t0x00\n",
		"x/2wx 0xffffffff81000000":   "0xffffffff81000000:\t0x00000000\t0x00000000\n",
		"nonsense":                   "there is no command \"nonsense\"; monitor --help lists them\n",
		"regs -m vm9":                "no machine \"vm9\"; there are: l1\n",
		"vtop":                       "vtop takes an address, got 0 arguments\n",
		"-m l1 x/1bx pa:0x100000000": "0x100000000:\t0x00\n",
	} {
		var out bytes.Buffer
		if err := m.Monitor(t.Context(), 1, 1, command, &out); err != nil || out.String() != want {
			t.Errorf("%q: %q, %v; want %q", command, &out, err, want)
		}
	}
}

// described is a target that can say what it is.
type described struct{ target.Target }

func (described) Describe() target.Description { return target.Description{Kind: "a file", Path: "f"} }

// TestStatusOfOne: of a machine that was asked for, or of all; gdb's inferior asks for none.
func TestStatusOfOne(t *testing.T) {
	w := nestedtest.New()
	g := w.Guest()
	s := session.New(nestedtest.NewStill(w, g.CPU(nestedtest.Text, nestedtest.Text+0x3f00).Running(0, nestedtest.Text+0x20, nestedtest.Text+0x3f00)))
	if _, err := s.Look(t.Context(), session.Full); err != nil {
		t.Fatal(err)
	}
	a := &app{in: strings.NewReader(""), out: io.Discard, errOut: io.Discard, session: s, target: described{}}
	m := &monitor{app: a, debugger: session.NewDebugger(s, nil, a.log())}
	for command, want := range map[string][]string{
		"status": {"l1", "vm0"}, "status -m l1": {"l1"}, "-m vm0 status": {"vm0"}, "status -m vm7": nil,
	} {
		var out bytes.Buffer
		if err := m.Monitor(t.Context(), 2, 1, command, &out); err != nil {
			t.Fatal(err)
		}
		if want == nil {
			if got := out.String(); got != "no machine \"vm7\"; there are: l1, vm0\n" {
				t.Errorf("%s: %s", command, got)
			}
			continue
		}
		for _, name := range []string{"l1", "vm0"} {
			shown := regexp.MustCompile(`(?m)^ *` + name + ` `).MatchString(out.String())
			if shown != slices.Contains(want, name) {
				t.Errorf("%s: %s is shown: %v\n%s", command, name, shown, &out)
			}
		}
	}
}

func TestCutWord(t *testing.T) {
	for line, want := range map[string][]string{
		"qemu info cpus": {"info cpus"}, "qemu": {""}, "qemu  x ": {"x"}, "qemux": nil, "regs qemu": nil,
	} {
		rest, ok := cutWord(line, "qemu")
		if ok != (want != nil) || ok && !slices.Equal(want, []string{rest}) {
			t.Errorf("%q: %q, %v", line, rest, ok)
		}
	}
}
