package report

import (
	"fmt"
	"io"

	"nestdbg/internal/linux"
)

// Modules are the modules that a kernel has loaded.
type Modules struct {
	Machine  string   `json:"machine"`
	Modules  []Module `json:"modules"`
	Problems []string `json:"problems,omitempty"`
}

// Module is one module, as in /proc/modules: bytes in all its regions, and where
// its text begins.
type Module struct {
	Name    string `json:"name"`
	Size    uint64 `json:"size"`
	Base    Hex    `json:"base"`
	State   string `json:"state"`
	BuildID string `json:"build_id"`
}

// NewModules reports on the modules of a machine's kernel.
func NewModules(machine string, k *linux.Kernel) (*Modules, error) {
	list, problems, err := k.Modules()
	if err != nil && len(list) == 0 {
		return nil, err
	}
	r := &Modules{Machine: machine, Modules: []Module{}}
	if err != nil {
		r.Problems = append(r.Problems, err.Error())
	}
	for _, p := range problems {
		r.Problems = append(r.Problems, p.String())
	}
	for _, m := range list {
		r.Modules = append(r.Modules, Module{Name: m.Name, Size: m.Size, Base: Hex(m.Base),
			State: m.State.String(), BuildID: m.BuildID})
	}
	return r, nil
}

// Text implements Report.
func (r *Modules) Text(w io.Writer) {
	fmt.Fprintf(w, "%-24s %9s %-18s %-8s %s\n", "NAME", "SIZE", "BASE", "STATE", "BUILD ID")
	for _, m := range r.Modules {
		id := m.BuildID
		if id == "" {
			id = "unknown"
		}
		fmt.Fprintf(w, "%-24s %9d %-18s %-8s %s\n", printable(m.Name), m.Size, m.Base, m.State, id)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "not read: %s\n", p)
	}
}
