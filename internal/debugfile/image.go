package debugfile

import (
	"cmp"
	"debug/elf"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
)

// Image is an ELF file of which somebody says that it is loaded in a machine: a
// monitor's own binary, a program that runs without a kernel. It is safe for
// concurrent use.
type Image struct {
	Path  string // absolute
	Base  uint64 // where its first loadable segment is
	Slide uint64 // run-time address minus linked address, of all of it

	once    sync.Once
	symbols []ImageSymbol // by address; set once
}

// ImageSymbol is a function or a variable of an image, at its run-time address.
type ImageSymbol struct {
	Name string
	Addr uint64
	Size uint64 // 0 if the file does not say
	Type byte   // as in nm: T or D, small for a local one
}

// OpenImage reads where an ELF file was linked. base is where its first loadable
// segment is at run time; nil means where it was linked.
func OpenImage(path string, base *uint64) (*Image, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	first, err := FirstSegment(path)
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	i := &Image{Path: path, Base: first}
	if base != nil {
		i.Base, i.Slide = *base, *base-first
	}
	return i, nil
}

// Lookup returns the symbols of this name.
func (i *Image) Lookup(name string) []ImageSymbol {
	var out []ImageSymbol
	for _, s := range i.all() {
		if s.Name == name {
			out = append(out, s)
		}
	}
	return out
}

// Symbolize returns the symbol that an address is in, or of which the size is not
// known and which is the last before it.
func (i *Image) Symbolize(addr uint64) (s ImageSymbol, ok bool) {
	all := i.all()
	at, _ := slices.BinarySearchFunc(all, addr, func(s ImageSymbol, a uint64) int {
		if s.Addr <= a {
			return -1
		}
		return 1
	})
	for at--; at >= 0; at-- {
		if s := all[at]; s.Size == 0 || addr-s.Addr < s.Size {
			return s, s.Size != 0 || i.covers(addr)
		}
	}
	return s, false
}

// covers reports whether an address is in a loadable segment.
func (i *Image) covers(addr uint64) bool {
	f, err := elf.Open(i.Path)
	if err != nil {
		return false
	}
	defer f.Close()
	return slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool {
		return p.Type == elf.PT_LOAD && addr-i.Slide-p.Vaddr < p.Memsz
	})
}

// Segments are the run-time addresses of what is loaded, first and last each.
func (i *Image) Segments() ([][2]uint64, error) {
	f, err := elf.Open(i.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out [][2]uint64
	for _, p := range f.Progs {
		if first := p.Vaddr + i.Slide; p.Type == elf.PT_LOAD && p.Memsz > 0 && first+p.Memsz-1 >= first {
			out = append(out, [2]uint64{first, first + p.Memsz - 1})
		}
	}
	return out, nil
}

// all reads the symbol table. A file without one has no symbols.
func (i *Image) all() []ImageSymbol {
	i.once.Do(func() {
		f, err := elf.Open(i.Path)
		if err != nil {
			return
		}
		defer f.Close()
		table, err := f.Symbols()
		if errors.Is(err, elf.ErrNoSymbols) {
			table, _ = f.DynamicSymbols()
		}
		for _, s := range table {
			if s.Section == elf.SHN_UNDEF || s.Section == elf.SHN_ABS || s.Name == "" {
				continue
			}
			letter := byte('D')
			switch elf.ST_TYPE(s.Info) {
			case elf.STT_FUNC:
				letter = 'T'
			case elf.STT_OBJECT, elf.STT_NOTYPE:
			default:
				continue
			}
			if elf.ST_BIND(s.Info) == elf.STB_LOCAL {
				letter += 'a' - 'A'
			}
			i.symbols = append(i.symbols, ImageSymbol{Name: s.Name, Addr: s.Value + i.Slide, Size: s.Size, Type: letter})
		}
		slices.SortStableFunc(i.symbols, func(a, b ImageSymbol) int { return cmp.Compare(a.Addr, b.Addr) })
	})
	return i.symbols
}
