package report_test

import (
	"bytes"
	"strings"
	"testing"

	"nestdbg/internal/report"
)

// TestEmptyLists: in JSON a list of nothing is a list, at every depth; what is not known
// may be null.
func TestEmptyLists(t *testing.T) {
	for _, tt := range []struct {
		report report.Report
		want   string // what is in the JSON, without white space
	}{
		{&report.Status{}, `"machines":[]`},
		{&report.Status{Machines: []report.Machine{{}}}, `"kernel":null,"vcpus":[]`},
		{&report.VTop{}, `"va":null,"steps":[]`},
		{&report.VTop{Steps: []report.Step{{}}}, `"flags":[]`},
		{&report.Maps{}, `"ranges":[]`},
		{&report.Memory{}, `"lines":[]`},
		{&report.Memory{Lines: []report.MemoryLine{{}}}, `"values":[]`},
		{&report.Log{}, `"records":[]`},
		{&report.Tasks{Tasks: []report.Task{{}}}, `"command":null`},
		{&report.Audit{}, `"matrix":[]`},
		{&report.BugReport{}, `"troubles":[]`},
	} {
		var b bytes.Buffer
		if err := report.JSON(&b, tt.report); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(strings.Fields(b.String()), ""); !strings.Contains(got, tt.want) {
			t.Errorf("%T: no %s in %s", tt.report, tt.want, got)
		}
	}
}

func TestStatusBanner(t *testing.T) {
	const banner = "Linux version 6.1.0 (someone@somewhere) (gcc 12) #1 SMP"
	st := &report.Status{File: &report.File{}, Machines: []report.Machine{{Name: "l1", Level: 1, Kernel: &report.Kernel{Banner: banner}}}}
	var b strings.Builder
	st.Text(&b)
	if !strings.Contains(b.String(), "\n    "+banner+"\n") {
		t.Errorf("no banner: %s", &b)
	}
}
