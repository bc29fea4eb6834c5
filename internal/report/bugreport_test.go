package report

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/session"
)

// TestBugStacks: every CPU, and of the tasks those that are blocked or in trouble,
// each once.
func TestBugStacks(t *testing.T) {
	m, from := bootedStacks()
	from.tasks = append(from.tasks,
		linux.Task{Addr: 0xe0, PID: 11, TGID: 11, Comm: "waits", State: "D"},
		linux.Task{Addr: 0xf0, PID: 12, TGID: 12, Comm: "idle", State: "I"})
	pid := 10
	r := newBugStacks(newBacktracer(m, from), []Trouble{{PID: &pid}, {PID: nil}})
	var got []string
	for _, s := range r.Stacks {
		who := "CPU"
		if s.CPU == nil {
			who = string(s.Task.Comm)
		}
		got = append(got, who)
	}
	if d := cmp.Diff([]string{"CPU", "CPU", "zombie", "waits"}, got); d != "" {
		t.Error(d)
	}
	from.tasksErr = errors.New("the list is cut")
	if r := newBugStacks(newBacktracer(m, from), nil); !strings.Contains(strings.Join(r.Problems, "\n"), "the list is cut") {
		t.Errorf("problems: %q", r.Problems)
	}
}

// evil is what a guest may call itself and log.
const evil = "</pre><script>alert(1)</script>\x1b[2J\x00&amp;\n<img src=//x>"

// evilReport has that in every field that can come from a guest.
func evilReport() *BugReport {
	pid, cpu := 7, 1
	return &BugReport{
		Made: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Nestdbg: "1.0", Reason: []string{evil},
		Tower: &Status{File: &File{Path: evil, Kind: "x"}, Machines: []Machine{{Name: "vm0", Level: 2, Arch: "x86-64",
			Kernel: &Kernel{Release: evil, BuildID: evil, Problems: []string{evil}}, VCPUs: []VCPU{{State: "parked", Symbol: evil}}}}, Problems: []string{evil}},
		Troubles: []Trouble{{Machine: "vm0", Kind: "panic", TimeNs: 1_500_000_000, Text: "Kernel panic - not syncing: " + evil, CPU: &cpu, PID: &pid}},
		Machines: []MachineState{{Machine: "vm0", PanicCPU: &cpu, Problems: []string{evil},
			Stacks: &Backtraces{Machine: "vm0", Problems: []string{evil}, Stacks: []Stack{{State: "R", Error: evil,
				Task: &TaskName{PID: 7, Comm: evil}, Frames: []StackFrame{{PC: 1, Symbol: evil, Module: evil}}}}},
			SecondStage: &SecondStageState{SecondStage: SecondStage{Kind: "npt5", Root: 0x1000}, Pages: []PageCount{{4096, "rwx-", 3}},
				Roots: []CPURoot{{1, 0x2000}}, Slots: []MemorySlot{{0, 0xfffff, 0x7f00}}, Cut: true, Problems: []string{evil}},
			Log: &Log{Machine: "vm0", Records: []LogRecord{{Text: evil}}, Problems: []string{evil}}, LogBefore: 3}},
	}
}

// TestBugReportHTML: the page is well-formed and has nothing of a guest's but text.
func TestBugReportHTML(t *testing.T) {
	var b bytes.Buffer
	if err := evilReport().HTML(&b); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	d := xml.NewDecoder(strings.NewReader(page))
	d.Strict, d.AutoClose, d.Entity = true, nil, xml.HTMLEntity
	var text strings.Builder
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("not well-formed: %v\n%s", err, page)
		}
		switch x := token.(type) {
		case xml.StartElement:
			if !strings.Contains(" html head meta title style body h1 h2 p nav a pre details summary ", " "+x.Name.Local+" ") {
				t.Errorf("element %s in\n%s", x.Name.Local, page)
			}
			for _, a := range x.Attr {
				if a.Name.Local == "src" || a.Name.Local == "href" && !strings.HasPrefix(a.Value, "#") {
					t.Errorf("%s=%q refers to something else", a.Name.Local, a.Value)
				}
			}
		case xml.CharData:
			text.Write(x)
		}
	}
	for _, want := range []string{"vm0 panic at 1.500000 (CPU 1, task 7): Kernel panic - not syncing: </pre><script>", "is in its panic, on CPU 1",
		"log, after 3 records", "3 pages of 4 KiB, rwx-", "CPU 1 is on another root, 0x2000", `\x1b[2J`} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
	if strings.Contains(page, "\x1b") || strings.Contains(page, "\x00") {
		t.Error("the page has control characters")
	}
}

// TestBugReportText: nothing of a guest reaches the terminal as it is.
func TestBugReportText(t *testing.T) {
	var b bytes.Buffer
	evilReport().Text(&b)
	if strings.ContainsAny(b.String(), "\x1b\x00") {
		t.Errorf("control characters in\n%q", b.String())
	}
	b.Reset()
	(&BugReport{Tower: &Status{File: &File{}}}).Text(&b)
	if !strings.Contains(b.String(), "no kernel's log tells of a panic, an oops or a hang") {
		t.Error(b.String())
	}
}

// TestBugReportWithoutKernels: machines that run something else are there, with why
// there is no more of them.
func TestBugReportWithoutKernels(t *testing.T) {
	const text = uint64(nestedtest.Text)
	w := nestedtest.New()
	v := w.Guest().CPU(text, text+0x3f00)
	w.Save(0, v, text+0x103, text+0x3f00)
	s := session.New(nestedtest.Still{World: w, Runs: true})
	tower, err := s.Look(t.Context(), session.Full)
	if err != nil {
		t.Fatal(err)
	}
	r := NewBugReport(s, NewStatus(s, nil, RAM{}), BugOptions{LogLines: 5})
	if len(r.Machines) != len(tower.Machines) || len(r.Machines) == 0 {
		t.Fatalf("%d machines, the tower has %d", len(r.Machines), len(tower.Machines))
	}
	for i, m := range tower.Machines {
		got := r.Machines[i]
		if got.Machine != m.Name || len(got.Problems) == 0 || got.Stacks != nil || got.Log != nil || (got.SecondStage == nil) != (m.Second == nil) {
			t.Errorf("%+v", got)
		}
	}
}

// TestSecondStageState counts what there is.
func TestSecondStageState(t *testing.T) {
	const text = uint64(nestedtest.Text)
	w := nestedtest.New()
	g := w.Guest()
	v := g.CPU(text, text+0x3f00)
	s := session.New(nestedtest.Still{World: w, State: nil})
	_ = v
	if _, err := s.Look(t.Context(), session.Full); err != nil {
		t.Fatal(err)
	}
	var vm *machine.Machine
	for _, m := range s.Tower().Machines {
		if m.Second != nil {
			vm = m
		}
	}
	if vm == nil {
		t.Fatalf("no guest in %v", s.Names())
	}
	var mapped, counted uint64
	for _, r := range vm.Phys.PhysRanges() {
		mapped += r.Size()
	}
	state := newSecondStageState(vm)
	for _, p := range state.Pages {
		counted += p.Size * p.Count
	}
	if mapped != counted || counted == 0 || len(state.Problems) != 0 {
		t.Errorf("%d bytes mapped, %d counted, %q", mapped, counted, state.Problems)
	}
}

// TestWatchedText: whether a machine was kept, and where, is said once and plainly.
func TestWatchedText(t *testing.T) {
	i := Incident{Class: "crash", Machine: "vm0", What: "says: Kernel panic"}
	for _, c := range []struct{ saved, err, want string }{
		{"d", "", "\nsaved in d\nlook at it with: nestdbg -t d COMMAND\n"},
		{"d", "it has no registers", "\nsaved in d, but it has no registers\nlook at it with: nestdbg -t d COMMAND\n"},
		{"", "no space", "\nnot saved: no space\n"},
	} {
		var b strings.Builder
		(&Watched{Incidents: []Incident{i}, Saved: c.saved, Error: c.err}).Text(&b)
		if _, got, _ := strings.Cut(b.String(), "Kernel panic"); got != c.want {
			t.Errorf("%q", got)
		}
	}
}
