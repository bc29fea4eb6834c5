package memfile_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"nestdbg/internal/mem"
	"nestdbg/internal/memfile"
)

// machineOf is a real QEMU that has run its firmware.
type machineOf struct {
	*testing.T
	dir  string
	conn net.Conn
	qmp  *json.Decoder
}

// realMachine starts whatever QEMU is in PATH, with memory in a file and some that can
// be plugged, and returns when the firmware has made its map.
func realMachine(t *testing.T, machine, memory string) *machineOf {
	t.Helper()
	// Socket paths have a limit that t.TempDir may exceed.
	dir, err := os.MkdirTemp("", "nd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := &machineOf{T: t, dir: dir}
	cmd := exec.Command("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg",
		"-machine", machine+",memory-backend=main", "-m", memory+",maxmem=8G",
		"-object", "memory-backend-file,id=main,share=on,size="+memory+",mem-path="+m.path("memory"),
		"-object", "memory-backend-ram,id=plugged,size=512M", "-device", "virtio-mem-pci,memdev=plugged",
		"-qmp", "unix:"+m.path("qmp")+",server=on,wait=off")
	var out bytes.Buffer
	cmd.Stderr = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	first := e820([3]uint64{0, 0x9fc00, 1}, [3]uint64{0x9fc00, 0x400, 2})
	low := make([]byte, 1<<20)
	m.await("the firmware's map", func() bool {
		f, err := os.Open(m.path("memory"))
		if err != nil {
			return false
		}
		defer f.Close()
		f.ReadAt(low, 0)
		return bytes.Contains(low, first)
	}, &out)
	m.await("QMP", func() bool {
		m.conn, err = net.Dial("unix", m.path("qmp"))
		return err == nil
	}, &out)
	t.Cleanup(func() { m.conn.Close() })
	m.qmp = json.NewDecoder(m.conn)
	m.ask("qmp_capabilities", nil)
	return m
}

func (m *machineOf) path(name string) string { return filepath.Join(m.dir, name) }

func (m *machineOf) await(what string, done func() bool, more fmt.Stringer) {
	m.Helper()
	for begin := time.Now(); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Since(begin) > 30*time.Second {
			m.Fatalf("%s does not come: %s", what, more)
		}
	}
}

type arguments = map[string]any

// ask sends a command and returns what it answers.
func (m *machineOf) ask(command string, with arguments) json.RawMessage {
	m.Helper()
	request := arguments{"execute": command}
	if with != nil {
		request["arguments"] = with
	}
	if err := json.NewEncoder(m.conn).Encode(request); err != nil {
		m.Fatal(err)
	}
	for {
		var answer struct{ Return, Error json.RawMessage }
		if err := m.qmp.Decode(&answer); err != nil || answer.Error != nil {
			m.Fatalf("%s %v: %s %v", command, with, answer.Error, err)
		}
		if answer.Return != nil {
			return answer.Return
		}
	}
}

// have reads an answer into v.
func (m *machineOf) have(v any, command string) {
	m.Helper()
	if err := json.Unmarshal(m.ask(command, nil), v); err != nil {
		m.Fatal(err)
	}
}

// migrate writes a migration with these capabilities.
func (m *machineOf) migrate(uri string, all, on []string) {
	m.Helper()
	var list []arguments
	for _, name := range all {
		list = append(list, arguments{"capability": name, "state": slices.Contains(on, name)})
	}
	m.ask("migrate-set-capabilities", arguments{"capabilities": list})
	m.ask("migrate", arguments{"uri": uri})
	var state struct{ Status string }
	m.await("the migration", func() bool {
		m.have(&state, "query-migrate")
		return state.Status == "completed" || state.Status == "failed"
	}, &bytes.Buffer{})
	if state.Status != "completed" {
		m.Errorf("migration to %s: %s", uri, state.Status)
	}
}

// check opens a migration and compares all memory, and registers, with the machine.
func (m *machineOf) check(name string) {
	m.Helper()
	want, err := memfile.Open(m.path("memory"), memfile.Options{})
	if err != nil {
		m.Fatal(err)
	}
	defer want.Close()
	got, err := memfile.Open(m.path(name), memfile.Options{})
	if err != nil {
		m.Error(err)
		return
	}
	defer got.Close()
	for _, p := range got.Problems {
		if !strings.Contains(p, `plugged" lie in physical memory is not known`) {
			m.Errorf("%s: %s", name, p)
		}
	}
	a, b := make([]byte, 4096), make([]byte, 4096)
	for _, r := range want.PhysRanges() {
		for at := mem.Phys(r.First); at < mem.Phys(r.Last); at += 4096 {
			if _, err := want.ReadPhys(a, at); err != nil {
				m.Fatal(err)
			}
			if _, err := got.ReadPhys(b, at); err != nil || !bytes.Equal(a, b) {
				m.Errorf("%s: page %#x is another: %v", name, at, err)
				return
			}
		}
	}
	if len(got.CPUs) != 1 {
		m.Errorf("%s: %d CPUs", name, len(got.CPUs))
		return
	}
	var text string
	if err := json.Unmarshal(m.ask("human-monitor-command", arguments{"command-line": "info registers"}), &text); err != nil {
		m.Fatal(err)
	}
	for register, pattern := range map[string]string{"rip": `[RE]IP=([0-9a-f]+)`, "rsp": `[RE]SP=([0-9a-f]+)`, "cr0": `CR0=([0-9a-f]+)`} {
		found := regexp.MustCompile(pattern).FindStringSubmatch(text)
		if found == nil {
			m.Fatalf("no %s in %s", pattern, text)
		}
		want, err := strconv.ParseUint(found[1], 16, 64)
		if v, ok := got.CPUs[0].Get(register); err != nil || !ok || v != want {
			m.Errorf("%s: %s is %#x, %v; the machine's is %s", name, register, v, ok, found[1])
		}
	}
}

// TestRealMigrations: the migrations that the QEMU in PATH writes to files, in each form
// that it knows, are the machine that it runs. Of a machine without an operating system,
// which is not in 64 bits, it writes no dumps that are read here.
func TestRealMigrations(t *testing.T) {
	m := realMachine(t, "q35", "64M")
	var version struct{ QEMU struct{ Major int } }
	m.have(&version, "query-version")
	var capabilities []struct{ Capability string }
	m.have(&capabilities, "query-migrate-capabilities")
	var names []string
	for _, c := range capabilities {
		if c.Capability == "mapped-ram" || c.Capability == "multifd" {
			names = append(names, c.Capability)
		}
	}
	migrations := map[string][]string{"migration": nil}
	if mapped := slices.Contains(names, "mapped-ram"); mapped {
		migrations["file"], migrations["mapped"], migrations["multifd"] = []string{}, []string{"mapped-ram"}, []string{"mapped-ram", "multifd"}
	} else if version.QEMU.Major >= 9 {
		t.Errorf("QEMU %d has no mapped-ram", version.QEMU.Major)
	}
	for name, on := range migrations {
		uri := "file:" + m.path(name)
		if on == nil { // as all versions can
			uri = "exec:cat > " + m.path(name)
		}
		m.ask("stop", nil)
		m.migrate(uri, names, on)
		m.check(name)
		m.ask("cont", nil)
	}
}

// TestRealLayouts: where the bytes of a memory file lie, of machines that QEMU's rules
// take for one another.
func TestRealLayouts(t *testing.T) {
	for machine, want := range map[string]string{
		"q35": "[0x0-0x7fffffff 0x100000000-0x13fffffff]", "pc": "[0x0-0xbfffffff]", "q35,max-ram-below-4g=1G": "[0x0-0x3fffffff 0x100000000-0x17fffffff]",
	} {
		m := realMachine(t, machine, "3G")
		if got := fmt.Sprint(open(t, m.path("memory"), "").PhysRanges()); got != want {
			t.Errorf("%s: %s, want %s", machine, got, want)
		}
	}
}
