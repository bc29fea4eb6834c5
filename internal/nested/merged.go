package nested

import (
	"fmt"
	"maps"
	"slices"

	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
)

// Where no hypervisor says which control blocks it merged, their second stages do: the one
// that a processor walks for a guest of a guest leads wherever the guest's own tables and
// those of the guest together lead. The rule is ours. That the two blocks have the same
// state proves less: it is so only until the guest's guest has run on.

// merged is what a control block turned out to be merged of.
type merged struct {
	run  *candidate // the merged one
	own  *candidate // of the guest's CPU that has the guest
	made mem.Phys   // the one that the guest made, in its own memory
}

// Read implements controlReader: it stays as it was found. Whether the guest's CPU is in its
// guest is only known while a CPU executes that.
func (x *merged) Read() (linux.ControlBlock, error) {
	return linux.ControlBlock{Kind: x.own.tech.name(), Phys: x.own.at, Current: x.own.at, Merged: x.run.at, LastInner: x.made, Untold: true}, nil
}

// sample is how many pages two ways are compared by, and enough how many have to be there.
// maxWays bounds the comparisons: a guest can fill its memory with control blocks.
const (
	sample, enough = 16, 4
	maxWays        = 1 << 16
)

// findMerged finds the merged blocks among those that were found by content, makes of each
// and of its guest's own one candidate, and returns the blocks that guests made, by the root
// of the guest's second stage.
func findMerged(m *machine.Machine, found map[mem.Phys]*candidate, problem func(string, ...any)) map[mem.Phys][]madeBlock {
	made := make(map[mem.Phys][]madeBlock)
	has := make(map[*candidate]bool)
	ways := 0
	for _, inner := range madeInside(m, found) {
		run := inner.mergedIn(m, found, &ways)
		if ways > maxWays {
			problem("more than %d ways through second stages; which of the rest are merged was not looked at", maxWays)
			break
		}
		if run == nil {
			continue
		}
		delete(found, inner.in) // it is the guest's, not its hypervisor's
		made[inner.stage.Root()] = append(made[inner.stage.Root()], madeBlock{run.tech, inner.at})
		own := inner.enteredBy(found, has)
		if own == nil {
			problem("the %s at %#x is merged for a guest of a guest, and of which CPU is not known", run.tech.name(), run.at)
			delete(found, run.at)
			continue
		}
		has[own] = true
		x := &merged{run: run, own: own, made: inner.at}
		own.again = x
		control, _ := x.Read()
		if _, err := deeper(m, found, own, control); err != nil {
			problem("%v", err)
		}
	}
	return made
}

// mergedIn is the block that was merged of this one; nil if there is none.
func (b insideBlock) mergedIn(m *machine.Machine, found map[mem.Phys]*candidate, ways *int) *candidate {
	if same, _, err := b.stage.Translate(uint64(b.second.Root())); err == nil && found[b.in].block.root == same {
		return nil // the guest sees its hypervisor's own block, and the tables that are in use
	}
	for _, at := range slices.Sorted(maps.Keys(found)) {
		run := found[at]
		if run.stale != "" && run.on < 0 || run.given || run.at == b.in || run.block.root == b.stage.Root() {
			continue
		}
		if *ways++; *ways > maxWays {
			return nil
		}
		if sameWay(m, run, b) {
			return run
		}
	}
	return nil
}

// madeBlock is a control block that a guest made, in its own memory.
type madeBlock struct {
	tech technology
	at   mem.Phys
}

// insideBlock is a control block in the memory of a guest.
type insideBlock struct {
	at, in mem.Phys      // in the guest's memory and in its hypervisor's
	stage  *paging.Space // of that guest
	second *paging.Space // that the block selects
}

// madeInside are the control blocks that were found in the memory of guests.
func madeInside(m *machine.Machine, found map[mem.Phys]*candidate) (out []insideBlock) {
	guests := make(map[mem.Phys]*candidate)
	for _, at := range slices.Sorted(maps.Keys(found)) {
		if c := found[at]; c.stale == "" && guests[c.block.root] == nil {
			guests[c.block.root] = c
		}
	}
	for _, root := range slices.Sorted(maps.Keys(guests)) {
		g := guests[root]
		stage := paging.NewSpace("second stage of a guest", g.block.second, m.Phys, root)
		guest := &machine.Machine{Name: "the guest", Level: m.Level + 1, Parent: m, Arch: m.Arch, PhysBits: m.PhysBits,
			Phys: machine.NewNestedMemory(stage), CPUs: []*machine.CPU{{Regs: g.block.regs}},
			Second: &machine.SecondStage{Kind: g.block.second.Name, Space: stage}}
		others := false // that may be in its memory
		for _, c := range found {
			others = others || c.block.root != root && c.on < 0
		}
		if !others {
			continue
		}
		pieces, _ := Reach(guest, m)
		for _, at := range slices.Sorted(maps.Keys(found)) {
			p, ok := find(pieces, at)
			if !ok || found[at].on >= 0 {
				continue
			}
			own := mem.Phys(p.at(uint64(at)))
			if c := inspect(guest, found[at].tech, own); c != nil {
				second := paging.NewSpace("second stage of a guest's guest", c.block.second, guest.Phys, c.block.root)
				out = append(out, insideBlock{at: own, in: at, stage: stage, second: second})
			}
		}
	}
	return out
}

// sameWay reports whether a block's second stage leads where that of a block in a guest's
// memory and that of the guest lead together.
func sameWay(m *machine.Machine, run *candidate, inner insideBlock) bool {
	same, seen := 0, 0
	for x, err := range run.block.second.Ranges(m.Phys, run.block.root, mem.Range{Last: ^uint64(0)}) {
		if seen++; err != nil || seen > 64*sample {
			break
		}
		middle, _, err := inner.second.Translate(x.First)
		if err != nil {
			continue // the guest has taken it back
		}
		if last, _, err := inner.stage.Translate(uint64(middle)); err != nil || last != x.Phys {
			return false
		}
		if same++; same == sample {
			break
		}
	}
	return same >= enough
}

// enteredBy is the CPU of the guest that has entered the block: the one that left for the
// entry. Of several, the first that has no guest yet; nil if there is none.
func (b insideBlock) enteredBy(found map[mem.Phys]*candidate, has map[*candidate]bool) (own *candidate) {
	for _, at := range slices.Sorted(maps.Keys(found)) {
		c := found[at]
		if c.block.root != b.stage.Root() || c.stale != "" || has[c] {
			continue
		}
		if slices.Contains(entryExits, c.block.why) {
			return c
		}
		if own == nil {
			own = c
		}
	}
	return own
}

// entryExits are the exits of a guest that enters a guest, in words.
var entryExits = []string{"VMRUN", "VMLAUNCH", "VMRESUME"}

// addMade adds the control blocks that are known to be a machine's by its hypervisor's
// memory.
func addMade(m *machine.Machine, made []madeBlock, found map[mem.Phys]*candidate) {
	for _, b := range made {
		if found[b.at] != nil {
			continue
		}
		if c := taken(m, b.tech, b.at); c != nil {
			c.evidence = append(c.evidence, fmt.Sprintf("a %s that the hypervisor of %s merged is of it", b.tech.name(), m.Name))
			found[b.at] = c
		}
	}
}
