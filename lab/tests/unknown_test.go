package tests

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"nestdbg/lab"
)

// foundReport is "find --json".
type foundReport struct {
	Candidates []struct {
		Kind, In, State, Machine string
		At                       address
		Root                     *address
		Second                   string `json:"second_stage"`
		Score                    int
		Evidence, Against        []string
	}
	Problems []string
}

// guests are the candidates that are guests, by control block, with their roots.
func (f foundReport) guests() map[address]address {
	out := make(map[address]address)
	for _, c := range f.Candidates {
		if c.State == "executing" || c.State == "live" {
			out[c.At] = *c.Root
		}
	}
	return out
}

// auditReport is "audit --json".
type auditReport struct {
	Machines []string
	Matrix   [][]uint64
	Shared   []struct {
		A, B, In string
		Bytes    uint64
		Ranges   []struct {
			First, Last  address
			APA          address `json:"a_pa"`
			BPA          address `json:"b_pa"`
			APerm, BPerm string
		}
	}
	Exposed []struct {
		Machine, Of, What string
		First, Last, PA   address
		Perm              string
	}
	Problems []string
}

// monitorLab boots the monitor with a command line and returns what it said.
func monitorLab(t *testing.T, vms int, line string) (*lab.Lab, string) {
	t.Helper()
	l := ownLab(t, lab.Options{Kind: lab.MonitorKind, VMs: vms, Append: line})
	m := l.Machine(lab.L1)
	said := func() string {
		b, err := os.ReadFile(m.Log)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if strings.HasPrefix(line, "crash=") {
		eventually(t, "the program crashes", askLimit, func() bool { return crashLine.MatchString(said()) })
	}
	return l, said()
}

// crashLine is the monitor's word on a crash, to its end.
var crashLine = regexp.MustCompile(`(?m)^crash .*\n`)

// truths are the numbers of lines such as "truth vm0 control 0x1000", by machine.
func truths(t *testing.T, said, what string) map[string]address {
	t.Helper()
	out := make(map[string]address)
	for _, m := range regexp.MustCompile(`(?m)^truth (\S+) `+what+` 0x([0-9a-f]+)`).FindAllStringSubmatch(said, -1) {
		var a address
		if err := a.UnmarshalJSON([]byte(`"0x` + m[2] + `"`)); err != nil {
			t.Fatal(err)
		}
		out[m[1]] = a
	}
	if len(out) == 0 {
		t.Fatalf("the monitor did not tell its %s:\n%s", what, said)
	}
	return out
}

// TestUnknownHypervisor finds the guests of a hypervisor of which nothing is known, all of
// them and nothing else, with its own word for where they are, and nothing shared.
func TestUnknownHypervisor(t *testing.T) {
	l, said := monitorLab(t, 2, "")
	controls, roots := truths(t, said, "control"), truths(t, said, "stage2-root")
	want := make(map[address]address)
	for name, at := range controls {
		want[at] = roots[name]
	}
	found := decode[foundReport](t, must(t, l, "find", "--all", "--json"))
	if got := found.guests(); !maps.Equal(got, want) {
		t.Errorf("found %#x, the monitor has %#x", got, want)
	}
	for _, c := range found.Candidates {
		if c.State != "executing" && c.State != "live" && c.State != "host save" {
			t.Errorf("%s: %s at %#x: %q against it", c.State, c.Kind, c.At, c.Against)
		}
	}
	audit := decode[auditReport](t, must(t, l, "audit", "--json"))
	if len(audit.Machines) != 2 || len(audit.Shared)+len(audit.Exposed) != 0 || audit.Matrix[0][1] != 0 || audit.Matrix[0][0] == 0 {
		t.Errorf("nothing is shared, and audit says %+v", audit)
	}
	// What the author says leads to the same memory as what was found.
	hint := fmt.Sprintf("npt4:%#x", roots["vm1"])
	if got := must(t, l, "--second-stage", hint, "status"); strings.Count(got, "mapped by") != 2 {
		t.Errorf("a second stage that is known is a machine of its own:\n%s", got)
	}
	control := fmt.Sprintf("%#x", controls["vm1"])
	if got := must(t, l, "--vmcb", control, "find"); strings.Count(got, "given by --vmcb") != 1 {
		t.Errorf("a VMCB that is known is another candidate:\n%s", got)
	}
	if r := nestdbg(t, on(l, "--vmcb", fmt.Sprintf("%#x", roots["vm1"]), "status")...); r.status != 2 || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("a table was taken for a VMCB: status %d, %q", r.status, r.stderr)
	}
}

// TestPlantedOverlap plants what must not be reached, and it is reported: that and nothing
// else.
func TestPlantedOverlap(t *testing.T) {
	planted := func(said string) address {
		t.Helper()
		m := regexp.MustCompile(`(?m)^plant \S+ 0x([0-9a-f]+)`).FindStringSubmatch(said)
		var a address
		if m == nil || a.UnmarshalJSON([]byte(`"0x`+m[1]+`"`)) != nil {
			t.Fatalf("the monitor did not say what it planted:\n%s", said)
		}
		return a
	}
	l, said := monitorLab(t, 2, "plant=page")
	page := planted(said)
	audit := decode[auditReport](t, must(t, l, "audit", "--json"))
	if len(audit.Shared) != 1 || len(audit.Shared[0].Ranges) != 1 || audit.Shared[0].Ranges[0].First != page ||
		audit.Shared[0].Bytes != 4096 || audit.Matrix[0][1] != 4096 || len(audit.Exposed) != 0 {
		t.Errorf("planted the page %#x, audit says %+v", page, audit)
	}
	l, said = monitorLab(t, 2, "plant=table")
	table := planted(said)
	audit = decode[auditReport](t, must(t, l, "audit", "--json"))
	if len(audit.Exposed) != 1 || audit.Exposed[0].First != table || audit.Exposed[0].Machine != "vm0" ||
		audit.Exposed[0].What != "root of the second stage of vm0" || !strings.Contains(audit.Exposed[0].Perm, "w") || len(audit.Shared) != 0 {
		t.Errorf("planted the table %#x, audit says %+v", table, audit)
	}
}

// TestStuckGuest has a program that the monitor leaves where it crashed: vtop says which
// entry forbids what it did, and a guest that jumped to nowhere is still there.
func TestStuckGuest(t *testing.T) {
	for crash, cause := range map[string]string{"hole": "not-present", "readonly": "permission"} {
		l, said := monitorLab(t, 1, "crash="+crash)
		at := regexp.MustCompile(`crash vm0 second-stage address (0x[0-9a-f]+)`).FindStringSubmatch(said)
		if at == nil {
			t.Fatalf("%s: the monitor says\n%s", crash, said)
		}
		v := decode[struct {
			PA   string
			Exit string
			Why  struct {
				Stage int
				Cause string
				At    *address
			}
		}](t, must(t, l, "vtop", "--fault", "--json"))
		if v.PA != at[1] || v.Why.Stage != 2 || v.Why.Cause != cause || v.Why.At == nil || !strings.Contains(v.Exit, "NPF") {
			t.Errorf("%s at %s: %+v", crash, at[1], v)
		}
	}
	l, said := monitorLab(t, 1, "crash=call")
	want := map[address]address{truths(t, said, "control")["vm0"]: truths(t, said, "stage2-root")["vm0"]}
	if got := decode[foundReport](t, must(t, l, "find", "--json")).guests(); !maps.Equal(got, want) {
		t.Errorf("after a null call %#x is there, want %#x", got, want)
	}
}

// TestUnknownKVM takes Linux/KVM for a hypervisor that nobody knows: the same guests are
// found, by their control blocks; and in guests without guests of their own, none.
func TestUnknownKVM(t *testing.T) {
	l := sharedLab(t, "two")
	pause(t, l) // so that two looks see the same
	defer qmpCommand(t, l, "cont")
	st := decode[struct {
		Machines []struct {
			Name  string
			VCPUs []struct {
				Control *address
				State   string
				Source  string
			}
		}
	}](t, must(t, l, "status", "--json"))
	want := make(map[address]bool)
	for _, m := range st.Machines {
		for _, c := range m.VCPUs {
			if c.Control != nil {
				want[*c.Control] = true
			}
		}
	}
	found := decode[foundReport](t, must(t, l, "find", "--all", "--blind", "--json"))
	got := make(map[address]bool)
	for _, c := range found.Candidates {
		switch {
		case c.In != "l1" && c.State != "stale" && c.State != "host save":
			t.Errorf("in %s, which has no guest, %s at %#x is %s: %q", c.In, c.Kind, c.At, c.State, c.Evidence)
		case c.State == "executing" || c.State == "live":
			got[c.At] = true
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("found %#x, KVM has %#x", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
	// The memory of a plain Linux, as a file.
	file := filepath.Join(t.TempDir(), "plain")
	must(t, l, "export", "vmcore", "-m", "vm0", "--format", "raw", "-o", file)
	r := nestdbg(t, "-t", file, "--layout", "flat", "find", "--all", "--json")
	if r.status != 0 {
		t.Fatalf("find in %s: status %d, %s", file, r.status, r.stderr)
	}
	plain := decode[foundReport](t, r.stdout)
	for _, c := range plain.Candidates {
		if c.State != "stale" && c.State != "host save" {
			t.Errorf("in a Linux without guests, %s at %#x is %s: %q", c.Kind, c.At, c.State, c.Evidence)
		}
	}
}
