package cli

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"nestdbg/internal/debugfile"
	"nestdbg/internal/machine"
	"nestdbg/internal/report"
)

// imageSpec is --symbols for what is not Linux: MACHINE=ELF[@BASE].
var imageSpec = regexp.MustCompile(`^(l1|vm[0-9]+(?:\.vm[0-9]+)*)=(.+)$`)

// images are the files that --symbols says are loaded in machines, by machine, and
// dirs the directories that it names.
type images struct {
	dirs      []string
	byMachine map[string][]*debugfile.Image
}

// parseSymbols sorts what --symbols was given.
func parseSymbols(specs []string) (*images, error) {
	out := &images{byMachine: make(map[string][]*debugfile.Image)}
	for _, spec := range specs {
		part := imageSpec.FindStringSubmatch(spec)
		if part == nil {
			out.dirs = append(out.dirs, spec)
			continue
		}
		path, base, err := splitBase(part[2])
		if err != nil {
			return nil, usagef("--symbols %s: %w", spec, err)
		}
		image, err := debugfile.OpenImage(path, base)
		if err != nil {
			return nil, usagef("--symbols %s: %w", spec, err)
		}
		out.byMachine[part[1]] = append(out.byMachine[part[1]], image)
	}
	return out, nil
}

// of are the images of a machine. i may be nil: then there are none.
func (i *images) of(m *machine.Machine) []*debugfile.Image {
	if i == nil {
		return nil
	}
	return i.byMachine[m.Name]
}

// together tells whether two addresses are in one function of a machine's images.
func (i *images) together(machine string) func(x, y uint64) bool {
	return func(x, y uint64) bool {
		for _, image := range i.byMachine[machine] {
			a, ok := image.Symbolize(x)
			b, also := image.Symbolize(y)
			if ok && also {
				return a == b
			}
		}
		return false
	}
}

// splitBase cuts ELF@BASE. The last @ counts, if what follows is a number.
func splitBase(s string) (path string, base *uint64, err error) {
	i := strings.LastIndex(s, "@")
	if i < 0 {
		return s, nil, nil
	}
	v, err := strconv.ParseUint(strings.TrimPrefix(s[i+1:], "0x"), 16, 64)
	if err != nil {
		return "", nil, fmt.Errorf("%q is no address", s[i+1:])
	}
	return s[:i], &v, nil
}

// imageSymbols are the symbols of a name in the images of a machine.
func (a *app) imageSymbols(m *machine.Machine, name string) (out []debugfile.ImageSymbol) {
	for _, i := range a.images.of(m) {
		out = append(out, i.Lookup(name)...)
	}
	return out
}

// imageReport is what "sym" says of a name or an address in the images of a machine;
// ok is false if they do not have it.
func (a *app) imageReport(m *machine.Machine, cpu int, what string) (r *report.Symbols, ok bool, err error) {
	r = &report.Symbols{Machine: m.Name, Symbols: []report.SymbolInfo{}}
	if !looksNumeric(what) {
		for _, s := range a.imageSymbols(m, what) {
			r.AddImage(s.Name, s.Addr, 0, s.Size, s.Type)
		}
		if len(r.Symbols) > 0 {
			return r, true, nil
		}
	}
	one, err := a.cpu(m, cpu)
	if err != nil {
		return nil, false, err
	}
	at, err := a.resolve(m, one, what)
	if err != nil || at.physical {
		return nil, false, err
	}
	for _, i := range a.images.of(m) {
		if s, ok := i.Symbolize(at.value); ok {
			r.AddImage(s.Name, s.Addr, at.value-s.Addr, s.Size, 0)
			return r, true, nil
		}
	}
	return nil, false, nil
}
