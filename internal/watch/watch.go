// Package watch decides when something has happened to a machine that is worth
// keeping. It does no I/O: who looks at the machine tells it what was seen (records of
// logs, what machines there are and what their CPUs do, QEMU's events and state), and
// gets incidents.
//
// It is conservative. What a kernel says in its own log counts, what a program writes
// there does not. A machine hangs if it says so, or if its clock stands while it has
// something to do; one that waits for an interrupt may wait for ever.
package watch

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"nestdbg/internal/linux"
)

// Class is a class of incidents that a person asks for.
type Class int

// The classes.
const (
	Crash Class = iota
	Reset
	Shutdown
	Hang
)

var classNames = []string{"crash", "reset", "shutdown", "hang"}

func (c Class) String() string { return classNames[c] }

// ParseClasses reads a list of classes, "crash,hang".
func ParseClasses(list string) ([]Class, error) {
	var out []Class
	for name := range strings.SplitSeq(list, ",") {
		i := slices.Index(classNames, name)
		if i < 0 {
			return nil, fmt.Errorf("no class %q; there are: %s", name, strings.Join(classNames, " "))
		}
		out = append(out, Class(i))
	}
	return out, nil
}

// Incident is something that a person wants to know of, and to keep.
type Incident struct {
	Class   Class
	Machine string // "l1", "vm0"; "qemu" for QEMU itself
	What    string // in a line, with the words of others in it; the machine is its subject
	// Late says what may be gone already, and what would have kept it; empty if
	// nothing is.
	Late string
}

// Options say what is watched for.
type Options struct {
	Classes []Class
	// HangAfter is how long a machine may make no progress.
	HangAfter time.Duration
}

// Watcher watches one life of a QEMU. It is for one goroutine.
type Watcher struct {
	opt      Options
	machines map[string]*state
	looked   time.Time // of the last look at a machine that ran; zero if it stood
	qemu     string    // QEMU's state
	ending   bool      // QEMU said that it ends, or why it stands
	reset    bool      // it stands because it was about to be reset
	reason   string    // QEMU's word for that
	resumed  bool      // the RESET to come is ours
}

// state is what is known of one machine.
type state struct {
	kernel   string
	troubles linux.TroubleFinder
	told     map[linux.TroubleKind]int // incidents made of troubles
	word     string                    // why it said that it ends, if it did
	over     bool                      // its end was an incident already
	missing  int                       // looks in a row that did not find it

	clock *uint64
	moved bool // its clock went since it was first seen
	stood bool // its clock had not gone at the last look
	still time.Duration
	hung  bool // said, and its clock has not moved since
}

// oopsesMax is how many oopses of one life of a machine are incidents.
const oopsesMax = 3

// New returns a watcher that has seen nothing.
func New(opt Options) *Watcher {
	return &Watcher{opt: opt, machines: make(map[string]*state)}
}

// of is the state of a machine.
func (w *Watcher) of(name string) *state {
	s := w.machines[name]
	if s == nil {
		s = &state{told: make(map[linux.TroubleKind]int)}
		w.machines[name] = s
	}
	return s
}

// wants reports whether incidents of a class are asked for.
func (w *Watcher) wants(c Class) bool { return slices.Contains(w.opt.Classes, c) }

// end makes an incident of a machine's end, the first time that somebody wants.
func (w *Watcher) end(i Incident) []Incident {
	s := w.of(i.Machine)
	if s.over || !w.wants(i.Class) {
		return nil
	}
	s.over = true
	return []Incident{i}
}

// Log takes records of a machine's log, in order. fresh says that they came while
// somebody watched; of those that did not only a panic counts, for it is not over.
func (w *Watcher) Log(name string, records []linux.LogRecord, fresh bool) (out []Incident) {
	s := w.of(name)
	for i := range records {
		r := &records[i]
		if !s.troubles.Add(r) {
			continue
		}
		kind := s.troubles.Newest()
		if kind != linux.Panic && !fresh {
			continue
		}
		if x := w.trouble(name, s, kind, firstLine(r.Text)); x != nil {
			if len(out) > 0 && out[len(out)-1].Class == x[0].Class {
				out = out[:len(out)-1] // an oops that is a panic
			}
			out = append(out, x...)
		}
	}
	return out
}

// trouble makes an incident of what a kernel says, if it is to be one.
func (w *Watcher) trouble(name string, s *state, kind linux.TroubleKind, text string) []Incident {
	s.told[kind]++
	i := Incident{Machine: name, What: "says: " + text}
	switch kind {
	case linux.Panic:
		i.Class, s.word = Crash, "its panic"
		return w.end(i)
	case linux.Restart:
		i.Class, s.word = Reset, "its word that it restarts"
		return w.end(i)
	case linux.PowerDown:
		i.Class, s.word = Shutdown, "its word that it powers down"
		return w.end(i)
	case linux.Oops:
		i.Class = Crash
		if s.told[kind] > oopsesMax {
			return nil
		}
	default:
		i.Class = Hang
		if s.told[kind] > 1 {
			return nil
		}
	}
	if s.over || !w.wants(i.Class) {
		return nil
	}
	return []Incident{i}
}

// Panics takes that a machine is about to panic, before it says so.
func (w *Watcher) Panics(name string) []Incident {
	w.of(name).word = "its panic"
	return w.end(Incident{Class: Crash, Machine: name,
		What: "has called panic, and stands at the first instruction of that: its stack says why, its log not yet"})
}

// ShutsDown takes that a CPU of a machine has shut down and that its hypervisor is about
// to deal with it.
func (w *Watcher) ShutsDown(name string) []Incident {
	w.of(name).word = "a triple fault"
	return w.end(Incident{Class: Crash, Machine: name, What: "has shut down its CPU, as after a triple fault, and its hypervisor has not dealt with it yet"})
}

// Over reports whether the end of a machine was an incident already.
func (w *Watcher) Over(name string) bool {
	s := w.machines[name]
	return s != nil && s.over
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// Machine is what a look shows of one machine.
type Machine struct {
	Name string
	// Kernel tells one kernel, in one life, from another; empty if none is known.
	Kernel string
	Clock  *uint64 // ticks; nil if not known
	CPUs   []CPU
	// Faulted says that a CPU of it has shut down, and who says so; empty if not.
	Faulted string
}

// CPU is what a look shows of a CPU.
type CPU struct {
	Waits bool // for an interrupt, in HLT
	Deaf  bool // it takes no interrupts, as far as known
	Where string
}

// Stood is for a machine that was stopped for whoever watches: that time is nobody's.
func (w *Watcher) Stood() { w.looked = time.Time{} }

// missingLooks is in how many looks a machine has to be missing: a list that changes
// while it is read may lack one.
const missingLooks = 2

// Look takes what machines there are. running says whether QEMU's machine runs.
func (w *Watcher) Look(now time.Time, running bool, seen []Machine) (out []Incident) {
	passed := time.Duration(0)
	if running && !w.looked.IsZero() {
		passed = min(now.Sub(w.looked), w.opt.HangAfter/4)
	}
	w.looked = time.Time{}
	if running {
		w.looked = now
	}
	for i := range seen {
		m := &seen[i]
		s := w.of(m.Name)
		s.missing = 0
		if s.kernel != "" && m.Kernel != "" && m.Kernel != s.kernel {
			out = append(out, w.anew(m.Name, s)...)
			s = w.of(m.Name)
		}
		if m.Kernel != "" {
			s.kernel = m.Kernel
		}
		if m.Faulted != "" {
			s.word = "a triple fault"
			out = append(out, w.end(Incident{Class: Crash, Machine: m.Name, What: "has shut down its CPU, as after a triple fault, says " + m.Faulted,
				Late: "the CPU may be reset already"})...)
		}
		out = append(out, w.progress(s, m, passed)...)
	}
	for name, s := range w.machines {
		if slices.ContainsFunc(seen, func(m Machine) bool { return m.Name == name }) {
			continue
		}
		if s.missing++; s.missing == missingLooks {
			out = append(out, w.vanished(name, s)...)
			delete(w.machines, name)
		}
	}
	slices.SortFunc(out, func(a, b Incident) int { return strings.Compare(a.Machine, b.Machine) })
	return out
}

// anew is for a machine that runs another kernel than before: its new life begins.
func (w *Watcher) anew(name string, s *state) []Incident {
	i := Incident{Class: Reset, Machine: name, What: "started anew after " + s.word,
		Late: "its old kernel is being overwritten"}
	if s.word == "" {
		i.What = "started anew and had not said that it would: something reset it, or it was a triple fault"
	}
	out := w.end(i)
	delete(w.machines, name)
	return out
}

// vanished is for a machine that its hypervisor does not have any more.
func (w *Watcher) vanished(name string, s *state) []Incident {
	i := Incident{Class: Shutdown, Machine: name, What: "has ended after " + s.word,
		Late: "its memory is its hypervisor's again"}
	if s.word == "" {
		i.Class = Crash
		i.What = "has ended and had not said that it would: its VMM was killed or ended by itself, or it was a triple fault"
	}
	return w.end(i)
}

// progress judges whether a machine does anything.
func (w *Watcher) progress(s *state, m *Machine, passed time.Duration) []Incident {
	before := s.clock
	s.clock = m.Clock
	s.stood = before != nil && m.Clock != nil && *before == *m.Clock
	if !s.stood {
		s.moved = s.moved || before != nil && m.Clock != nil
		s.still, s.hung = 0, false
		return nil
	}
	deaf := len(m.CPUs) > 0
	idle := true
	for _, c := range m.CPUs {
		idle = idle && c.Waits && !c.Deaf
		deaf = deaf && c.Waits && c.Deaf
	}
	// Without a clock that went there is no telling: firmware, a kernel that starts. A
	// machine that is over stands, and so do the guests of one that stands.
	if idle || !s.moved || s.over || s.word != "" || m.Name != first && w.of(parent(m.Name)).stood {
		s.still = 0
		return nil
	}
	s.still += passed
	if s.hung || s.still < w.opt.HangAfter || !w.wants(Hang) {
		return nil
	}
	s.hung = true
	why := "not all of its CPUs wait for an interrupt; that of " + parent(m.Name) + " goes on"
	if m.Name == first {
		why = "not all of its CPUs wait for an interrupt"
	}
	if deaf {
		why = "its CPUs wait in HLT and take no interrupts"
	}
	i := Incident{Class: Hang, Machine: m.Name, What: fmt.Sprintf("makes no progress: its clock stands for %v, and %s", s.still.Round(time.Second), why)}
	for n, c := range m.CPUs {
		if c.Where != "" {
			i.What += fmt.Sprintf("; CPU %d %s", n, c.Where)
		}
	}
	return []Incident{i}
}

// first is the name of QEMU's own machine.
const first = "l1"

// parent is the name of the machine that a nested one runs in.
func parent(name string) string {
	if i := strings.LastIndexByte(name, '.'); i > 0 {
		return name[:i]
	}
	return first
}
