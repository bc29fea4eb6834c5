package report

import (
	"cmp"
	"slices"
	"time"

	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/session"
)

// BugReport is what one would attach to a bug: the tower, what died and where, and of
// each machine its stacks, its second stage and the end of its log.
type BugReport struct {
	Made    time.Time `json:"made"`
	Nestdbg string    `json:"nestdbg"` // its version
	// Reason is why it was made, if not because somebody wanted it.
	Reason   []string       `json:"reason,omitempty"`
	Tower    *Status        `json:"tower"`
	Troubles []Trouble      `json:"troubles"`
	Machines []MachineState `json:"machines"`
}

// Trouble is what a kernel said of itself. CPU and Task are of whom it befell, null
// where that is not known; both are the log's own words.
type Trouble struct {
	Machine string `json:"machine"`
	Kind    string `json:"kind"`
	TimeNs  uint64 `json:"time_ns"`
	Seq     uint64 `json:"seq"`
	Text    string `json:"text"`
	CPU     *int   `json:"cpu"`
	PID     *int   `json:"pid"`
}

// MachineState is one machine of the tower.
type MachineState struct {
	Machine string `json:"machine"`
	// PanicCPU is the CPU that the kernel says is in its panic, null if none is.
	PanicCPU *int `json:"panic_cpu"`
	// Stacks are those of every CPU, of tasks that a trouble befell, and of tasks that
	// are blocked (state D).
	Stacks      *Backtraces       `json:"stacks"`
	SecondStage *SecondStageState `json:"second_stage"`
	// Log is the end of the log; LogBefore records stand before it.
	Log       *Log `json:"log"`
	LogBefore int  `json:"log_before"`
	// Problems is what could not be told, and why.
	Problems []string `json:"problems,omitempty"`
}

// SecondStageState is a second stage as a whole.
type SecondStageState struct {
	SecondStage
	// Roots are those of CPUs that are on another root than the machine.
	Roots []CPURoot `json:"roots,omitempty"`
	// Pages are what is mapped, by size and permissions, the largest first.
	Pages []PageCount `json:"pages"`
	// Slots are the guest's memory as its VMM has it, where that is known.
	Slots []MemorySlot `json:"slots,omitempty"`
	// Cut says that there is more than was counted.
	Cut      bool     `json:"cut,omitempty"`
	Problems []string `json:"problems,omitempty"`
}

// CPURoot is the root of one CPU's second stage.
type CPURoot struct {
	CPU  int `json:"cpu"`
	Root Hex `json:"root"`
}

// PageCount is how many pages of a size and kind a second stage maps.
type PageCount struct {
	Size  uint64 `json:"size"`
	Perm  string `json:"perm"`
	Count uint64 `json:"count"`
}

// MemorySlot is a piece of a guest's memory; Last is included.
type MemorySlot struct {
	First Hex `json:"first"`
	Last  Hex `json:"last"`
	User  Hex `json:"user"` // address in the VMM
}

// BugOptions says how much goes into a report.
type BugOptions struct {
	LogLines int // of each machine
}

// NewBugReport reports on the last look of a session. What of a machine cannot be read
// is a problem of that machine, and the rest is there.
func NewBugReport(s *session.Session, tower *Status, opt BugOptions) *BugReport {
	r := &BugReport{Tower: tower, Troubles: []Trouble{}}
	for _, m := range s.Tower().Machines {
		k, err := s.Kernel(m)
		if err != nil {
			k = nil
		}
		state := MachineState{Machine: m.Name}
		if m.Second != nil {
			state.SecondStage = newSecondStageState(m)
		}
		if k == nil {
			state.Problems = append(state.Problems, err.Error())
		} else {
			r.Troubles = append(r.Troubles, state.kernel(m, k, opt)...)
		}
		r.Machines = append(r.Machines, state)
	}
	return r
}

// kernel asks a machine's kernel, and returns its troubles.
func (s *MachineState) kernel(m *machine.Machine, k *linux.Kernel, opt BugOptions) []Trouble {
	if cpu, ok := k.PanicCPU(); ok {
		s.PanicCPU = &cpu
	}
	troubles := s.log(m, k, opt)
	s.Stacks = newBugStacks(NewBacktracer(m, k, k.Unwinder()), troubles)
	return troubles
}

// log reads the log, keeps its end, and returns the troubles in all of it.
func (s *MachineState) log(m *machine.Machine, k *linux.Kernel, opt BugOptions) (out []Trouble) {
	log, err := k.Log()
	var batch linux.LogBatch
	if err == nil {
		batch, err = log.Read()
	}
	if err != nil {
		s.Problems = append(s.Problems, err.Error())
	}
	for _, t := range linux.Troubles(batch.Records) {
		x := Trouble{Machine: m.Name, Kind: t.Kind.String(), TimeNs: t.Record.TimeNs, Seq: t.Record.Seq, Text: t.Record.Text}
		if t.PID >= 0 {
			x.CPU, x.PID = &t.CPU, &t.PID
		}
		out = append(out, x)
	}
	s.LogBefore = max(0, len(batch.Records)-opt.LogLines)
	batch.Records = batch.Records[s.LogBefore:]
	s.Log = NewLog(m.Name, batch, LogFilter{}, false)
	return out
}

// blocked is the state of a task that waits and cannot be interrupted.
const blocked = "D"

// newBugStacks are the stacks of every CPU, then of those tasks that a trouble befell
// or that are blocked.
func newBugStacks(b *Backtracer, troubles []Trouble) *Backtraces {
	befell := map[int]bool{}
	for _, t := range troubles {
		if t.PID != nil {
			befell[*t.PID] = true
		}
	}
	// PID 0 is that of every idle task, none of which is listed. An error is among the problems.
	_ = b.collect(func(t *linux.Task) bool { return t.State == blocked || befell[t.PID] })
	return b.Report()
}

// maxPages bounds the pages of a second stage that are counted, 16 GiB of the
// smallest: tables that refer to each other in circles map more than there is.
const maxPages = 1 << 22

// newSecondStageState counts what a second stage maps.
func newSecondStageState(m *machine.Machine) *SecondStageState {
	space := m.Second.Space
	s := &SecondStageState{SecondStage: SecondStage{Kind: m.Second.Kind, Root: Hex(space.Root())}}
	for _, c := range m.CPUs {
		if c.Second != nil && c.Second.Space.Root() != space.Root() {
			s.Roots = append(s.Roots, CPURoot{c.Index, Hex(c.Second.Space.Root())})
		}
	}
	counts := map[PageCount]uint64{}
	n := 0
	for x, err := range space.Ranges(mem.Range{Last: ^uint64(0)}) {
		if n++; n > maxPages {
			s.Cut = true
			break
		}
		if err != nil {
			if len(s.Problems) < maxProblems {
				s.Problems = append(s.Problems, err.Error())
			}
			continue
		}
		counts[PageCount{Size: x.Size, Perm: x.Perm.String()}]++
	}
	s.Pages = []PageCount{}
	for c, n := range counts {
		c.Count = n
		s.Pages = append(s.Pages, c)
	}
	slices.SortFunc(s.Pages, func(a, b PageCount) int {
		return cmp.Or(cmp.Compare(b.Size, a.Size), cmp.Compare(a.Perm, b.Perm))
	})
	if road := m.Road(); road != nil {
		for _, x := range road.Slots {
			s.Slots = append(s.Slots, MemorySlot{Hex(x.Base), Hex(uint64(x.Base) + x.Size - 1), Hex(x.User)})
		}
	}
	return s
}
