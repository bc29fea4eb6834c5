package report

import (
	"fmt"
	"io"
	"time"

	"nestdbg/internal/mem"
	"nestdbg/internal/snapshot"
)

// Snapshot is what a snapshot says of itself.
type Snapshot struct {
	Dir      string             `json:"dir"`
	Manifest *snapshot.Manifest `json:"manifest"`
	// Checked is set by a check of everything, and Damaged are the parts of the file
	// "ram" that it found damaged.
	Checked bool        `json:"checked"`
	Damaged []ByteRange `json:"damaged,omitempty"`
}

// ByteRange is a part of a file, both ends included.
type ByteRange struct {
	First Hex `json:"first"`
	Last  Hex `json:"last"`
}

// NewSnapshot reports on a snapshot.
func NewSnapshot(dir string, m *snapshot.Manifest) *Snapshot {
	return &Snapshot{Dir: dir, Manifest: m}
}

// Check notes what a check found damaged.
func (r *Snapshot) Check(damaged []mem.Range) {
	r.Checked = true
	for _, d := range damaged {
		r.Damaged = append(r.Damaged, ByteRange{Hex(d.First), Hex(d.Last)})
	}
}

// Text implements Report.
func (r *Snapshot) Text(w io.Writer) {
	m := r.Manifest
	fmt.Fprintf(w, "%s: snapshot of %s\n", r.Dir, m.Created.Format(time.RFC3339))
	fmt.Fprintf(w, "  QEMU %s, %s, %s, PID %d: %s, %d CPUs\n",
		m.Machine.Version, m.Machine.Accel, m.Machine.Type, m.Machine.PID, m.Machine.Name, m.Machine.CPUs)
	if m.Nestdbg != "" {
		fmt.Fprintf(w, "  written by nestdbg %s\n", printable(m.Nestdbg))
	}
	fmt.Fprintf(w, "  RAM %s in %d ranges, %s stored\n", size(m.RAMSize), len(m.Ranges), size(m.RAMStored))
	stood := time.Duration(m.StoppedSeconds * float64(time.Second)).Round(100 * time.Microsecond)
	if m.DevicesLost != "" {
		fmt.Fprintf(w, "  memory alone: %s\n", printable(m.DevicesLost))
	}
	switch {
	case m.DevicesLost != "":
	case m.Live:
		fmt.Fprintf(w, "  copied while the machine ran: pages of different moments; it was stopped for %v\n", stood)
	case m.WasRunning:
		fmt.Fprintf(w, "  of one moment; the machine was stopped for %v\n", stood)
	default:
		fmt.Fprintln(w, "  of one moment; the machine stood still already")
	}
	if !r.Checked {
		return
	}
	if len(r.Damaged) == 0 {
		fmt.Fprintln(w, "  every checksum is right")
	}
	for _, d := range r.Damaged {
		fmt.Fprintf(w, "  damaged: bytes %#x to %#x of ram\n", uint64(d.First), uint64(d.Last))
	}
}
