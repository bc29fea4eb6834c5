package report

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"nestdbg/internal/linux"
)

// Modules are the modules that a kernel has loaded.
type Modules struct {
	Machine  string   `json:"machine"`
	Modules  []Module `json:"modules"`
	Problems []string `json:"problems,omitempty"`
}

// Module is one module, as in /proc/modules: bytes in all its regions, and where
// its text begins. Refs is how often it is needed, UsedBy by which modules; null if the
// kernel does not count. Permanent: it cannot be unloaded. Taints are letters.
type Module struct {
	Name      string   `json:"name"`
	Size      uint64   `json:"size"`
	Refs      *int     `json:"refs"`
	UsedBy    []string `json:"used_by" nil:"unknown"`
	Permanent bool     `json:"permanent,omitempty"`
	Base      Hex      `json:"base"`
	State     string   `json:"state"`
	Taints    string   `json:"taints,omitempty"`
	BuildID   string   `json:"build_id"`
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
	for i := range list {
		r.Modules = append(r.Modules, newModule(&list[i]))
	}
	return r, nil
}

func newModule(m *linux.Module) Module {
	out := Module{Name: m.Name, Size: m.Size, Base: Hex(m.Base), State: m.State.String(), Taints: m.Taints, BuildID: m.BuildID}
	if u := &m.Use; u.Counted {
		out.Refs, out.UsedBy, out.Permanent = &u.Refs, append([]string{}, u.Users...), u.Permanent
	}
	return out
}

// Text implements Report.
func (r *Modules) Text(w io.Writer) {
	const columns = "%-24s %9v %-18v %-10s %-40s %s\n"
	fmt.Fprintf(w, columns, "NAME", "SIZE", "BASE", "STATE", "BUILD ID", "USED BY")
	for i := range r.Modules {
		m := &r.Modules[i]
		id, state := m.BuildID, m.State
		if id == "" {
			id = "unknown"
		}
		if m.Taints != "" {
			state += " (" + m.Taints + ")"
		}
		fmt.Fprintf(w, columns, printable(m.Name), m.Size, m.Base, state, id, printable(m.use()))
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "not read: %s\n", p)
	}
}

// use is how often a module is needed and by which, as lsmod shows it.
func (m *Module) use() string {
	if m.Refs == nil {
		return "-"
	}
	by := m.UsedBy
	if m.Permanent {
		by = append(slices.Clip(by), "[permanent]") // as in /proc/modules
	}
	return strings.TrimSpace(fmt.Sprint(*m.Refs, " ", strings.Join(by, ",")))
}
