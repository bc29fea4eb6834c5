package nested

import (
	"cmp"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"

	"nestdbg/internal/arch"
	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
)

// State is how a candidate stands.
type State string

// The states of a candidate.
const (
	Executing State = "executing"   // a CPU is in it
	Live      State = "live"        // of a guest that is there, and on no CPU
	Given     State = "given"       // the person says so
	Refused   State = "entry fails" // as Live, and it breaks the rules of an entry
	Possible  State = "possible"    // a second stage, of which no control block is known
	Stale     State = "stale"       // it has the form, and cannot be in use
	HostSave  State = "host save"   // a hypervisor's own state while a guest runs
)

// Candidate is a page that has the form of something a guest is known by.
type Candidate struct {
	Kind    string // "VMCB", "host save area", "root of npt4"
	In      string // the machine in whose memory it is
	At      mem.Phys
	State   State
	Score   int    // 0 to 100; our own measure, it ranks and means nothing by itself
	Machine string // of the tower, that it belongs to; ""
	CPU     int    // of that machine, or -1
	Second  string // format of the second stage, "" if it is none's
	Root    mem.Phys
	Mapped  uint64  // bytes of RAM that the second stage maps, where that was counted
	PC      *uint64 // of the guest, or of the hypervisor in a host save area
	// Evidence speaks for it, Against says what does not.
	Evidence, Against []string
}

// Find searches the memory of every machine of a tower for all that a guest is known by,
// also what the tower does without, best first. Of each machine's guests the tower knows.
func Find(t *machine.Tower, opt Options) (out []Candidate, problems []string) {
	for _, m := range t.Machines {
		f := &finding{m: m, tower: t, opt: opt, blocks: make(map[mem.Phys]*candidate)}
		f.search()
		out = append(out, f.out...)
		problems = append(problems, f.problems...)
	}
	slices.SortStableFunc(out, func(a, b Candidate) int {
		return cmp.Or(cmp.Compare(rank[a.State], rank[b.State]), cmp.Compare(b.Score, a.Score))
	})
	return out, problems
}

var rank = map[State]int{Executing: 0, Given: 1, Live: 2, Refused: 3, Possible: 4, Stale: 5, HostSave: 6}

// finding is the search of one machine's memory.
type finding struct {
	m        *machine.Machine
	tower    *machine.Tower
	opt      Options
	blocks   map[mem.Phys]*candidate
	out      []Candidate
	problems []string
}

func (f *finding) problem(format string, args ...any) {
	f.problems = append(f.problems, f.m.Name+": "+fmt.Sprintf(format, args...))
}

// hostSaver is a technology that keeps the hypervisor's own state in a page of its own.
type hostSaver interface {
	// quickRejectHost says that a page is no such page, at the cost of a cache line.
	quickRejectHost(page []byte) bool
	// hostSave reads one; ok is false if it is none.
	hostSave(page []byte) (control mem.Phys, regs *arch.Registers, ok bool)
}

func (f *finding) search() {
	techs, formats := technologies[f.m.Arch.Name], stageFormats(f.m)
	limit := mem.Phys(0)
	for _, r := range f.m.Phys.PhysRanges() {
		limit = max(limit, mem.Phys(r.Last))
	}
	var tests []pageTest
	for _, tech := range techs {
		tests = append(tests, tech.quickReject)
	}
	for _, tech := range techs {
		if h, ok := tech.(hostSaver); ok {
			tests = append(tests, h.quickRejectHost)
		} else {
			tests = append(tests, func([]byte) bool { return true })
		}
	}
	for _, format := range formats {
		tests = append(tests, func(page []byte) bool { return !format.MayBeRoot(page, limit) })
	}
	hits := sweep(f.m, tests, f.opt.Progress)
	for i, tech := range techs {
		f.inspectAll(tech, hits[i])
	}
	for i, tech := range techs {
		f.hostSaves(tech, hits[len(techs)+i])
	}
	judge(f.m, f.blocks)
	f.addBlocks()
	f.roots(formats, hits[2*len(techs):])
}

// inspectAll looks at what the tower has, at what CPUs say, and at what the quick test let
// pass.
func (f *finding) inspectAll(tech technology, hits []mem.Phys) {
	for _, child := range f.tower.Children(f.m) {
		for _, c := range child.CPUs {
			if c.Kind == tech.name() {
				f.add(c.Control, taken(f.m, tech, c.Control))
			}
		}
	}
	for _, cpu := range f.m.CPUs {
		if last, ok := tech.lastUsed(cpu.Regs); ok {
			f.name(tech, last)
		}
	}
	for _, at := range hits {
		if len(f.blocks) >= maxFound {
			f.problem("more than %d pages look like a %s; the rest was not looked at", maxFound, tech.name())
			return
		}
		if f.blocks[at] == nil {
			f.add(at, inspect(f.m, tech, at))
		}
	}
	for _, h := range f.opt.Hints { // what breaks the rules, too
		if h.In != f.m.Name || h.Control != tech.name() || f.blocks[h.At] != nil {
			continue
		}
		if c, err := h.candidate(f.m, f.opt.Hints); err == nil {
			f.blocks[h.At] = c
		}
	}
}

func (f *finding) add(at mem.Phys, c *candidate) {
	if c != nil && f.blocks[at] == nil {
		f.blocks[at] = c
	}
}

// name takes it that a page is a control block which a CPU has entered; nil if it cannot be.
func (f *finding) name(tech technology, at mem.Phys) *candidate {
	f.add(at, taken(f.m, tech, at))
	c := f.blocks[at]
	if c != nil {
		c.named = true
	}
	return c
}

// hostSaves lists the pages with a hypervisor's own state, which name control blocks.
func (f *finding) hostSaves(tech technology, hits []mem.Phys) {
	h, ok := tech.(hostSaver)
	if !ok {
		return
	}
	page := make([]byte, pageSize)
	for _, at := range hits[:min(len(hits), maxFound)] {
		if _, err := f.m.Phys.ReadPhys(page, at); err != nil {
			continue
		}
		control, regs, ok := h.hostSave(page)
		if !ok {
			continue
		}
		c := Candidate{Kind: "host save area", In: f.m.Name, At: at, State: HostSave, CPU: -1,
			Evidence: []string{fmt.Sprintf("of an entry with the %s at %#x", tech.name(), control)}}
		if pc, ok := regs.PC(); ok {
			c.PC = &pc
		}
		if b := f.name(tech, control); b != nil {
			c.Score = pointsNamed
			b.evidence = append(b.evidence, fmt.Sprintf("the host save area at %#x is of an entry with it", at))
		} else {
			c.Against = append(c.Against, "no such control block is there any more")
		}
		f.out = append(f.out, c)
	}
}

// addBlocks says of every control block where it belongs, or why nowhere.
func (f *finding) addBlocks() {
	k, listed := f.hypervisor()
	children := f.tower.Children(f.m)
	for _, at := range slices.Sorted(maps.Keys(f.blocks)) {
		b := f.blocks[at]
		c := Candidate{Kind: b.tech.name(), In: f.m.Name, At: at, State: Live, Score: min(b.score, pointsCertain), CPU: -1,
			Second: b.block.second.Name, Root: b.block.root, Evidence: b.evidence, Against: b.block.against}
		if pc, ok := b.block.regs.PC(); ok {
			c.PC = &pc
		}
		if b.broken {
			c.State = Refused
		}
		switch {
		case f.belongs(&c, children) || f.merged(&c):
		case b.stale != "":
			c.State, c.Score = Stale, min(b.score, pointsStale)
			c.Against = append(slices.Clone(c.Against), b.stale)
		case listed:
			c.State, c.Score = Stale, min(b.score, pointsStale)
			c.Against = append(slices.Clone(c.Against), "the hypervisor's kernel has no such virtual CPU")
		}
		f.where(&c, k, children)
		f.out = append(f.out, c)
	}
	for _, child := range children {
		f.addGiven(child)
	}
}

// addGiven lists a machine of which the person said where its second stage is, and no
// control block is known.
func (f *finding) addGiven(child *machine.Machine) {
	if slices.ContainsFunc(child.CPUs, func(c *machine.CPU) bool { return c.Control != 0 }) {
		return
	}
	s := child.Second
	f.out = append(f.out, Candidate{Kind: "root of " + s.Kind, In: f.m.Name, At: s.Space.Root(), State: Given, Score: pointsRules,
		Machine: child.Name, CPU: -1, Second: s.Kind, Root: s.Space.Root(), Evidence: child.Evidence})
}

// belongs finds the CPU of the tower that a control block is of.
func (f *finding) belongs(c *Candidate, children []*machine.Machine) bool {
	for _, child := range children {
		for _, cpu := range child.CPUs {
			if cpu.Control != c.At {
				continue
			}
			c.Machine, c.CPU = child.Name, cpu.Index
			prefix := fmt.Sprintf("%s at %#x: ", c.Kind, uint64(c.At))
			for _, e := range child.Evidence {
				e, own := strings.CutPrefix(e, prefix)
				if own && !slices.Contains(c.Evidence, e) && !slices.Contains(c.Against, e) {
					c.Evidence = append(c.Evidence, e)
				}
				if strings.HasPrefix(e, "given by") {
					c.State = Given
				}
			}
			if cpu.On >= 0 {
				c.State, c.Score = Executing, pointsCertain
			}
			if cpu.Second != nil {
				c.Second, c.Root = cpu.Second.Kind, cpu.Second.Space.Root()
			}
			if pc, ok := cpu.Regs.PC(); ok {
				c.PC = &pc
			}
			return true
		}
	}
	return false
}

// merged finds the CPU of a guest of a guest that a control block is of which hypervisors
// in between made of several.
func (f *finding) merged(c *Candidate) bool {
	found := false
	for _, x := range f.tower.Machines { // the deepest comes last, and is the one that executes
		for _, cpu := range x.CPUs {
			executed := f.m.Parent == nil && cpu.Executed == c.At && x.Parent != nil
			if !executed && !(x.Parent == f.m && cpu.Merged != 0 && cpu.Merged == c.At) {
				continue
			}
			found = true
			c.Machine, c.CPU, c.State = x.Name, cpu.Index, Live
			if executed && cpu.On >= 0 {
				c.State, c.Score = Executing, pointsCertain
			}
		}
	}
	if found {
		c.Evidence = append(slices.Clone(c.Evidence), "made by the hypervisor of several, for a guest of a guest")
	}
	return found
}

// hypervisor is the machine's own kernel, and whether it says which guests it has.
func (f *finding) hypervisor() (k *linux.Kernel, listed bool) {
	if f.opt.Kernel == nil {
		return nil, false
	}
	if k = f.opt.Kernel(f.m); k == nil {
		return nil, false
	}
	_, _, err := k.KVMs()
	return k, err == nil
}

// where adds whose memory a stale control block is in.
func (f *finding) where(c *Candidate, k *linux.Kernel, children []*machine.Machine) {
	if c.State != Stale {
		return
	}
	for _, child := range children {
		pieces, _ := Reach(child, f.m)
		if p, ok := find(pieces, c.At); ok {
			c.Against = append(c.Against, fmt.Sprintf("it is memory of %s, at %#x there: one of its own guests', or a copy", child.Name, p.at(uint64(c.At))))
		}
	}
	if k != nil {
		if free, _, err := k.PageFree(c.At); err == nil && free {
			c.Against = append(c.Against, "its page is free by the kernel's word")
		}
	}
}

// stageFormats are the formats in which a machine's hypervisor can have second stages.
func stageFormats(m *machine.Machine) []*paging.Format {
	npt := []*paging.Format{paging.NPTFourLevel, paging.NPTFiveLevel}
	if f, err := nptFormat(m); err == nil {
		npt = []*paging.Format{f}
	}
	ept := []*paging.Format{paging.EPTFourLevel, paging.EPTFiveLevel}
	const vmxe, svme = 1 << 13, 1 << 12
	for _, c := range m.CPUs {
		if cr4, ok := c.Regs.Get("cr4"); ok && cr4&vmxe != 0 {
			return ept
		}
		if efer, ok := c.Regs.Get("efer"); ok && efer&svme != 0 {
			return npt
		}
	}
	return append(npt, ept...)
}

// minStage is how much a second stage maps that is worth a word.
const minStage = 4 * pageSize

// roots lists the second stages that no control block has.
func (f *finding) roots(formats []*paging.Format, hits [][]mem.Phys) {
	inner := f.ownTables()
	inRAM := ramOf(f.m)
	surveys := make(map[mem.Phys]*Candidate)
	for i, format := range formats {
		for _, at := range hits[i][:min(len(hits[i]), maxFound)] {
			s := format.Survey(f.m.Phys, at, inRAM)
			if !s.Sensible() || s.Bytes < minStage {
				continue
			}
			for _, table := range s.Tables {
				inner[table] = true
			}
			c := &Candidate{Kind: "root of " + format.Name, In: f.m.Name, At: at, State: Possible, CPU: -1, Second: format.Name,
				Root: at, Mapped: s.Bytes, Score: min(60, 20+2*bits.Len64(s.Bytes/minStage)),
				Evidence: []string{fmt.Sprintf("%d pages and large pages of RAM behind %d tables", s.Leaves, len(s.Tables)+1)}}
			for n, what := range map[int]string{s.Outside: "lead out of RAM", s.Malformed: "are malformed"} {
				if n > 0 {
					c.Against = append(c.Against, fmt.Sprintf("%d entries %s", n, what))
				}
			}
			slices.Sort(c.Against)
			if old := surveys[at]; old == nil || old.Mapped < c.Mapped {
				surveys[at] = c
			} else {
				old.Evidence = append(old.Evidence, "it can be read as "+format.Name+", too")
			}
		}
	}
	for _, at := range slices.Sorted(maps.Keys(surveys)) {
		if !inner[at] {
			f.out = append(f.out, *surveys[at])
		}
	}
}

// ownTables are the pages that are known to be tables: of the machine itself, and of the
// second stages of control blocks.
func (f *finding) ownTables() map[mem.Phys]bool {
	known := make(map[mem.Phys]bool)
	add := func(format *paging.Format, root mem.Phys) {
		if known[root] {
			return
		}
		pages, _ := format.TablePages(f.m.Phys, root)
		for _, a := range append(pages, root) {
			known[a] = true
		}
	}
	for _, c := range f.m.CPUs {
		if space, err := f.m.Space(c); err == nil {
			add(space.Format(), space.Root())
		}
	}
	for _, b := range f.blocks {
		add(b.block.second, b.block.root)
	}
	for _, child := range f.tower.Children(f.m) {
		for _, s := range stages(child) {
			add(s.Space.Format(), s.Space.Root())
		}
	}
	return known
}

// stages are the second stages of a machine, each once.
func stages(m *machine.Machine) []*machine.SecondStage {
	var out []*machine.SecondStage
	add := func(s *machine.SecondStage) {
		if s != nil && !slices.ContainsFunc(out, func(o *machine.SecondStage) bool { return o.Space.Root() == s.Space.Root() }) {
			out = append(out, s)
		}
	}
	add(m.Second)
	for _, c := range m.CPUs {
		add(c.Second)
	}
	return out
}
