package symfile

import "nestdbg/internal/btf"

// record is one type of BTF.
type record struct{ btf.Type }

// table is the types of one BTF section, and what was found out about each. Its
// slices by type are indexed by id - firstID.
type table struct {
	*btf.Spec
	firstID   uint32
	firstName uint32 // the string offset at which this section's strings begin
	strings   []byte
	state     []state
	size      []uint64   // in bytes, of the type by value; set by check
	depth     [2][]uint8 // how deep types are nested in it, by graph; set by check
	die       []uint32   // where in .debug_info the type is described; 0 = nowhere
	isPartial bool       // only types marked named or needed are described

	// The strings are in .debug_str from nameOffset on, or, if interned is not
	// nil, one by one, by their offset in strings.
	nameOffset uint32
	interned   map[uint32]uint32
}

// state is what was found out about a type, as bits.
type state uint8

const (
	visiting   state = 1 << iota // on the path of the search in check
	visited                      //
	cut                          // its reference or members are dropped: they are a cycle
	unusable                     // must not be described at all
	named                        // in a partial table: something refers to it
	needed                       // in a partial table: something contains it
	referenced                   // a prototype that is the type of more than functions
)

// parseBTF reads raw BTF. base is what it continues, or nil. If it ends too early,
// both the table and an error are returned.
func parseBTF(raw []byte, base *table) (*table, error) {
	var on *btf.Spec
	if base != nil {
		on = base.Spec
	}
	spec, err := btf.Parse(raw, on)
	if spec == nil {
		return nil, err
	}
	s := &table{Spec: spec, firstID: uint32(spec.First())}
	s.strings, s.firstName = spec.Strings()
	s.state = make([]state, spec.Len())
	s.size = make([]uint64, spec.Len())
	s.die = make([]uint32, spec.Len())
	for g := range s.depth {
		s.depth[g] = make([]uint8, spec.Len())
	}
	return s, err
}

// record returns the record at an index.
func (s *table) record(index int) record { return record{s.At(index)} }
