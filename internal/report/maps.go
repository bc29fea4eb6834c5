package report

import (
	"fmt"
	"io"

	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
)

// Maps is an address space as ranges that are contiguous in every space shown.
type Maps struct {
	Machine string     `json:"machine"`
	Stage   int        `json:"stage"`
	Kind    string     `json:"kind"`
	Root    Hex        `json:"root"`
	Ranges  []MapRange `json:"ranges"`
	// Problems is what could not be walked.
	Problems []string `json:"problems,omitempty"`
	// Cut says that there is more than was asked for.
	Cut bool `json:"cut,omitempty"`
}

// MapRange is one range. Its addresses are inclusive. PA is null where the
// first stage leads out of the machine's memory; ParentPA is null there and for
// QEMU's own machine.
type MapRange struct {
	First    Hex    `json:"first"`
	Last     Hex    `json:"last"`
	PA       Hex    `json:"pa"`
	ParentPA *Hex   `json:"parent_pa"`
	Perm     string `json:"perm"`
}

// maxProblems bounds how many unreadable tables one report lists.
const maxProblems = 20

// NewMaps reports the ranges of an address space of m within in, at most limit
// of them; stage 2 is the second stage alone.
func NewMaps(m *machine.Machine, space *paging.Space, stage int, in mem.Range, limit int) *Maps {
	r := &Maps{Machine: m.Name, Stage: stage, Kind: space.Format().Name, Root: Hex(space.Root())}
	for x, err := range paging.Merge(space.Ranges(in)) {
		if err != nil {
			if len(r.Problems) < maxProblems {
				r.Problems = append(r.Problems, err.Error())
			}
			continue
		}
		if stage == 2 || m.Parent == nil {
			r.push(MapRange{First: Hex(x.First), Last: Hex(x.First + x.Size - 1), PA: Hex(x.Phys), Perm: x.Perm.String()}, limit)
		} else {
			r.split(m, x, limit)
		}
		if r.Cut {
			break
		}
	}
	return r
}

// split cuts a first-stage range where the second stage is not contiguous.
func (r *Maps) split(m *machine.Machine, x paging.Mapping, limit int) {
	for done := uint64(0); done < x.Size && !r.Cut; {
		pa := x.Phys + mem.Phys(done)
		parent, n, _, err := m.ToParent(pa)
		piece := MapRange{First: Hex(x.First + done), PA: Hex(pa), Perm: x.Perm.String()}
		if err != nil {
			n = 4096 - uint64(pa)%4096 // the smallest page of any second stage
		} else {
			piece.ParentPA = hexPointer(uint64(parent), true)
		}
		n = min(n, x.Size-done)
		piece.Last = Hex(x.First + done + n - 1)
		r.push(piece, limit)
		done += n
	}
}

// push adds a range, joined to the one before where nothing tells them apart.
func (r *Maps) push(x MapRange, limit int) {
	if k := len(r.Ranges); k > 0 {
		last := &r.Ranges[k-1]
		length := last.Last - last.First + 1
		joined := last.Last+1 == x.First && last.PA+length == x.PA && last.Perm == x.Perm
		switch {
		case last.ParentPA == nil || x.ParentPA == nil:
			joined = joined && last.ParentPA == nil && x.ParentPA == nil
		default:
			joined = joined && *last.ParentPA+length == *x.ParentPA
		}
		if joined {
			last.Last = x.Last
			return
		}
	}
	if limit > 0 && len(r.Ranges) >= limit {
		r.Cut = true
		return
	}
	r.Ranges = append(r.Ranges, x)
}

// Text implements Report.
func (r *Maps) Text(w io.Writer) {
	fmt.Fprintf(w, "%s stage %d, %s, root %s\n", r.Machine, r.Stage, r.Kind, r.Root)
	for _, x := range r.Ranges {
		fmt.Fprintf(w, "  %016x-%016x %10s %-5s -> %#x", uint64(x.First), uint64(x.Last), size(uint64(x.Last-x.First+1)), x.Perm, uint64(x.PA))
		if x.ParentPA != nil {
			fmt.Fprintf(w, " -> %s", x.ParentPA)
		}
		fmt.Fprintln(w)
	}
	if r.Cut {
		fmt.Fprintf(w, "  ... more; --limit 0 shows all, a range after the command narrows it\n")
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "  not walked: %s\n", p)
	}
}
