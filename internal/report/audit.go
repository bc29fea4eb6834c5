package report

import (
	"fmt"
	"io"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/nested"
	"nestdbg/internal/paging"
	"nestdbg/internal/session"
)

// Audit says which memory machines share, what of a hypervisor's own they reach, and what
// they may both write and execute.
type Audit struct {
	Machines []string `json:"machines"`
	// Matrix has, for every two machines, the bytes that both reach.
	Matrix   [][]uint64 `json:"matrix"`
	Shared   []Shared   `json:"shared"`
	Exposed  []Exposed  `json:"exposed"`
	Writable []Writable `json:"writable_and_executable"`
	Problems []string   `json:"problems,omitempty"`
}

// Shared is the memory that two machines reach, neither of which is inside the other.
type Shared struct {
	A      string        `json:"a"`
	B      string        `json:"b"`
	In     string        `json:"in"` // the machine both are in
	Bytes  uint64        `json:"bytes"`
	Count  int           `json:"count"`  // of ranges
	Ranges []SharedRange `json:"ranges"` // at most as many as were asked for
}

// SharedRange is one range, both ends included, in the machine that both are in, and where
// each of the two has it.
type SharedRange struct {
	First Hex    `json:"first"`
	Last  Hex    `json:"last"`
	APA   Hex    `json:"a_pa"`
	APerm string `json:"a_perm"`
	BPA   Hex    `json:"b_pa"`
	BPerm string `json:"b_perm"`
}

// Exposed is memory that a hypervisor must keep to itself and a machine in it reaches.
type Exposed struct {
	Machine string `json:"machine"`
	Of      string `json:"of"`
	What    string `json:"what"`
	First   Hex    `json:"first"` // in the physical memory of Of, both ends included
	Last    Hex    `json:"last"`
	PA      Hex    `json:"pa"` // in the physical memory of Machine
	Perm    string `json:"perm"`
}

// Writable is what a machine may both write and execute.
type Writable struct {
	Machine string      `json:"machine"`
	Bytes   uint64      `json:"bytes"`
	Count   int         `json:"count"`
	Ranges  []AddrRange `json:"ranges"`
}

// AddrRange has both ends included.
type AddrRange struct {
	First Hex `json:"first"`
	Last  Hex `json:"last"`
}

// NewAudit looks at the machines of the last look. loaded are the virtual addresses of what
// somebody says is loaded in them, by name. At most limit ranges are listed in each place;
// 0 for all.
func NewAudit(s *session.Session, loaded map[string][]mem.Range, limit int) *Audit {
	t := s.Tower()
	known := images(s, t)
	for name, ranges := range loaded {
		if m, ok := t.Machine(name); ok {
			known[m] = append(known[m], inMemory(m, ranges)...)
		}
	}
	a := nested.NewAudit(t, known)
	r := &Audit{Machines: []string{}, Matrix: [][]uint64{}, Shared: []Shared{}, Exposed: []Exposed{}, Writable: []Writable{}, Problems: a.Problems}
	place := make(map[*machine.Machine]int)
	for i, m := range a.Machines {
		place[m] = i
		r.Machines = append(r.Machines, m.Name)
		r.Matrix = append(r.Matrix, make([]uint64, len(a.Machines)))
	}
	for _, x := range a.Shared {
		i, j := place[x.A], place[x.B]
		r.Matrix[i][j], r.Matrix[j][i] = x.Bytes, x.Bytes
		if x.Inside || x.Bytes == 0 {
			continue
		}
		r.Shared = append(r.Shared, newShared(x, limit))
	}
	for _, x := range a.Exposed {
		r.Exposed = append(r.Exposed, Exposed{Machine: x.Machine.Name, Of: x.Of.Name, What: x.What,
			First: Hex(x.First), Last: Hex(x.Last), PA: Hex(x.Addr), Perm: stagePerm(x.Perm)})
	}
	for _, x := range a.Loose {
		w := Writable{Machine: x.Machine.Name, Bytes: x.Bytes, Count: len(x.Ranges), Ranges: []AddrRange{}}
		for _, p := range first(x.Ranges, limit) {
			w.Ranges = append(w.Ranges, AddrRange{Hex(p.First), Hex(p.Last)})
		}
		r.Writable = append(r.Writable, w)
	}
	return r
}

func newShared(x nested.Sharing, limit int) Shared {
	s := Shared{A: x.A.Name, B: x.B.Name, In: x.Ancestor.Name, Bytes: x.Bytes, Count: len(x.Overlaps), Ranges: []SharedRange{}}
	for _, o := range first(x.Overlaps, limit) {
		s.Ranges = append(s.Ranges, SharedRange{First: Hex(o.First), Last: Hex(o.Last),
			APA: Hex(o.A.Addr), APerm: stagePerm(o.A.Perm), BPA: Hex(o.B.Addr), BPerm: stagePerm(o.B.Perm)})
	}
	return s
}

// first cuts a list to limit; 0 is no limit.
func first[T any](list []T, limit int) []T {
	if limit > 0 && len(list) > limit {
		return list[:limit]
	}
	return list
}

// images are the kernels that are known, which their guests have no business with.
func images(s *session.Session, t *machine.Tower) map[*machine.Machine][]nested.Critical {
	out := make(map[*machine.Machine][]nested.Critical)
	for _, m := range t.Machines {
		k, err := s.Kernel(m)
		if err != nil || len(t.Children(m)) == 0 {
			continue
		}
		end, ok := k.Lookup("_end")
		if !ok || end <= k.TextVA {
			continue
		}
		first := uint64(k.TextPA)
		out[m] = []nested.Critical{{Range: mem.Range{First: first, Last: first + uint64(end-k.TextVA) - 1}, What: "kernel of " + m.Name}}
	}
	return out
}

// inMemory is where the image at virtual addresses of a machine lies.
func inMemory(m *machine.Machine, ranges []mem.Range) (out []nested.Critical) {
	for _, c := range m.CPUs {
		space, err := m.Space(c)
		if err != nil {
			continue
		}
		for _, r := range ranges {
			for x, err := range space.Ranges(r) {
				if err == nil {
					out = append(out, nested.Critical{Range: mem.Range{First: uint64(x.Phys), Last: uint64(x.Phys) + x.Size - 1}, What: "image of " + m.Name})
				}
			}
		}
		if len(out) > 0 {
			break
		}
	}
	return out
}

// stagePerm is what a second stage allows; the mark for user mode means nothing there.
func stagePerm(p paging.Perm) string {
	text := p.String()
	return text[:3] + text[4:]
}

// Text implements Report.
func (r *Audit) Text(w io.Writer) {
	if len(r.Machines) == 0 {
		fmt.Fprintln(w, "there is no machine inside another")
		return
	}
	r.matrix(w)
	for _, s := range r.Shared {
		fmt.Fprintf(w, "\n%s and %s share %s of %s, in %s\n", s.A, s.B, size(s.Bytes), s.In, count(s.Count, "range"))
		for _, x := range s.Ranges {
			fmt.Fprintf(w, "  %s-%s  %s: %s %s  %s: %s %s\n", x.First, x.Last, s.A, x.APA, x.APerm, s.B, x.BPA, x.BPerm)
		}
		more(w, s.Count-len(s.Ranges))
	}
	for i, x := range r.Exposed {
		if i == 0 {
			fmt.Fprintln(w, "\nreached although it should be the hypervisor's alone:")
		}
		fmt.Fprintf(w, "  %s reaches the %s: %s-%s in %s is at %s, %s\n", x.Machine, x.What, x.First, x.Last, x.Of, x.PA, x.Perm)
	}
	for i, x := range r.Writable {
		if i == 0 {
			fmt.Fprintln(w, "\nwritable and executable:")
		}
		fmt.Fprintf(w, "  %s: %s in %s\n", x.Machine, size(x.Bytes), count(x.Count, "range"))
		for _, p := range x.Ranges {
			fmt.Fprintf(w, "    %s-%s\n", p.First, p.Last)
		}
		more(w, x.Count-len(x.Ranges))
	}
	if len(r.Shared) == 0 && len(r.Exposed) == 0 {
		fmt.Fprintln(w, "\nno two machines share memory, and none reaches what is its hypervisor's alone, as far as that is known and by what second stages map now")
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "not sure: %s\n", p)
	}
}

// matrix shows the bytes that every two machines share.
func (r *Audit) matrix(w io.Writer) {
	fmt.Fprintf(w, "%-12s", "shared")
	for _, m := range r.Machines {
		fmt.Fprintf(w, " %12s", m)
	}
	fmt.Fprintln(w)
	for i, m := range r.Machines {
		fmt.Fprintf(w, "%-12s", m)
		for j := range r.Machines {
			text := "-"
			if n := r.Matrix[i][j]; n > 0 {
				text = size(n)
			}
			fmt.Fprintf(w, " %12s", text)
		}
		fmt.Fprintln(w)
	}
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func more(w io.Writer, n int) {
	if n > 0 {
		fmt.Fprintf(w, "    ... %d more; --limit 0 shows all\n", n)
	}
}
