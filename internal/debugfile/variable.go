package debugfile

import (
	"debug/dwarf"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Member is a member of a structure: where in it, and how large.
type Member struct {
	Name         string
	Offset, Size uint64
}

// step is one ".member" or "[index]" of an expression.
var step = regexp.MustCompile(`^(?:\.([A-Za-z_][A-Za-z_0-9]*)|\[([0-9]+)\])`)

// Structure finds a structure in a global variable, by an expression such as
// "vms[0].regs", from the image's debug information: its run-time address, and its members.
func (i *Image) Structure(expr string) (addr uint64, members []Member, err error) {
	f, err := elf.Open(i.Path)
	if err != nil {
		return 0, nil, err
	}
	defer f.Close()
	info, err := f.DWARF()
	if err != nil {
		return 0, nil, fmt.Errorf("debug information of %s: %w", i.Path, err)
	}
	name, rest := expr, ""
	if at := strings.IndexAny(expr, ".["); at >= 0 {
		name, rest = expr[:at], expr[at:]
	}
	addr, typ, err := i.variable(info, f.ByteOrder, name)
	for err == nil && rest != "" {
		part := step.FindStringSubmatch(rest)
		if part == nil {
			return 0, nil, fmt.Errorf("%q is neither a member nor an index", rest)
		}
		rest = rest[len(part[0]):]
		var offset uint64
		typ, offset, err = inside(typ, part[1], part[2])
		addr += offset
	}
	if err != nil {
		return 0, nil, err
	}
	s, ok := plain(typ).(*dwarf.StructType)
	if !ok {
		return 0, nil, fmt.Errorf("%s is no structure, but %s", expr, typ)
	}
	for _, m := range s.Field {
		members = append(members, Member{m.Name, uint64(m.ByteOffset), uint64(max(m.Type.Size(), 0))})
	}
	return addr, members, nil
}

// variable finds a global variable.
func (i *Image) variable(info *dwarf.Data, order binary.ByteOrder, name string) (uint64, dwarf.Type, error) {
	const opAddr = 3 // DW_OP_addr: the address follows
	for r := info.Reader(); ; {
		e, err := r.Next()
		if err != nil {
			return 0, nil, err
		}
		if e == nil {
			return 0, nil, fmt.Errorf("%s has no variable %q", i.Path, name)
		}
		if e.Tag != dwarf.TagCompileUnit {
			r.SkipChildren()
		}
		where, _ := e.Val(dwarf.AttrLocation).([]byte)
		if e.Tag != dwarf.TagVariable || len(where) != 9 || where[0] != opAddr {
			continue
		}
		// The definition may leave name and type to a declaration.
		decl := e
		if at, ok := e.Val(dwarf.AttrSpecification).(dwarf.Offset); ok {
			q := info.Reader()
			q.Seek(at)
			if decl, err = q.Next(); err != nil {
				return 0, nil, err
			}
		}
		if got, _ := decl.Val(dwarf.AttrName).(string); got != name {
			continue
		}
		at, ok := e.Val(dwarf.AttrType).(dwarf.Offset)
		if !ok {
			at, ok = decl.Val(dwarf.AttrType).(dwarf.Offset)
		}
		if !ok {
			return 0, nil, fmt.Errorf("%s does not say of what type %s is", i.Path, name)
		}
		typ, err := info.Type(at)
		return order.Uint64(where[1:]) + i.Slide, typ, err
	}
}

// inside is the type of a member, or of an element, and where that is.
func inside(t dwarf.Type, member, index string) (dwarf.Type, uint64, error) {
	switch t := plain(t).(type) {
	case *dwarf.StructType:
		for _, f := range t.Field {
			if f.Name == member && member != "" {
				return f.Type, uint64(f.ByteOffset), nil
			}
		}
	case *dwarf.ArrayType:
		n, err := strconv.ParseInt(index, 10, 64)
		if err == nil && n < t.Count {
			return t.Type, uint64(n * t.Type.Size()), nil
		}
	}
	return nil, 0, fmt.Errorf("%s has no %s", t, member+index)
}

// plain is a type without typedefs and qualifiers.
func plain(t dwarf.Type) dwarf.Type {
	for {
		switch x := t.(type) {
		case *dwarf.TypedefType:
			t = x.Type
		case *dwarf.QualType:
			t = x.Type
		default:
			return t
		}
	}
}
