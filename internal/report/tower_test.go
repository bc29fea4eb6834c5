package report_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/report"
	"nestdbg/internal/session"
)

var update = flag.Bool("update", false, "write the answers in testdata anew")

const text = uint64(nestedtest.Text)

// tower has a guest with one CPU that runs and one that is parked.
func tower(t *testing.T) *session.Session {
	t.Helper()
	w := nestedtest.New()
	g := w.Guest()
	v := g.CPU(text, text+0x3f00)
	g.CPU(text+0x30, text+0x3f00)
	w.Save(0, v, text+0x103, text+0x3f00)
	s := session.New(nestedtest.Still{World: w, Runs: true,
		State: []*arch.Registers{v.Running(0, text+0x20, text+0x3f00)}})
	if _, err := s.Look(t.Context(), session.Full); err != nil {
		t.Fatal(err)
	}
	return s
}

// golden compares a report, as text and as JSON, with what is in testdata.
func golden(t *testing.T, name string, r report.Report) {
	t.Helper()
	var plain, script bytes.Buffer
	r.Text(&plain)
	if err := report.JSON(&script, r); err != nil {
		t.Fatal(err)
	}
	for ext, got := range map[string][]byte{".txt": plain.Bytes(), ".json": script.Bytes()} {
		path := filepath.Join("testdata", name+ext)
		if *update {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), string(got)); d != "" {
			t.Errorf("%s (-want +got):\n%s", path, d)
		}
	}
}

func TestWalksAndMaps(t *testing.T) {
	s := tower(t)
	offset := func(a mem.Phys) (uint64, bool) { return uint64(a) + 0x10000000, true }
	for _, name := range []string{"l1", "vm0"} {
		m, err := s.Machine(name)
		if err != nil {
			t.Fatal(err)
		}
		space, err := m.Space(m.CPUs[0])
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "vtop-"+name, report.NewVTop(m, space, text+0x1234, offset))
		golden(t, "vtop-fault-"+name, report.NewVTop(m, space, text+0x5000, offset))
		golden(t, "maps-"+name, report.NewMaps(m, space, 1, mem.Range{Last: ^uint64(0)}, 0))
	}
	vm, _ := s.Machine("vm0")
	golden(t, "maps-stage2", report.NewMaps(vm, vm.Second.Space, 2, mem.Range{Last: ^uint64(0)}, 2))
	golden(t, "ptop-fault", report.NewPTop(vm, 0x7000000, offset))
	golden(t, "status", report.NewStatus(s, &report.QEMU{Version: "7.2.22", Accel: "tcg", PID: 42},
		report.RAM{Source: "file", File: "/dev/shm/ram", Size: 5 << 30}))
}

// Scripts rely on these names.
func TestPromisedFields(t *testing.T) {
	s := tower(t)
	st := report.NewStatus(s, &report.QEMU{}, report.RAM{})
	st.Machines[0].Kernel = &report.Kernel{}
	m, _ := s.Machine("vm0")
	space, err := m.Space(m.CPUs[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		r    report.Report
		path string // of objects; into a list goes its first element
		want string
	}{
		{st, "", "qemu ram machines"},
		{st, "qemu", "version accel pid"},
		{st, "ram", "source file size"},
		{st, "machines", "name level parent arch second_stage os kernel vcpus"},
		{st, "machines kernel", "release build_id text_va slide"},
		{st, "machines vcpus", "index state cpu rip"},
		{&report.Status{Machines: []report.Machine{{SecondStage: &report.SecondStage{}}}}, "machines second_stage", "kind root"},
		{report.NewVTop(m, space, text, nil), "", "machine va steps pa parent_pa file_offset fault"},
		{report.NewVTop(m, space, text, nil), "steps", "stage level table index entry flags"},
	} {
		object := fields(t, c.r, strings.Fields(c.path))
		for _, name := range strings.Fields(c.want) {
			if _, ok := object[name]; !ok {
				t.Errorf("%T %q has no %q, only %v", c.r, c.path, name, slices.Sorted(maps.Keys(object)))
			}
		}
	}
}

func fields(t *testing.T, r report.Report, path []string) map[string]any {
	t.Helper()
	var b bytes.Buffer
	if err := report.JSON(&b, r); err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(b.Bytes(), &v); err != nil {
		t.Fatal(err)
	}
	for _, name := range append(path, "") {
		if list, ok := v.([]any); ok {
			v = list[0]
		}
		if name != "" {
			v = v.(map[string]any)[name]
		}
	}
	return v.(map[string]any)
}

func TestHex(t *testing.T) {
	for v, want := range map[report.Hex]string{0: `"0x0"`, 31: `"0x1f"`, ^report.Hex(0): `"0xffffffffffffffff"`} {
		if b, err := json.Marshal(v); err != nil || string(b) != want {
			t.Errorf("%d: %s, %v", uint64(v), b, err)
		}
	}
}

func TestRegistersThatAreNotKnown(t *testing.T) {
	s := tower(t)
	m, _ := s.Machine("vm0")
	r := report.NewRegisters(m, m.CPUs[1:], false)
	known := r.CPUs[0].Registers
	if known["rbx"] != nil || known["rip"] == nil || *known["rip"] != "0xffffffff81000030" {
		t.Errorf("rbx %v, rip %v", known["rbx"], known["rip"])
	}
	if _, ok := known["xmm0"]; ok {
		t.Error("vector registers were not asked for")
	}
	var b bytes.Buffer
	r.Text(&b)
	if !strings.Contains(b.String(), "rbx            unavailable") {
		t.Errorf("%s", &b)
	}
}
