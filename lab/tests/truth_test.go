package tests

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/session"
	"nestdbg/internal/target"
	"nestdbg/lab"
)

// What the guests say about themselves.

// symbol is a line of /proc/kallsyms.
type symbol struct {
	name, module string
	addr         uint64
	kind         byte
}

// parseSymbols reads /proc/kallsyms: "ADDRESS TYPE NAME\t[MODULE]".
func parseSymbols(t testing.TB, text string) []symbol {
	t.Helper()
	var out []symbol
	for line := range strings.Lines(text) {
		rest, module, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		f := strings.Split(rest, " ")
		if len(f) != 3 || len(f[1]) != 1 {
			t.Fatalf("kallsyms line %q", line)
		}
		addr, err := strconv.ParseUint(f[0], 16, 64)
		if err != nil {
			t.Fatalf("kallsyms line %q: %v", line, err)
		}
		out = append(out, symbol{f[2], strings.Trim(module, "[]"), addr, f[1][0]})
	}
	return out
}

// addresses are the symbols of kernels proper, as guests said, by boot of a lab and
// machine. To ask for one takes a guest as long as to ask for all.
var addresses sync.Map // of string to map[string]uint64

func addressKey(l *lab.Lab, machine string) string {
	return fmt.Sprint(l.PID, " ", l.Dir, " ", machine)
}

// remember keeps the symbols of a kernel for guestSymbol: of several with one name
// the first, as guestSymbol finds it in the guest.
func remember(l *lab.Lab, machine string, list []symbol) {
	known := make(map[string]uint64)
	for _, s := range list {
		if _, ok := known[s.name]; !ok && s.module == "" {
			known[s.name] = s.addr
		}
	}
	addresses.Store(addressKey(l, machine), known)
}

// guestSymbol is the address of a symbol of the kernel proper, as the guest says.
func guestSymbol(t testing.TB, l *lab.Lab, machine, name string) uint64 {
	t.Helper()
	if known, ok := addresses.Load(addressKey(l, machine)); ok {
		if addr, ok := known.(map[string]uint64)[name]; ok {
			return addr
		}
	}
	line := ask(t, l, machine, "exec grep -m1 ' "+name+"$' /proc/kallsyms")
	s := parseSymbols(t, line)
	if len(s) != 1 {
		t.Fatalf("%s has no symbol %s", machine, name)
	}
	return s[0].addr
}

// guestBuildID is the build id in the notes of the running kernel.
func guestBuildID(t testing.TB, l *lab.Lab, machine string) string {
	t.Helper()
	const buildID = 3 // NT_GNU_BUILD_ID
	notes := []byte(ask(t, l, machine, "cat /sys/kernel/notes"))
	for len(notes) >= 12 {
		name, desc := binary.LittleEndian.Uint32(notes), binary.LittleEndian.Uint32(notes[4:])
		kind := binary.LittleEndian.Uint32(notes[8:])
		at, end := 12+(name+3)&^3, 12+(name+3)&^3+(desc+3)&^3
		if int(end) > len(notes) {
			break
		}
		if kind == buildID && bytes.HasPrefix(notes[12:], []byte("GNU\x00")) {
			return hex.EncodeToString(notes[at : at+desc])
		}
		notes = notes[end:]
	}
	t.Fatalf("%s has no build id", machine)
	return ""
}

// guestCPUs is how many CPUs the guest says it runs on.
func guestCPUs(t testing.TB, l *lab.Lab, machine string) int {
	t.Helper()
	return strings.Count("\n"+ask(t, l, machine, "cat /proc/cpuinfo"), "\nprocessor")
}

// unhex reads bytes written in hexadecimal.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// view is nestdbg in this process, after one look.
type view struct {
	*session.Session
	live *target.Live
}

// look opens a lab's QEMU in this process and looks at it.
func look(t testing.TB, l *lab.Lab) *view {
	t.Helper()
	live, err := target.Open(t.Context(), fmt.Sprint(l.PID))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { live.Close() })
	v := &view{session.New(live), live}
	if _, err := v.Look(t.Context(), session.Full); err != nil {
		t.Fatal(err)
	}
	return v
}

// names tells which lab machine is which of nestdbg's, whose numbers need not
// agree: a VM is recognised by the PID of its QEMU in L1.
func (v *view) names(t testing.TB, l *lab.Lab) map[string]*machine.Machine {
	t.Helper()
	l1 := v.machine(t, "l1")
	out := map[string]*machine.Machine{"l1": l1}
	vms, problems, err := v.kernel(t, l1).KVMs()
	if err != nil || len(problems) > 0 {
		t.Fatalf("KVM's guests: %v, %v", err, problems)
	}
	for line := range strings.Lines(ask(t, l, "l1", "vm list")) {
		var name string
		var pid int
		if n, _ := fmt.Sscanf(line, "%s running pid %d", &name, &pid); n != 2 {
			continue
		}
		for _, vm := range vms {
			for _, m := range v.Tower().Machines {
				if vm.PID == pid && m.Parent == l1 && m.ID == uint64(vm.Addr) {
					out[name] = m
				}
			}
		}
		if out[name] == nil {
			t.Fatalf("%s (process %d of L1) is no machine of the tower", name, pid)
		}
	}
	return out
}

// machine finds a machine by nestdbg's name.
func (v *view) machine(t testing.TB, name string) *machine.Machine {
	t.Helper()
	m, err := v.Machine(name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// kernel is a machine's kernel, which must be found and without a doubt.
func (v *view) kernel(t testing.TB, m *machine.Machine) *linux.Kernel {
	t.Helper()
	k, err := v.Kernel(m)
	if err != nil {
		t.Fatalf("kernel of %s: %v", m.Name, err)
	}
	if len(k.Problems) > 0 {
		t.Errorf("kernel of %s: %v", m.Name, k.Problems)
	}
	return k
}

// freeze stops a lab's machines until the function it returns is called, or for
// the rest of the test.
func freeze(t testing.TB, l *lab.Lab) (thaw func()) {
	t.Helper()
	pause(t, l)
	thaw = sync.OnceFunc(func() { qmpCommand(t, l, "cont") })
	t.Cleanup(thaw)
	return thaw
}

// readFile reads a piece of a file.
func readFile(t testing.TB, path string, offset int64, size int) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, size)
	if _, err := f.ReadAt(b, offset); err != nil {
		t.Fatal(err)
	}
	return b
}
