package report

import (
	"fmt"
	"io"
	"time"
)

// Vmcore is a machine that was written as a dump. Sizes are in bytes.
type Vmcore struct {
	Machine string `json:"machine"`
	File    string `json:"file"`
	Format  string `json:"format"`
	Size    int64  `json:"size"`
	Stored  int64  `json:"stored"` // of it, what is not in holes
	// Excluded is memory that was left out, by kind.
	Excluded []VmcoreExcluded `json:"excluded,omitempty"`
	// Live says that the pages are of different moments.
	Live           bool     `json:"live"`
	StoppedSeconds float64  `json:"stopped_seconds"`
	Problems       []string `json:"problems,omitempty"`
}

// VmcoreExcluded is a kind of memory that was left out, in bytes.
type VmcoreExcluded struct {
	Kind string `json:"kind"`
	Size uint64 `json:"size"`
}

// Text implements Report.
func (r *Vmcore) Text(w io.Writer) {
	fmt.Fprintf(w, "%s: %s of %s as %s, %s stored\n",
		r.File, size(uint64(r.Size)), r.Machine, r.Format, size(uint64(r.Stored)))
	for _, e := range r.Excluded {
		fmt.Fprintf(w, "left out: %s, %s\n", e.Kind, size(e.Size))
	}
	switch {
	case r.Live:
		fmt.Fprintln(w, "copied while the machine ran: pages of different moments")
	case r.StoppedSeconds > 0:
		fmt.Fprintf(w, "the machine was stopped for %v\n",
			time.Duration(r.StoppedSeconds*float64(time.Second)).Round(100*time.Microsecond))
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "missing: %s\n", p)
	}
}
