// Package nested finds the machines that run inside a machine and builds the
// tower. What a CPU says about itself comes first, then the hypervisor's own
// lists where its kernel is understood, then control blocks found by content;
// every machine carries the evidence for it.
package nested

import (
	"cmp"
	"fmt"
	"slices"

	"nestdbg/internal/arch"
	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
)

// Options says what a search may use.
type Options struct {
	// Kernel answers which Linux runs in a machine, nil if none is known. It
	// gives the hypervisor's own view of its guests.
	Kernel func(*machine.Machine) *linux.Kernel
	// Scan looks through all memory for control blocks. Without it only those
	// are used that a CPU points at, the hypervisor lists, or were known before.
	Scan bool
	// Progress is told how far a search of memory is; it may be nil.
	Progress Progress
	// Hints are what the person says is there.
	Hints []Hint

	made   []madeBlock                  // of a machine's guests, known from its hypervisor's memory
	sweeps *sweeps                      // of the search under way
	inners map[*machine.CPU]*innerGuest // that the machine's CPUs are in, where they are no hardware
}

// technology is one hardware interface for nested machines (SVM, VMX).
type technology interface {
	name() string
	// executing returns the control block a CPU runs its guest on now.
	executing(cpu *arch.Registers) (control mem.Phys, ok bool)
	// lastUsed returns the control block of the CPU's last entry, if it says so.
	lastUsed(cpu *arch.Registers) (control mem.Phys, ok bool)
	// current returns the second stage that an executing CPU walks now.
	current(cpu *arch.Registers) (*paging.Format, mem.Phys, error)
	// host returns the hypervisor's own state while its guest executes.
	host(parent *machine.Machine, cpu *arch.Registers) (*arch.Registers, string, error)
	// saved finds the hypervisor's own state of when it entered a control block: at the
	// address at, or if that is 0 by searching, and says where it is.
	saved(m *machine.Machine, control, at mem.Phys) (*arch.Registers, mem.Phys, error)
	// enter gives registers that are a guest's the hidden state of a CPU that runs a
	// control block. host is the hypervisor's own state, nil if that is not known, and
	// save its address.
	enter(m *machine.Machine, cpu *arch.Registers, control, save mem.Phys, host *arch.Registers) error
	// entering returns the control block that the entry instruction at the CPU's
	// program counter would enter.
	entering(cpu *arch.Registers) (control mem.Phys, ok bool)
	// entries are the entry instructions of a hypervisor of which code reads the memory:
	// its exits have been to the address behind.
	entries(code mem.VirtReader, behind uint64) []uint64
	// afterEntry is where the CPU, at an entry instruction before next, can come to when
	// that is over.
	afterEntry(c *machine.CPU, next uint64) []uint64
	// land says where the guest CPU continues after the next entry with this
	// control block.
	land(m *machine.Machine, c *machine.CPU, page []byte) (Landing, error)
	// delivering reports whether a control block says that its guest has been
	// given an event and has not left since; false if it cannot be read.
	delivering(memory mem.PhysReader, control mem.Phys) bool
	// describe decodes a control block for people. It takes any page, also one that is
	// not plausible: what is wrong with it is what is asked.
	describe(parent *machine.Machine, page []byte) (*Description, error)
	// quickReject says that a page is no control block, at the cost of a cache line.
	quickReject(page []byte) bool
	// parse decodes a page that may be a control block; ok is its plausibility.
	parse(parent *machine.Machine, page []byte) (block controlBlock, ok bool)
	// take is parse for a page of which a CPU, a hypervisor or a person says that it is a
	// control block: one that breaks its rules is one all the same, and its entry fails.
	// The error says why no machine can be made of it; an errStageUnknown comes with the
	// block.
	take(parent *machine.Machine, page []byte) (controlBlock, error)
}

// controlBlock is what one VMCB or VMCS says.
type controlBlock struct {
	regs     *arch.Registers // the guest's state as of its last exit
	second   *paging.Format
	root     mem.Phys
	why      string // the last exit, in words
	evidence []string
	against  []string    // what a control block would have that this has not
	score    int         // how many rules of the format it follows,
	of       int         // of how many
	fault    *StageFault // that the guest left with, or nil
	refused  bool        // by its own word, the last entry failed
	// plausible says that no rule is broken without which an entry would fail.
	plausible bool
}

// technologies by architecture; a new one is a row. An entry instruction says more under
// VMX: only a CPU with a current VMCS can be at one.
var technologies = map[string][]technology{
	arch.X86.Name: {vmxTechnology{}, svmTechnology{}},
}

// technologyOf is the technology that a CPU's control block is of. What the page holds
// does not decide it: one that no entry would take may look like anything.
func technologyOf(c *machine.CPU, a *arch.Arch) (technology, error) {
	for _, tech := range technologies[a.Name] {
		if tech.name() == c.Kind {
			return tech, nil
		}
	}
	return nil, fmt.Errorf("control blocks of the kind %q are not known on %s", c.Kind, a.Name)
}

// Finder builds towers and remembers what it found, so that a machine keeps
// its name when its tables move or its CPUs come and go. Not safe for
// concurrent use.
type Finder struct {
	known []*identity
	count map[string]int // machines ever named, by parent
}

// identity is a nested machine across stops.
type identity struct {
	name, parent string
	id           uint64           // hypervisor's object, 0 if not understood
	controls     map[mem.Phys]int // the CPUs' control blocks, with the hypervisor's numbers or -1
	road         *roadFacts       // the second road to its memory, nil if not known
	// again reads what the hypervisor has of the CPU of a control block.
	again map[mem.Phys]controlReader
	seen  bool // in the search under way
}

// candidate is a control block on its way to being a CPU of a machine.
type candidate struct {
	tech     technology
	at       mem.Phys
	block    controlBlock
	on       int  // CPU of QEMU's machine that executes it now, or -1
	halted   bool // that CPU waits in the guest's HLT: the hypervisor lets it keep the CPU
	vm       uint64
	index    int // the hypervisor's number for this CPU, or -1
	fromList bool
	entered  bool                  // the hypervisor says that a CPU was in it, and of no CPU are there registers
	left     *arch.Registers       // of the CPU that left it and executed nothing since, or nil
	source   string                // of block's registers, if a CPU executes it
	fill     func(*arch.Registers) // adds registers that the hypervisor keeps elsewhere
	evidence []string
	named    bool   // a CPU, or what it saved, says that it entered it last
	given    bool   // the person says that it is one
	broken   bool   // it is not plausible: an entry fails
	score    int    // see judge
	stale    string // why it is not of a guest that is there, or ""

	live     bool          // block's registers are of a CPU that is in it, of hardware or not
	executed mem.Phys      // see machine.CPU
	merged   mem.Phys      // see machine.CPU
	inner    *innerGuest   // the guest that the CPU itself is in, or nil
	between  bool          // it is being taken there or back
	away     bool          // it is in one of which nothing is known
	again    controlReader // or nil
}

// Build makes the tower above root, whose CPUs hold the device state: the
// state of whatever executes. It replaces the registers of CPUs that host a
// guest by the hypervisor's own.
func (f *Finder) Build(root *machine.Machine, opt Options) *machine.Tower {
	t := &machine.Tower{Machines: []*machine.Machine{root}}
	opt.sweeps = &sweeps{}
	for _, id := range f.known {
		id.seen = false
	}
	f.children(t, root, opt)
	f.known = slices.DeleteFunc(f.known, func(id *identity) bool { return !id.seen })
	return t
}

// maxLevel bounds how deep machines are looked for. A guest that maps its
// hypervisor's memory shows that hypervisor again, with the same guests, one
// level deeper each time.
const maxLevel = 8

// children finds and adds the machines directly inside m, then theirs.
func (f *Finder) children(t *machine.Tower, m *machine.Machine, opt Options) {
	found := make(map[mem.Phys]*candidate)
	problem := func(format string, args ...any) {
		t.Problems = append(t.Problems, m.Name+": "+fmt.Sprintf(format, args...))
	}
	settle(m, opt, problem)
	for _, tech := range technologies[m.Arch.Name] {
		executing(m, tech, found, opt.inners, problem)
		f.remembered(m, tech, found)
	}
	f.recall(m, found)
	listed, roads := byHypervisor(m, found, opt, problem)
	if !listed {
		f.deeperAgain(m, found, problem)
	}
	if opt.Scan && !listed {
		for _, tech := range technologies[m.Arch.Name] {
			scan(m, tech, found, opt, problem)
		}
		byPageState(m, found, opt)
	}
	hinted(m, found, opt.Hints)
	addMade(m, opt.made, found)
	var made map[mem.Phys][]madeBlock
	if !listed {
		judge(m, found)
		if opt.Scan {
			made = findMerged(m, found, problem)
		}
	}
	groups := hintedStages(m, group(found, listed), opt.Hints)
	if len(groups) > 0 && m.Level >= maxLevel {
		problem("it has guests at level %d, deeper than anything real", m.Level+1)
		return
	}
	for _, g := range groups {
		child := f.machine(m, g, roads)
		t.Machines = append(t.Machines, child)
		f.children(t, child, Options{Kernel: opt.Kernel, Hints: opt.Hints, inners: enterInner(child, g, problem),
			made: made[g[0].block.root]})
	}
}

// executing adds the control blocks that m's CPUs run a guest on now, and
// those they used last. inners are of CPUs whose own state is not where hardware has it.
func executing(m *machine.Machine, tech technology, found map[mem.Phys]*candidate,
	inners map[*machine.CPU]*innerGuest, problem func(string, ...any)) {
	for _, c := range m.CPUs {
		device := c.Regs
		if at, ok := tech.executing(device); ok {
			cand, err := executingCandidate(m, tech, c, at)
			if err != nil {
				problem("CPU %d runs a guest (%s at %#x): %v", c.Index, tech.name(), at, err)
			} else {
				found[at] = cand
			}
			host, source, err := tech.host(m, device)
			if in := inners[c]; in != nil {
				if err != nil {
					host = nil
				}
				host, source = in.own(host)
				err = nil
			}
			if err != nil {
				problem("CPU %d: its own state while its guest runs: %v", c.Index, err)
				host, source = arch.NewRegisters(m.Arch), "not known"
			}
			c.State, c.Regs, c.Source, c.Why = machine.Hosting, host, source, ""
			c.EntryPC, _ = host.PC()
			continue
		}
		if host, _, err := tech.host(m, device); err == nil {
			c.EntryPC, _ = host.PC() // of its last entry
		}
		at, ok := tech.lastUsed(device)
		if ok {
			c.Entered = at
		}
		if ok && found[at] == nil {
			if cand := taken(m, tech, at); cand != nil {
				cand.evidence = append(cand.evidence, fmt.Sprintf("last entered by CPU %d", c.Index))
				cand.named = true
				if pc, ok := device.PC(); ok && pc == c.EntryPC {
					cand.left = device
				}
				found[at] = cand
			}
		}
	}
}

func executingCandidate(m *machine.Machine, tech technology, c *machine.CPU, at mem.Phys) (*candidate, error) {
	format, root, err := tech.current(c.Regs)
	if err != nil {
		return nil, err
	}
	// What the CPU says of its virtualisation is its hypervisor's, not its guest's.
	regs := c.Regs.Clone()
	for _, r := range m.Arch.Regs {
		if r.Kind == arch.Hidden {
			regs.Forget(r.Name)
		}
	}
	regs.SetControlBlock(nil)
	evidence := fmt.Sprintf("CPU %d executes it now", c.Index)
	if c.On < 0 {
		evidence = fmt.Sprintf("CPU %d is in it, and parked", c.Index)
	}
	return &candidate{
		tech: tech, at: at, source: c.Source, on: c.On, halted: c.State == machine.Halted, index: -1,
		block:    controlBlock{regs: regs, second: format.WithPhysBits(m.PhysBits), root: root, why: c.Why},
		evidence: []string{evidence}, live: true, executed: c.Executed,
	}, nil
}

// remembered adds the control blocks of machines known before.
func (f *Finder) remembered(m *machine.Machine, tech technology, found map[mem.Phys]*candidate) {
	for _, id := range f.known {
		if id.parent != m.Name {
			continue
		}
		for at := range id.controls {
			if found[at] != nil {
				continue
			}
			if cand := taken(m, tech, at); cand != nil {
				cand.evidence = append(cand.evidence, "known from before")
				found[at] = cand
			}
		}
	}
}

// recall tells candidates what was known of their control block before. What
// the hypervisor's list says later replaces it.
func (f *Finder) recall(m *machine.Machine, found map[mem.Phys]*candidate) {
	for _, id := range f.known {
		for at, index := range id.controls {
			if c := found[at]; c != nil && id.parent == m.Name {
				c.vm, c.index = id.id, index
			}
		}
	}
}

// inspect reads the page at a control block's address; nil if it is none.
func inspect(m *machine.Machine, tech technology, at mem.Phys) *candidate {
	page, err := controlPage(m, at)
	if err != nil {
		return nil
	}
	block, ok := tech.parse(m, page)
	if !ok {
		return nil
	}
	return &candidate{tech: tech, at: at, on: -1, index: -1, block: block, evidence: block.evidence}
}

// taken is inspect for a page that something else than its content says is a control
// block; nil if no machine can be made of it.
func taken(m *machine.Machine, tech technology, at mem.Phys) *candidate {
	if c := inspect(m, tech, at); c != nil {
		return c
	}
	page, err := controlPage(m, at)
	if err != nil {
		return nil
	}
	block, err := tech.take(m, page)
	if err != nil {
		return nil
	}
	return &candidate{tech: tech, at: at, on: -1, index: -1, block: block, evidence: block.evidence, broken: true}
}

const pageSize = 4096

// group sorts candidates into machines. Where the hypervisor's list is
// understood it decides; otherwise CPUs that share a second stage are one
// machine, and a block that no CPU executes must prove that it is alive.
func group(found map[mem.Phys]*candidate, listed bool) [][]*candidate {
	groups := make(map[uint64][]*candidate)
	for _, c := range found {
		if listed && !c.fromList && c.on < 0 && !c.given {
			continue // the hypervisor does not know it: a freed VM, or memory of a guest
		}
		if c.stale != "" && !c.given {
			continue
		}
		key := c.vm
		if key == 0 {
			key = uint64(c.block.root)
		}
		groups[key] = append(groups[key], c)
	}
	var out [][]*candidate
	for _, g := range groups {
		slices.SortFunc(g, func(a, b *candidate) int {
			return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(a.at, b.at))
		})
		out = append(out, g)
	}
	slices.SortFunc(out, func(a, b []*candidate) int { return cmp.Compare(a[0].at, b[0].at) })
	return out
}

// machine turns a group into a nested machine. roads are what the hypervisor said
// in this search; without, what it said before is used.
func (f *Finder) machine(parent *machine.Machine, g []*candidate, roads map[uint64]*roadFacts) *machine.Machine {
	id := f.identify(parent, g)
	if r := roads[id.id]; r != nil {
		id.road = r
	}
	child := &machine.Machine{
		Name: id.name, Level: parent.Level + 1, Parent: parent, Arch: parent.Arch, PhysBits: parent.PhysBits,
		ID: cmp.Or(id.id, uint64(g[0].at)),
	}
	stages := make(map[mem.Phys]*machine.SecondStage)
	for i, c := range g {
		s := stages[c.block.root]
		if s == nil {
			space := paging.NewSpace("second stage of "+child.Name, c.block.second, parent.Phys, c.block.root)
			s = &machine.SecondStage{Kind: c.block.second.Name, Space: space}
			stages[c.block.root] = s
		}
		cpu := newCPU(i, c, s)
		doubt(parent, cpu)
		child.CPUs = append(child.CPUs, cpu)
		for _, e := range c.says() {
			child.Evidence = append(child.Evidence, fmt.Sprintf("%s at %#x: %s", c.tech.name(), c.at, e))
		}
		// The stage a CPU walks right now is the truth; a parked one may have
		// been left behind when the hypervisor rebuilt its tables.
		if child.Second == nil || cpu.On >= 0 {
			child.Second = s
		}
	}
	child.Phys = machine.NewNestedMemory(child.Second.Space).WithRoad(id.road.in(parent), parent.Phys)
	return child
}

// says is the evidence, with what a block that breaks the rules lacks.
func (c *candidate) says() []string {
	if !c.broken {
		return c.evidence
	}
	return append(slices.Clone(c.block.against), c.evidence...)
}

// newCPU makes a CPU of a candidate. One that is in a guest of its own has that guest's
// registers; see enterInner.
func newCPU(position int, c *candidate, s *machine.SecondStage) *machine.CPU {
	if c.index >= 0 {
		position = c.index
	}
	if c.inner != nil {
		cpu := newCPU(position, c.inner.run, s)
		cpu.Control, cpu.Executed, cpu.Merged = c.at, c.executed, c.merged
		return cpu
	}
	cpu := &machine.CPU{
		Index: position, On: c.on, Control: c.at, Kind: c.tech.name(), Second: s, Regs: c.block.regs, Why: c.block.why,
		Executed: c.executed, Merged: c.merged, State: machine.Parked,
		Source: fmt.Sprintf("%s at %#x", c.tech.name(), c.at),
	}
	if c.isLost() {
		cpu.State, cpu.Control, cpu.Kind, cpu.Source = machine.Lost, 0, "", "no control block is known, so no registers"
	}
	if c.away {
		cpu.State, cpu.Why, cpu.Source = machine.Hosting, "", "not known: a CPU executes a guest of it"
	} else if c.on >= 0 {
		cpu.State, cpu.Source, cpu.Why = machine.Running, c.source, ""
		if c.halted {
			cpu.State = machine.Halted
		}
	} else if c.live {
		cpu.Source = c.source
	} else if c.fill != nil {
		c.fill(cpu.Regs)
		cpu.Source += " and the hypervisor's own copy"
	} else if c.left != nil {
		complete(cpu.Regs, c.left, arch.General)
		cpu.Source += " and the CPU that has just left it"
	}
	if c.broken && c.on < 0 {
		cpu.Why += ", and its next VM entry fails"
	}
	if c.entered && c.on < 0 {
		cpu.Why += ", and entered again: the registers are those of before"
	}
	return cpu
}

// identify finds who this group was at the last search, or names it.
func (f *Finder) identify(parent *machine.Machine, g []*candidate) *identity {
	var id *identity
	for _, k := range f.known {
		same := g[0].vm != 0 && k.id == g[0].vm
		for _, c := range g {
			_, had := k.controls[c.at]
			same = same || (g[0].vm == 0 || k.id == 0) && had
		}
		if k.parent == parent.Name && !k.seen && same {
			id = k
			break
		}
	}
	if id == nil {
		if f.count == nil {
			f.count = make(map[string]int)
		}
		name := fmt.Sprintf("vm%d", f.count[parent.Name])
		f.count[parent.Name]++
		if parent.Parent != nil {
			name = parent.Name + "." + name
		}
		id = &identity{name: name, parent: parent.Name, controls: make(map[mem.Phys]int),
			again: make(map[mem.Phys]controlReader)}
		f.known = append(f.known, id)
	}
	id.seen = true
	id.id = cmp.Or(g[0].vm, id.id)
	id.remember(g)
	for _, c := range g {
		id.controls[c.at] = c.index
	}
	return id
}
