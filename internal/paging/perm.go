package paging

// Perm is what a translation allows, after all levels.
type Perm uint8

// The permissions. Formats differ in which they know: EPT and nested tables
// have no User, and only EPT with mode-based execute control has UserExec.
const (
	Read Perm = 1 << iota
	Write
	Exec     // instruction fetches; with UserExec known, those of supervisor mode
	User     // accesses of user mode, in the ways the others allow
	UserExec // instruction fetches of user mode, EPT with mode-based execute control
)

// String renders the permissions as "rwxu" with '-' for what is missing. An 'X'
// behind it is UserExec.
func (p Perm) String() string {
	s := []byte("rwxu")
	for i, bit := range []Perm{Read, Write, Exec, User} {
		if p&bit == 0 {
			s[i] = '-'
		}
	}
	if p&UserExec != 0 {
		s = append(s, 'X')
	}
	return string(s)
}
