package tests

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/session"
	"nestdbg/internal/target"
	"nestdbg/lab"
)

// bootMonitor boots a lab with the monitor, and returns what that said of its VMs.
func bootMonitor(t *testing.T, o lab.Options) (*lab.Lab, map[string]*lab.Truth) {
	t.Helper()
	o.Kind = lab.MonitorKind
	l := lab.Start(t, o)
	truth, err := l.Truth()
	if err != nil {
		t.Fatal(err)
	}
	return l, truth
}

// page is where a page leads and what may be done there.
type page struct {
	to     uint64
	rights string
}

// pages cuts leaves into pages of 4 KiB.
func pages(leaves []lab.Leaf) map[uint64]page {
	out := make(map[uint64]page)
	for _, x := range leaves {
		for o := uint64(0); o < x.Size; o += 4096 {
			out[x.From+o] = page{x.To + o, x.Rights}
		}
	}
	return out
}

// monitorMaps is what the test needs of "maps --json".
type monitorMaps struct {
	Root   address `json:"root"`
	Ranges []struct {
		First    address  `json:"first"`
		Last     address  `json:"last"`
		PA       address  `json:"pa"`
		ParentPA *address `json:"parent_pa"`
		Perm     string   `json:"perm"`
	} `json:"ranges"`
}

// TestMonitorTruth: a hypervisor that is no Linux, with a second stage in disorder and
// pages of three sizes. Every page of both stages of both its VMs is where the
// hypervisor itself says it put it, with the rights it gave, and nothing else is mapped.
func TestMonitorTruth(t *testing.T) {
	for cpus := 1; cpus <= 2; cpus++ {
		t.Run(fmt.Sprintf("%d CPUs", cpus), func(t *testing.T) {
			l, vms := bootMonitor(t, lab.Options{VMs: 2, CPUs: cpus})
			if len(vms) != 2 {
				t.Fatalf("the monitor said something of %d VMs", len(vms))
			}
			for name, want := range vms {
				checkMonitorMaps(t, l, name, want)
			}
			checkMonitorWalks(t, l, vms)
		})
	}
}

func checkMonitorMaps(t *testing.T, l *lab.Lab, name string, want *lab.Truth) {
	t.Helper()
	second := pages(want.Second)
	sizes := make(map[uint64]int)
	for _, x := range want.Second {
		sizes[x.Size]++
	}
	if sizes[4<<10] < 20 || sizes[2<<20] != 2 || sizes[1<<30] != 1 {
		t.Errorf("%s: leaves by size %v", name, sizes)
	}
	got := decode[monitorMaps](t, must(t, l, "maps", "-m", name, "--stage", "2", "--json"))
	if uint64(got.Root) != want.SecondRoot {
		t.Errorf("%s: second stage at %#x, the monitor has it at %#x", name, got.Root, want.SecondRoot)
	}
	comparePages(t, name+" stage 2", expand(got, nil), second)

	got = decode[monitorMaps](t, must(t, l, "maps", "-m", name, "--json"))
	if uint64(got.Root) != want.FirstRoot {
		t.Errorf("%s: tables at %#x, the monitor has them at %#x", name, got.Root, want.FirstRoot)
	}
	comparePages(t, name+" stage 1", expand(got, func(at, pa, parent uint64, known bool) {
		if has, ok := second[pa]; ok != known || ok && has.to != parent {
			t.Errorf("%s: %#x is at %#x, and that at %#x (%v), want %#x (%v)", name, at, pa, parent, known, has.to, ok)
		}
	}), pages(want.First))
}

// expand cuts a report into pages, and tells each where it is in the parent's memory.
func expand(r *monitorMaps, each func(at, pa, parent uint64, known bool)) map[uint64]page {
	out := make(map[uint64]page)
	for _, x := range r.Ranges {
		for at := uint64(x.First); at <= uint64(x.Last); at += 4096 {
			o := at - uint64(x.First)
			out[at] = page{uint64(x.PA) + o, x.Perm[:3]}
			switch {
			case each == nil:
			case x.ParentPA == nil:
				each(at, uint64(x.PA)+o, 0, false)
			default:
				each(at, uint64(x.PA)+o, uint64(*x.ParentPA)+o, true)
			}
		}
	}
	return out
}

// comparePages compares all pages, and shows the first few that differ.
func comparePages(t *testing.T, what string, got, want map[uint64]page) {
	t.Helper()
	wrong := 0
	for at, p := range want {
		if got[at] != p {
			if wrong++; wrong < 5 {
				t.Errorf("%s: page %#x is %+v, want %+v", what, at, got[at], p)
			}
		}
	}
	if wrong > 0 || len(got) != len(want) {
		t.Errorf("%s: %d pages, want %d; %d of those are wrong", what, len(got), len(want), wrong)
	}
}

// checkMonitorWalks walks to the first and the last byte of every leaf of both stages,
// and to every page near them that is not mapped.
func checkMonitorWalks(t *testing.T, l *lab.Lab, vms map[string]*lab.Truth) {
	t.Helper()
	live, err := target.Open(t.Context(), fmt.Sprint(l.PID))
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	tower, err := session.New(live).Look(t.Context(), session.Full)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range vms {
		m, ok := tower.Machine(name)
		if !ok || len(m.CPUs) != 1 || uint64(m.CPUs[0].Control) != want.Control {
			t.Fatalf("%s: %+v, its control block is at %#x", name, m, want.Control)
		}
		space, err := m.SpaceAt(want.FirstRoot)
		if err != nil {
			t.Fatal(err)
		}
		checkLeaves(t, name+" stage 1", want.First, space.Translate)
		checkLeaves(t, name+" stage 2", want.Second, m.Second.Space.Translate)
		second := pages(want.Second)
		for at := uint64(0); at < 16<<20; at += 4096 {
			_, _, err := m.Second.Space.Translate(at)
			if _, ok := second[at]; ok != (err == nil) {
				t.Errorf("%s: guest-physical %#x: %v, mapped %v", name, at, err, ok)
			}
		}
		checkAlmanac(t, m)
	}
}

func checkLeaves(t *testing.T, what string, leaves []lab.Leaf, translate func(uint64) (mem.Phys, uint64, error)) {
	t.Helper()
	for _, x := range leaves {
		for _, o := range []uint64{0, x.Size / 2, x.Size - 1} {
			got, together, err := translate(x.From + o)
			if err != nil || uint64(got) != x.To+o || together != x.Size-o {
				t.Errorf("%s: %#x is at %#x, %#x to the end of the page, %v; want %#x, %#x",
					what, x.From+o, got, together, err, x.To+o, x.Size-o)
			}
		}
	}
}

// checkAlmanac reads 64 KiB of a VM's virtual memory whose content is known: 16 pages in
// reverse order in a large one.
func checkAlmanac(t *testing.T, m *machine.Machine) {
	t.Helper()
	space, err := m.Space(m.CPUs[0])
	if err != nil {
		t.Fatal(err)
	}
	var want []byte
	for n := uint64(0); n < 8192; n++ {
		v := n*0x9e3779b97f4a7c15 + 1
		for i := range 8 {
			want = append(want, byte(v>>(8*i)))
		}
	}
	got := make([]byte, len(want))
	if _, err := space.ReadVirt(got, 0x610000000000); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: the almanac is not what the monitor wrote (%v)", m.Name, err)
	}
}

// TestMonitorBootTime: from QEMU's start to the first round of every VM it is under a second. The
// fastest of a few boots counts, since others use this machine, too.
func TestMonitorBootTime(t *testing.T) {
	const limit = 1.0 // seconds
	fastest := math.Inf(1)
	for n := 0; n < 5 && fastest >= limit; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) { // its end ends the lab
			l, _ := bootMonitor(t, lab.Options{VMs: 2, CPUs: 2})
			fastest = min(fastest, l.Machines[0].BootSeconds)
		})
	}
	t.Logf("the monitor and two VMs: %.2f s to boot", fastest)
	if fastest >= limit {
		t.Errorf("not under %.0f s", limit)
	}
}

// TestMonitorStory is a session with the real gdb on both layers, from a breakpoint by
// name to a crash, and then the crash again from the memory file alone.
func TestMonitorStory(t *testing.T) {
	l, _ := bootMonitor(t, lab.Options{})
	flags := append(imageFlags(l), "--registers", "vm0=vms[0].regs")
	script := filepath.Join("testdata", "monitor", "live.gdb")
	expectScript(t, script, monitorGDB(t, append([]string{"-t", fmt.Sprint(l.PID)}, flags...), script))

	file := killQEMU(t, l)
	script = filepath.Join("testdata", "monitor", "dead.gdb")
	expectScript(t, script, monitorGDB(t, append([]string{"-t", file}, flags...), script))
	r := nestdbg(t, append([]string{"-t", file, "sym", "-m", "vm0", "$pc"}, flags...)...)
	if r.status != 0 || !strings.Contains(r.stdout, " wild_store+") {
		t.Errorf("status %d, %s%s", r.status, r.stdout, r.stderr)
	}
}

// TestMonitorTwo: two VMs with one program at two addresses, on two CPUs. A name is a
// place in each, and a breakpoint belongs to one.
func TestMonitorTwo(t *testing.T) {
	l, _ := bootMonitor(t, lab.Options{VMs: 2, CPUs: 2})
	script := filepath.Join("testdata", "monitor", "two.gdb")
	expectScript(t, script, monitorGDB(t, append([]string{"-t", fmt.Sprint(l.PID)}, imageFlags(l)...), script))
}

// imageFlags tell nestdbg what is loaded in the machines of a lab.
func imageFlags(l *lab.Lab) (out []string) {
	for _, m := range l.Machines {
		out = append(out, "--symbols", m.Symbols())
	}
	return out
}

// Every way in which the program can crash is told post mortem, from memory alone and
// without a word about the monitor but its files: where, by whom called, and why.
func TestMonitorCrashes(t *testing.T) {
	for how, want := range map[string]string{
		"call":     `#0 +0x0+ in \?\? \(\)\n#1 .* null_call \(item=0x500000001fc8\)`,
		"hole":     `#0 .*store_in_hole \(item=0x500000001fc8\)`,
		"readonly": `#0 .*store_in_almanac \(item=0x500000001fc8\)`,
	} {
		t.Run(how, func(t *testing.T) {
			// The other VM runs on.
			l, _ := bootMonitor(t, lab.Options{VMs: 2, Append: "crash=" + how})
			eventually(t, "the monitor says that VM 0 crashed", 30*time.Second, func() bool {
				said, err := os.ReadFile(l.Machines[0].Log)
				return err == nil && slices.ContainsFunc(strings.Split(string(said), "\n"),
					func(s string) bool { return strings.HasPrefix(s, "crash vm0 ") && strings.Contains(s, "rip") })
			})
			flags := []string{"-t", killQEMU(t, l), "--registers", "vm0=vms[0].regs"}
			flags = append(flags, imageFlags(l)...)
			script := filepath.Join(t.TempDir(), "script.gdb")
			text := "inferior 2\nbacktrace\n# expect " + want + "\n# expect by_almanac \\(item=0x500000001fc8, round=3\\)" +
				"\n# expect work \\(start=0x600000000000\\)\n# expect start \\(\\)\n"
			if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			expectAll(t, text, monitorGDB(t, flags, script))
		})
	}
}

// monitorGDB runs "nestdbg gdb" with a script, and returns everything that was printed.
func monitorGDB(t *testing.T, flags []string, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandLimit)
	defer cancel()
	args := append(slices.Clone(flags), "gdb", "--", "-batch", "-nh", "-ex", "set width 0", "-ex", "set height 0",
		"-ex", "set breakpoint pending off", "-x", script)
	out, err := exec.CommandContext(ctx, suite.binary, args...).CombinedOutput()
	if err != nil {
		t.Errorf("nestdbg gdb: %v\n%s", err, out)
	}
	return string(out)
}

// expectScript is expectAll for a script in a file.
func expectScript(t *testing.T, script, transcript string) {
	t.Helper()
	text, err := os.ReadFile(script)
	if err != nil {
		t.Fatal(err)
	}
	expectAll(t, string(text), transcript)
}
