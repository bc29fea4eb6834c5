package report

import (
	"fmt"
	"io"
)

// Export are files that were written about a kernel. Size is in bytes; BuildID is
// empty for a kernel without.
type Export struct {
	Machine  string           `json:"machine"`
	File     string           `json:"file"`
	Size     int64            `json:"size"`
	Release  string           `json:"release"`
	BuildID  string           `json:"build_id"`
	Modules  []ExportedModule `json:"modules,omitempty"`
	Problems []string         `json:"problems,omitempty"`
}

// ExportedModule is the file about one module.
type ExportedModule struct {
	Name string `json:"name"`
	File string `json:"file"`
	Size int64  `json:"size"`
}

// Text implements Report.
func (r *Export) Text(w io.Writer) {
	fmt.Fprintf(w, "%s: %s, Linux %s of %s\n", r.File, size(uint64(r.Size)), r.Release, r.Machine)
	for _, m := range r.Modules {
		fmt.Fprintf(w, "%s: %s\n", m.File, size(uint64(m.Size)))
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "missing: %s\n", p)
	}
}
