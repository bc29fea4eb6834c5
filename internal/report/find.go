package report

import (
	"fmt"
	"io"

	"nestdbg/internal/nested"
)

// Found is what a search for guests came upon, best first.
type Found struct {
	Candidates []Candidate `json:"candidates"`
	Problems   []string    `json:"problems,omitempty"`

	hidden int // candidates that were not asked for
}

// Candidate is a page by which a guest is known, or looks to be.
type Candidate struct {
	Kind     string   `json:"kind"`
	In       string   `json:"in"`
	At       Hex      `json:"at"`
	State    string   `json:"state"`
	Score    int      `json:"score"`
	Machine  string   `json:"machine,omitempty"` // of the tower, that it belongs to
	CPU      *int     `json:"cpu,omitempty"`
	Second   string   `json:"second_stage,omitempty"`
	Root     *Hex     `json:"root,omitempty"`
	Mapped   uint64   `json:"mapped,omitempty"`
	PC       *Hex     `json:"pc"`
	Evidence []string `json:"evidence"`
	Against  []string `json:"against"`
}

// NewFound reports candidates; those that cannot be in use only with all.
func NewFound(found []nested.Candidate, problems []string, all bool) *Found {
	r := &Found{Candidates: []Candidate{}, Problems: problems}
	for _, c := range found {
		if !all && (c.State == nested.Stale || c.State == nested.HostSave) {
			r.hidden++
			continue
		}
		x := Candidate{Kind: c.Kind, In: c.In, At: Hex(c.At), State: string(c.State), Score: c.Score, Machine: c.Machine,
			Second: c.Second, Mapped: c.Mapped, Evidence: append([]string{}, c.Evidence...), Against: append([]string{}, c.Against...)}
		if c.CPU >= 0 {
			x.CPU = &c.CPU
		}
		x.Root = hexPointer(uint64(c.Root), c.Second != "")
		if c.PC != nil {
			x.PC = hexPointer(*c.PC, true)
		}
		r.Candidates = append(r.Candidates, x)
	}
	return r
}

// Text implements Report.
func (r *Found) Text(w io.Writer) {
	for i := range r.Candidates {
		r.Candidates[i].text(w)
	}
	if len(r.Candidates) == 0 {
		fmt.Fprintln(w, "no guest was found")
	}
	if r.hidden > 0 {
		fmt.Fprintf(w, "%d more that cannot be in use; --all shows them\n", r.hidden)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "not sure: %s\n", p)
	}
}

func (c *Candidate) text(w io.Writer) {
	fmt.Fprintf(w, "%s at %s in %s: %s", c.Kind, c.At, c.In, c.State)
	if c.Machine != "" {
		fmt.Fprintf(w, ", %s", c.Machine)
	}
	if c.CPU != nil {
		fmt.Fprintf(w, " CPU %d", *c.CPU)
	}
	fmt.Fprintf(w, ", score %d\n", c.Score)
	if c.Root != nil {
		fmt.Fprintf(w, "    second stage %s:%s", c.Second, c.Root)
		if c.Mapped != 0 {
			fmt.Fprintf(w, ", %s of RAM", size(c.Mapped))
		}
		if c.PC != nil {
			fmt.Fprintf(w, ", pc %s", c.PC)
		}
		fmt.Fprintln(w)
	}
	for _, e := range c.Evidence {
		fmt.Fprintf(w, "    + %s\n", printable(e)) // it may name a VMM
	}
	for _, e := range c.Against {
		fmt.Fprintf(w, "    - %s\n", printable(e))
	}
}
