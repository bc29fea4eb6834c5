package paging

import "fmt"

// flag names a field of an entry. A field of several bits is shown with its
// value, by words if there are any.
type flag struct {
	bit, width uint
	name       string
	values     []string
}

func bit(n uint, name string) flag { return flag{bit: n, width: 1, name: name} }

func flags(parts ...[]flag) []flag {
	var all []flag
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// The names are those of the AMD APM Vol. 2, "Page-Translation-Table Entry
// Fields", and of the Intel SDM Vol. 3A where only that has the field.
var (
	x86Common = []flag{bit(0, "P"), bit(1, "R/W"), bit(2, "U/S"), bit(3, "PWT"), bit(4, "PCD"), bit(5, "A")}
	x86Leaf   = []flag{bit(6, "D"), bit(8, "G")}
	x86High   = []flag{{bit: 59, width: 4, name: "PKEY"}, bit(63, "NX")}

	x86TableFlags = flags(x86Common, []flag{bit(63, "NX")})
	x86PageFlags  = flags(x86Common, x86Leaf, []flag{bit(7, "PAT")}, x86High)
	x86LargeFlags = flags(x86Common, x86Leaf, []flag{bit(7, "PS"), bit(12, "PAT")}, x86High)

	x86PDPTEFlags    = []flag{bit(0, "P"), bit(3, "PWT"), bit(4, "PCD")}
	x86PAETableFlags = x86TableFlags
	x86PAEPageFlags  = flags(x86Common, x86Leaf, []flag{bit(7, "PAT"), bit(63, "NX")})
	x86PAELargeFlags = flags(x86Common, x86Leaf, []flag{bit(7, "PS"), bit(12, "PAT"), bit(63, "NX")})

	x86TwoLevelTableFlags = x86Common
	x86TwoLevelPageFlags  = flags(x86Common, x86Leaf, []flag{bit(7, "PAT")})
	x86TwoLevelLargeFlags = flags(x86Common, x86Leaf, []flag{bit(7, "PS"), bit(12, "PAT")})
)

// Intel SDM Vol. 3C, "EPT Translation Mechanism", the tables of entry formats.
// The manual has no short names for the bits from 57 on; these are KVM's and ours.
var (
	eptAccess    = []flag{bit(0, "R"), bit(1, "W"), bit(2, "X"), bit(8, "A")}
	eptLeafOnly  = []flag{memoryType, bit(6, "IPAT"), bit(9, "D")}
	eptLeafHigh  = []flag{bit(57, "VGP"), bit(58, "PW"), bit(60, "SSS"), bit(61, "SPP"), bit(63, "SVE")}
	eptModeBased = []flag{bit(10, "XU")}

	eptTableFlags     = eptAccess
	eptTableFlagsMBEC = flags(eptAccess, eptModeBased)
	eptPageFlags      = flags(eptAccess, eptLeafOnly, eptLeafHigh)
	eptPageFlagsMBEC  = flags(eptPageFlags, eptModeBased)
	eptLargeFlags     = flags(eptPageFlags, []flag{bit(7, "PS")})
	eptLargeFlagsMBEC = flags(eptPageFlagsMBEC, []flag{bit(7, "PS")})

	memoryType = flag{bit: 3, width: 3, name: "MT",
		values: []string{"UC", "WC", "", "", "WT", "WP", "WB", ""}}
)

// LevelName is the manuals' name for a table of a level, 5 to 1.
func LevelName(level int) string {
	names := []string{"PT", "PD", "PDPT", "PML4", "PML5"}
	if level < 1 || level > len(names) {
		return fmt.Sprintf("level %d", level)
	}
	return names[level-1]
}

// Flags names the bits that are set in an entry of a level: those of the manual
// first, then what is left to software as "AVL9" and what is reserved as
// "reserved 51". leaf is Step.Leaf. Nil for an entry that is not present, all of
// which is left to software, and for a level that the format does not have.
func (f *Format) Flags(level int, leaf bool, entry uint64) []string {
	i := len(f.levels) - level
	if i < 0 || i >= len(f.levels) || entry&f.present == 0 {
		return nil
	}
	r := f.levels[i].table
	if leaf {
		r = f.levels[i].leaf
	}
	if r == nil {
		return nil
	}
	var names []string
	rest := entry &^ (r.addr | r.high.mask)
	for _, x := range r.flags {
		field := entry >> x.bit & (1<<x.width - 1)
		rest &^= (1<<x.width - 1) << x.bit
		if name := x.render(field); name != "" {
			names = append(names, name)
		}
	}
	for n := uint(0); n < 64; n++ {
		switch {
		case rest>>n&1 == 0:
		case f.refused(r, n):
			names = append(names, fmt.Sprintf("reserved %d", n))
		default:
			names = append(names, fmt.Sprintf("AVL%d", n))
		}
	}
	return names
}

// refused reports whether bit n alone makes the rule refuse an entry.
func (f *Format) refused(r *entryRule, n uint) bool {
	for _, x := range r.illegal {
		if x.mask == 1<<n && x.value == 1<<n {
			return true
		}
	}
	return r.reserved>>n&1 != 0
}

// render is the text for a field, "" if there is nothing to say.
func (x flag) render(field uint64) string {
	switch {
	case x.values != nil && x.values[field] != "":
		return x.values[field]
	case field == 0 && x.values == nil:
		return ""
	case x.width > 1:
		return fmt.Sprintf("%s=%d", x.name, field)
	default:
		return x.name
	}
}
