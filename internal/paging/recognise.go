package paging

import (
	"encoding/binary"
	"slices"

	"nestdbg/internal/mem"
)

// notPresentMark is what entries that map nothing may hold besides 0: KVM suppresses #VE in
// them (Linux 6.12 arch/x86/kvm/mmu/spte.h:SHADOW_NONPRESENT_VALUE).
const notPresentMark = 1 << 63

// maxRootEntries is how many entries a root in use has at most: of 4 levels each maps
// 512 GiB. A bound of ours.
const maxRootEntries = 16

// MayBeRoot reports whether a page of 4 KiB can be the root of a second stage of this
// format, with its tables below limit. Most pages are refused by their first word. A
// second stage maps address 0, and nothing in the upper half.
func (f *Format) MayBeRoot(page []byte, limit mem.Phys) bool {
	if len(page) != 4096 || f.EntrySize != 8 || len(f.levels) < 4 {
		return false
	}
	next, leaf, ok := f.follow(0, binary.LittleEndian.Uint64(page))
	if !ok || leaf || next == 0 || next >= limit {
		return false
	}
	present := 0
	for i := 0; i < 512; i++ {
		e := binary.LittleEndian.Uint64(page[8*i:])
		if e == 0 || e == notPresentMark {
			continue
		}
		next, leaf, ok := f.follow(0, e)
		if present++; !ok || leaf || next == 0 || next >= limit || i >= 256 || present > maxRootEntries {
			return false
		}
	}
	return true
}

// Survey is what the tables at a root look like, read as those of one format.
type Survey struct {
	Tables    []mem.Phys // those below the root, each once, ascending
	Leaves    int        // that lead to RAM
	Bytes     uint64     // that these map
	Outside   int        // leaves that lead elsewhere: devices, or nothing
	Malformed int        // entries that are present and refused, KVM's marks for MMIO among them
	Cut       bool       // there is more than was looked at
}

// Sensible reports whether this can be a second stage: it maps memory, and hardly anything
// in it is not what it should be.
func (s *Survey) Sensible() bool {
	return s.Leaves > 0 && s.Malformed <= s.Leaves/8 && s.Outside <= s.Leaves
}

// surveyTables is how many tables a survey reads at most: 64 GiB of small pages.
const surveyTables = 1 << 15

// Survey reads the tables at root. inRAM says whether a page is RAM.
func (f *Format) Survey(r mem.PhysReader, root mem.Phys, inRAM func(mem.Phys) bool) *Survey {
	s := &surveyor{format: f, reader: r, inRAM: inRAM, seen: make(map[tableAt]bool)}
	if len(f.levels) == 0 {
		return &s.out // no tables at all
	}
	s.table(0, root)
	for t := range s.seen {
		if t.level > 0 {
			s.out.Tables = append(s.out.Tables, t.at)
		}
	}
	slices.Sort(s.out.Tables)
	s.out.Tables = slices.Compact(s.out.Tables)
	return &s.out
}

type tableAt struct {
	level int // index of levels
	at    mem.Phys
}

type surveyor struct {
	format *Format
	reader mem.PhysReader
	inRAM  func(mem.Phys) bool
	seen   map[tableAt]bool
	out    Survey
}

// table looks at one table, once. It returns false when what was seen so far makes no sense.
func (s *surveyor) table(i int, at mem.Phys) bool {
	f := s.format
	if s.seen[tableAt{i, at}] {
		return true
	}
	if len(s.seen) >= surveyTables {
		s.out.Cut = true
		return false
	}
	s.seen[tableAt{i, at}] = true
	b := make([]byte, f.tableSize(i))
	if _, err := s.reader.ReadPhys(b, at); err != nil {
		s.out.Malformed += len(b) / int(f.EntrySize)
		return s.plausible()
	}
	for k := range uint64(len(b)) / uint64(f.EntrySize) {
		e := f.entryIn(b, k)
		if e&f.present == 0 {
			continue
		}
		next, leaf, ok := f.follow(i, e)
		switch {
		case !ok:
			s.out.Malformed++
		case !leaf:
			if !s.table(i+1, next) {
				return false
			}
		case s.inRAM(next) && s.inRAM(next+mem.Phys(uint64(1)<<f.levels[i].shift)-1):
			s.out.Leaves++
			s.out.Bytes += 1 << f.levels[i].shift
		default:
			s.out.Outside++
		}
	}
	return s.plausible()
}

// plausible gives up on what is no table, before the rest of it is followed.
func (s *surveyor) plausible() bool {
	const some = 64
	return s.out.Malformed+s.out.Outside <= some+s.out.Leaves
}

// TablePages are the pages of the tables at root, the root included, each once and ascending.
// What cannot be read is left out; complete is false if there were more than MaxTables.
func (f *Format) TablePages(r mem.PhysReader, root mem.Phys) (pages []mem.Phys, complete bool) {
	if len(f.levels) == 0 {
		return nil, true
	}
	seen := map[tableAt]bool{{0, root}: true}
	for queue := []tableAt{{0, root}}; len(queue) > 0; {
		t := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		b := make([]byte, f.tableSize(t.level))
		if _, err := r.ReadPhys(b, t.at); err != nil {
			continue
		}
		pages = append(pages, t.at&^4095)
		for k := range uint64(len(b)) / uint64(f.EntrySize) {
			next, leaf, ok := f.follow(t.level, f.entryIn(b, k))
			if below := (tableAt{t.level + 1, next}); ok && !leaf && !seen[below] {
				if len(seen) >= MaxTables {
					return slices.Compact(sorted(pages)), false
				}
				seen[below] = true
				queue = append(queue, below)
			}
		}
	}
	return slices.Compact(sorted(pages)), true
}

func sorted(a []mem.Phys) []mem.Phys { slices.Sort(a); return a }

// Denied is what an entry alone takes away of the permissions that others give. leaf is
// Step.Leaf.
func (f *Format) Denied(level int, leaf bool, entry uint64) Perm {
	i := len(f.levels) - level
	if i < 0 || i >= len(f.levels) {
		return 0
	}
	r := f.levels[i].table
	if leaf {
		r = f.levels[i].leaf
	}
	if r == nil {
		return 0
	}
	return f.perms &^ r.allowed(f.perms, entry)
}
