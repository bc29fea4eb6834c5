package report

import (
	"fmt"
	"io"
	"time"
)

// Watched is what a watch noticed at once, and what was made of it. For scripts it is
// one line.
type Watched struct {
	Time      time.Time  `json:"time"`
	Incidents []Incident `json:"incidents"`
	// Saved is the snapshot's directory, empty if there is none; Error says why, or
	// why it has less than it should.
	Saved  string     `json:"saved"`
	Error  string     `json:"error,omitempty"`
	Report *BugReport `json:"report,omitempty"`
}

// Incident is something that happened to a machine, which has its name in the snapshot
// if it is there.
type Incident struct {
	Class   string `json:"class"`
	Machine string `json:"machine"`
	What    string `json:"what"`
	// Late says what may be gone already.
	Late string `json:"late,omitempty"`
}

// Lines are the incidents as lines.
func (r *Watched) Lines() (out []string) {
	for _, i := range r.Incidents {
		line := fmt.Sprintf("%s %s: %s %s", r.Time.Format(time.RFC3339), i.Class, i.Machine, printable(i.What))
		if i.Late != "" {
			line += " (late: " + printable(i.Late) + ")"
		}
		out = append(out, line)
	}
	return out
}

// Text implements Report.
func (r *Watched) Text(w io.Writer) {
	for _, line := range r.Lines() {
		fmt.Fprintln(w, line)
	}
	switch {
	case r.Saved == "":
		fmt.Fprintf(w, "not saved: %s\n", printable(r.Error))
	case r.Error != "":
		fmt.Fprintf(w, "saved in %s, but %s\n", r.Saved, printable(r.Error))
	default:
		fmt.Fprintf(w, "saved in %s\n", r.Saved)
	}
	if r.Saved != "" {
		fmt.Fprintf(w, "look at it with: nestdbg -t %s COMMAND\n", r.Saved)
	}
	if r.Report != nil {
		fmt.Fprintln(w)
		r.Report.Text(w)
		fmt.Fprintln(w)
	}
}

// Note is a line that a watch says about itself.
type Note struct {
	Time time.Time `json:"time"`
	Note string    `json:"note"`
}

// Text implements Report.
func (n *Note) Text(w io.Writer) {
	fmt.Fprintf(w, "%s %s\n", n.Time.Format(time.RFC3339), printable(n.Note))
}
