package report

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strings"
	"time"
)

// Text implements Report.
func (r *BugReport) Text(w io.Writer) {
	fmt.Fprintf(w, "nestdbg report, %s, by nestdbg %s\n", r.Made.Format(time.RFC3339), r.Nestdbg)
	for _, line := range r.Reason {
		fmt.Fprintln(w, printable(line))
	}
	fmt.Fprintf(w, "\n== what died ==\n\n%s\n== the tower ==\n\n%s", clean(r.troubleText), clean(r.Tower.Text))
	for i := range r.Machines {
		r.Machines[i].text(w)
	}
}

// clean is a text without what a terminal would obey: there is more from guests in it
// than its lines know.
func clean(text func(io.Writer)) string {
	var b bytes.Buffer
	text(&b)
	var out strings.Builder
	for line := range strings.Lines(b.String()) {
		line, ended := strings.CutSuffix(line, "\n")
		out.WriteString(printable(line))
		if ended {
			out.WriteByte('\n')
		}
	}
	return out.String()
}

// troubleText says in a line each what the kernels say of themselves.
func (r *BugReport) troubleText(w io.Writer) {
	if len(r.Troubles) == 0 {
		fmt.Fprintln(w, "no kernel's log tells of a panic, an oops or a hang")
	}
	for i := range r.Troubles {
		fmt.Fprintln(w, r.Troubles[i].line())
	}
	for i := range r.Machines {
		if m := &r.Machines[i]; m.PanicCPU != nil {
			fmt.Fprintf(w, "%s is in its panic, on CPU %d\n", m.Machine, *m.PanicCPU)
		}
	}
}

func (t *Trouble) line() string {
	who := ""
	if t.CPU != nil {
		who = fmt.Sprintf(" (CPU %d, task %d)", *t.CPU, *t.PID)
	}
	first, _, _ := strings.Cut(t.Text, "\n")
	return fmt.Sprintf("%s %s at %d.%06d%s: %s", t.Machine, t.Kind, t.TimeNs/1e9, t.TimeNs%1e9/1000, who, printable(first))
}

func (s *MachineState) text(w io.Writer) {
	fmt.Fprintf(w, "\n== %s ==\n", s.Machine)
	for _, p := range s.Problems {
		fmt.Fprintf(w, "\nnot known: %s\n", printable(p))
	}
	for _, part := range s.parts() {
		fmt.Fprintf(w, "\n-- %s --\n\n%s", part.Title, part.Body)
	}
}

// bugPart is a part of a machine's report, rendered.
type bugPart struct{ Title, Body string }

// parts are what is there of a machine.
func (s *MachineState) parts() (out []bugPart) {
	add := func(title string, r Report) {
		out = append(out, bugPart{title, clean(r.Text)})
	}
	if s.Stacks != nil {
		add("CPUs, tasks in trouble, tasks that are blocked", s.Stacks)
	}
	if s.SecondStage != nil {
		add("second stage", s.SecondStage)
	}
	if s.Log != nil {
		title := "log"
		if s.LogBefore > 0 {
			title = fmt.Sprintf("log, after %d records", s.LogBefore)
		}
		add(title, s.Log)
	}
	return out
}

// Text implements Report.
func (s *SecondStageState) Text(w io.Writer) {
	fmt.Fprintf(w, "%s, root %s\n", s.Kind, s.Root)
	for _, c := range s.Roots {
		fmt.Fprintf(w, "CPU %d is on another root, %s\n", c.CPU, c.Root)
	}
	for _, p := range s.Pages {
		fmt.Fprintf(w, "%10d pages of %s, %s\n", p.Count, size(p.Size), p.Perm)
	}
	if s.Cut {
		fmt.Fprintf(w, "and more: only %d pages were counted\n", maxPages)
	}
	for _, x := range s.Slots {
		fmt.Fprintf(w, "memory %016x-%016x is at %s of the VMM\n", uint64(x.First), uint64(x.Last), x.User)
	}
	for _, p := range s.Problems {
		fmt.Fprintf(w, "not walked: %s\n", p)
	}
}

//go:embed bugreport.html
var bugReportHTML string

// HTML writes the report as one page that needs nothing else: no script, no other
// file, and nothing of a guest's that is not text.
func (r *BugReport) HTML(w io.Writer) error {
	t, err := template.New("report").Parse(bugReportHTML)
	if err != nil {
		return err
	}
	page := bugPage{Made: r.Made.Format(time.RFC3339), Nestdbg: r.Nestdbg, Bad: len(r.Troubles) > 0,
		Died: clean(r.troubleText), Tower: clean(r.Tower.Text)}
	for _, line := range r.Reason {
		page.Reason = append(page.Reason, printable(line))
	}
	for i := range r.Machines {
		m := &r.Machines[i]
		out := bugMachine{Name: m.Machine, Parts: m.parts()}
		for _, p := range m.Problems {
			out.Problems = append(out.Problems, printable(p))
		}
		page.Machines = append(page.Machines, out)
	}
	return t.Execute(w, page)
}

// bugPage is what the page's template gets: text.
type bugPage struct {
	Made, Nestdbg string
	Reason        []string
	Bad           bool
	Died, Tower   string
	Machines      []bugMachine
}

type bugMachine struct {
	Name     string
	Problems []string
	Parts    []bugPart
}
