package cli

import (
	"fmt"
	"strconv"
	"strings"

	"nestdbg/internal/linux"
	"nestdbg/internal/machine"
)

// address is what a person named: a place in virtual or physical memory.
type address struct {
	physical bool
	value    uint64
}

// space is what reports call the memory that the address is in.
func (at address) space() string {
	if at.physical {
		return "pa"
	}
	return "va"
}

// resolve reads an address as the help describes it: hexadecimal with or
// without 0x, pa: or va: in front, symbol+offset, $register+offset.
func (a *app) resolve(m *machine.Machine, c *machine.CPU, text string) (address, error) {
	var out address
	rest := text
	if s, ok := strings.CutPrefix(rest, "pa:"); ok {
		out.physical, rest = true, s
	} else if s, ok := strings.CutPrefix(rest, "va:"); ok {
		rest = s
	}
	base, offset, err := splitOffset(rest)
	if err != nil {
		return out, usagef("address %q: %w", text, err)
	}
	v, err := a.base(m, c, base)
	if err != nil {
		return out, usagef("address %q: %w", text, err)
	}
	out.value = v + offset
	return out, nil
}

// splitOffset cuts "name+0x10" or "name-8"; the offset wraps like the
// machine's own arithmetic.
func splitOffset(s string) (base string, offset uint64, err error) {
	i := strings.LastIndexAny(s, "+-")
	if i <= 0 {
		return s, 0, nil
	}
	offset, err = strconv.ParseUint(s[i+1:], 0, 64)
	if err != nil {
		return "", 0, fmt.Errorf("%q is no number", s[i+1:])
	}
	if s[i] == '-' {
		offset = -offset
	}
	return s[:i], offset, nil
}

func (a *app) base(m *machine.Machine, c *machine.CPU, s string) (uint64, error) {
	if name, ok := strings.CutPrefix(s, "$"); ok {
		return register(m, c, name)
	}
	if v, err := strconv.ParseUint(strings.TrimPrefix(s, "0x"), 16, 64); err == nil && looksNumeric(s) {
		return v, nil
	}
	if found := a.imageSymbols(m, s); len(found) > 0 {
		return found[0].Addr, nil
	}
	k, err := a.session.Kernel(m)
	if err != nil {
		return 0, fmt.Errorf("%q is no number, and %s has no kernel whose symbols are known: %w", s, m.Name, err)
	}
	v, ok := k.Lookup(s)
	if !ok {
		return 0, fmt.Errorf("%s has no symbol %q%s", m.Name, s, linux.Unread(k.SymbolProblems()))
	}
	return uint64(v), nil
}

// looksNumeric tells "0xdead" and "ffff8000" from symbols such as "add" or "f":
// without 0x a number must begin with a digit or be of full length.
func looksNumeric(s string) bool {
	return strings.HasPrefix(s, "0x") || s != "" && s[0] >= '0' && s[0] <= '9' || len(s) == 16
}

func register(m *machine.Machine, c *machine.CPU, name string) (uint64, error) {
	switch name {
	case "pc":
		name = m.Arch.Regs[m.Arch.PC].Name
	case "sp":
		name = m.Arch.Regs[m.Arch.SP].Name
	}
	if _, ok := m.Arch.Index(name); !ok {
		return 0, fmt.Errorf("%s has no register %q", m.Arch.Name, name)
	}
	v, ok := c.Regs.Get(name)
	if !ok {
		return 0, fmt.Errorf("%s of %s CPU %d is not known", name, m.Name, c.Index)
	}
	return v, nil
}
