package tests

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// The answers of --json as a script would read them: only what is promised, and
// not with the types of package report.

// address is one, a JSON string with 0x.
type address uint64

func (a *address) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	digits, ok := strings.CutPrefix(s, "0x")
	v, err := strconv.ParseUint(digits, 16, 64)
	if !ok || err != nil {
		return fmt.Errorf("%q is no address", s)
	}
	*a = address(v)
	return nil
}

type statusReport struct {
	QEMU struct {
		Version, Accel string
		PID            int
	}
	RAM struct {
		Source, File string
		Size         uint64
	}
	Running  bool
	Machines []machineReport
	Problems []string
}

type machineReport struct {
	Name        string
	Level       int
	Parent      string
	Arch        string
	SecondStage *struct {
		Kind string
		Root address
	} `json:"second_stage"`
	OS     string
	Kernel *struct {
		Release string
		BuildID string  `json:"build_id"`
		TextVA  address `json:"text_va"`
		Slide   address
	}
	VCPUs []struct {
		Index int
		State string
		CPU   *int
		RIP   *address
		In    string
	}
}

// machine finds a machine of the report, which must be there.
func (s *statusReport) machine(t testing.TB, name string) *machineReport {
	t.Helper()
	for i := range s.Machines {
		if s.Machines[i].Name == name {
			return &s.Machines[i]
		}
	}
	t.Fatalf("no machine %s in %+v", name, s)
	return nil
}

type vtopReport struct {
	Machine string
	VA      *address
	Steps   []struct {
		Stage, Level int
		Table        address
		Index        uint
		Entry        address
		Flags        []string
	}
	PA         *address
	ParentPA   *address `json:"parent_pa"`
	FileOffset *address `json:"file_offset"`
	Fault      string
}

type memoryReport struct {
	Machine string
	Lines   []struct {
		Addr  address
		Bytes string
	}
	Fault string
}

// bytes are all bytes of the report, which must follow each other from addr on.
func (m *memoryReport) bytes(t testing.TB, addr uint64) []byte {
	t.Helper()
	var out []byte
	for _, line := range m.Lines {
		if uint64(line.Addr) != addr+uint64(len(out)) {
			t.Fatalf("line at %#x, want %#x", uint64(line.Addr), addr+uint64(len(out)))
		}
		out = append(out, unhex(t, line.Bytes)...)
	}
	return out
}

type mapsReport struct {
	Machine string
	Stage   int
	Ranges  []struct {
		First, Last, PA address
		ParentPA        *address `json:"parent_pa"`
		Perm            string
	}
	Problems []string
	Cut      bool
}

type registersReport struct {
	Machine string
	CPUs    []struct {
		Index         int
		State, Source string
		Registers     map[string]*string
	}
}

// decode reads an answer of --json.
func decode[T any](t testing.TB, text string) *T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return &v
}

// checkShape checks that fields of a JSON text are there and of the right type. A
// path "a[].b" means b of every element of a; a type "T?" may be null.
func checkShape(t testing.TB, text string, want map[string]string) {
	t.Helper()
	var doc any
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	for path, kind := range want {
		for _, problem := range shapeProblems(doc, strings.Split(path, "."), kind) {
			t.Errorf("%s: %s", path, problem)
		}
	}
}

func shapeProblems(v any, path []string, kind string) []string {
	if len(path) == 0 {
		if ok, isKind := matches(v, strings.TrimSuffix(kind, "?")), strings.HasSuffix(kind, "?"); ok || isKind && v == nil {
			return nil
		}
		return []string{fmt.Sprintf("%v (%T) is no %s", v, v, kind)}
	}
	if v == nil && strings.HasSuffix(kind, "?") {
		return nil
	}
	name, each := strings.CutSuffix(path[0], "[]")
	object, ok := v.(map[string]any)
	if !ok {
		return []string{fmt.Sprintf("%v (%T) has no fields", v, v)}
	}
	field, ok := object[name]
	if !ok {
		return []string{fmt.Sprintf("there is no %q", name)}
	}
	if !each {
		return shapeProblems(field, path[1:], kind)
	}
	list, ok := field.([]any)
	if !ok || len(list) == 0 {
		return []string{fmt.Sprintf("%s is no list with something in it", name)}
	}
	var out []string
	for _, e := range list {
		out = append(out, shapeProblems(e, path[1:], kind)...)
	}
	return out
}

func matches(v any, kind string) bool {
	switch kind {
	case "string":
		_, ok := v.(string)
		return ok
	case "number":
		_, ok := v.(float64)
		return ok
	case "list":
		_, ok := v.([]any)
		return ok
	case "address":
		s, _ := v.(string)
		digits, ok := strings.CutPrefix(s, "0x")
		_, err := strconv.ParseUint(digits, 16, 64)
		return ok && err == nil
	}
	return false
}
