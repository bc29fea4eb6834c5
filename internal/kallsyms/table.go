package kallsyms

import (
	"errors"
	"iter"
)

// The classes of error. Reads that fail are also mem.ErrFault.
var (
	// ErrNotFound: the image holds nothing that looks like the tables.
	ErrNotFound = errors.New("kallsyms not found")
	// ErrCorrupt: tables are there, but contradict themselves or the image.
	ErrCorrupt = errors.New("kallsyms corrupt")
	// ErrAmbiguous: the bytes can be read in more than one way.
	ErrAmbiguous = errors.New("kallsyms ambiguous")
)

// Symbol is one line of /proc/kallsyms.
type Symbol struct {
	Name string
	// Addr is the runtime address; for symbols of type 'A' it is a plain
	// number, on x86-64 before v6.15 an offset in the per-CPU area.
	Addr uint64
	// Type is the letter of nm(1): 't' and 'T' for code, capital for global.
	Type byte
}

// Absolute reports whether the symbol's address is a number and not a place in
// the kernel image.
func (s Symbol) Absolute() bool { return s.Type == 'A' || s.Type == 'a' }

// Table is the symbol table of one kernel. It keeps no reference to the memory
// it was read from, and is safe for concurrent use.
type Table struct {
	names  *names
	addrs  []uint64     // ascending, parallel to names
	lost   map[int]bool // addresses that are damaged, and that of a neighbour here; nil if none is
	first  int          // index of the first symbol that At can answer
	layout string
}

// Len is the number of symbols, damaged ones included.
func (t *Table) Len() int { return len(t.addrs) }

// Layout says in words how the tables were laid out and encoded.
func (t *Table) Layout() string { return t.layout }

// All yields the symbols in the kernel's order, which ascends by address, without
// those that Damage is about.
func (t *Table) All() iter.Seq[Symbol] {
	return func(yield func(Symbol) bool) {
		for i := range t.addrs {
			if !t.damaged(i) && !yield(t.symbol(i)) {
				return
			}
		}
	}
}

// Lookup returns the first symbol with this name, the one at the lowest
// address, as the kernel's own kallsyms_lookup_name does.
func (t *Table) Lookup(name string) (Symbol, bool) {
	for i, ok := t.names.find(name); ok; i, ok = t.names.nextSame(i, name) {
		if !t.damaged(i) {
			return Symbol{Name: name, Addr: t.addrs[i], Type: t.names.symbolType(i)}, true
		}
	}
	return Symbol{}, false
}

// LookupAll returns every symbol with this name, ascending by address. Static
// functions and variables of different files share names.
func (t *Table) LookupAll(name string) []Symbol {
	var out []Symbol
	for i, ok := t.names.find(name); ok; i, ok = t.names.nextSame(i, name) {
		if !t.damaged(i) {
			out = append(out, Symbol{Name: name, Addr: t.addrs[i], Type: t.names.symbolType(i)})
		}
	}
	return out
}

// At returns the symbol that addr belongs to, and addr's distance from it. Of
// several symbols at one address it is the first of the table, as in the
// kernel's own backtraces. Absolute symbols, and what lies outside of the
// kernel image, are never an answer; the last symbol has no known end and
// answers for its own address only, as does one before a symbol whose address is
// damaged. A damaged name is no answer either, and neither is what stands before it.
func (t *Table) At(addr uint64) (sym Symbol, offset uint64, ok bool) {
	last := t.above(addr) - 1
	if last < t.first || (last == len(t.addrs)-1 && t.addrs[last] != addr) {
		return Symbol{}, 0, false
	}
	for t.absolute(last) {
		if last--; last < t.first {
			return Symbol{}, 0, false
		}
	}
	start, first := t.addrs[last], last
	if t.lost[last] && addr != start {
		return Symbol{}, 0, false
	}
	if last > t.first && t.addrs[last-1] == start {
		first = max(t.first, t.from(start))
	}
	for t.absolute(first) || t.damaged(first) {
		if first++; first > last {
			return Symbol{}, 0, false
		}
	}
	return t.symbol(first), addr - start, true
}

// from is the index of the first symbol at addr or above it. Written out, since
// At is asked for every frame of every backtrace and sort.Search takes twice as long.
func (t *Table) from(addr uint64) int {
	low, high := 0, len(t.addrs)
	for low < high {
		if mid := int(uint(low+high) >> 1); t.addrs[mid] >= addr {
			high = mid
		} else {
			low = mid + 1
		}
	}
	return low
}

// above is the index of the first symbol above addr.
func (t *Table) above(addr uint64) int {
	if addr == 1<<64-1 {
		return len(t.addrs)
	}
	return t.from(addr + 1)
}

// Size is the number of bytes from addr, a symbol's address, to the next
// higher symbol. The format stores no sizes, so padding counts. There is no
// answer for the highest symbol, and before one whose address is damaged.
func (t *Table) Size(addr uint64) (size uint64, ok bool) {
	i := t.above(addr)
	if i == len(t.addrs) || t.lost[i-1] {
		return 0, false
	}
	return t.addrs[i] - addr, true
}

func (t *Table) symbol(i int) Symbol {
	name, kind := t.names.name(i)
	return Symbol{Name: name, Addr: t.addrs[i], Type: kind}
}

// damaged reports whether symbol i's name or address is lost.
func (t *Table) damaged(i int) bool { return t.lost[i] || t.names.lost[i] }

func (t *Table) absolute(i int) bool {
	kind := t.names.symbolType(i)
	return kind == 'A' || kind == 'a'
}

// newTable joins names and addresses. start is the address of _text or _stext;
// everything below it is not in the image.
func newTable(n *names, addrs []uint64, lost map[int]bool, start uint64, layout string) *Table {
	t := &Table{names: n, addrs: addrs, lost: lost, layout: layout}
	t.first = t.from(start)
	return t
}
