package report

import (
	"fmt"
	"io"

	"nestdbg/internal/linux"
	"nestdbg/internal/mem"
)

// Symbols is what a name stands for, or what an address belongs to.
type Symbols struct {
	Machine  string       `json:"machine"`
	Symbols  []SymbolInfo `json:"symbols"`
	Problems []string     `json:"problems,omitempty"`
}

// SymbolInfo is one symbol. Addr is its own address, Offset how far behind it the
// address lies that was asked for. Type is the letter of nm, empty for an address
// that was named; an absolute one ("A", "a") is a number, on x86-64 before Linux
// 6.15 an offset in each CPU's own data. Size is null where it is not known.
type SymbolInfo struct {
	Name   string  `json:"name"`
	Module string  `json:"module,omitempty"`
	Addr   Hex     `json:"addr"`
	Offset Hex     `json:"offset"`
	Size   *uint64 `json:"size"`
	Type   string  `json:"type,omitempty"`
}

// NewSymbols reports on every symbol of a name in a machine's kernel.
func NewSymbols(machine string, k *linux.Kernel, name string) *Symbols {
	r := &Symbols{Machine: machine, Symbols: []SymbolInfo{}}
	list, problems := k.LookupAll(name)
	for _, s := range list {
		r.Symbols = append(r.Symbols, SymbolInfo{Name: s.Name, Module: s.Module, Addr: Hex(s.Addr),
			Size: sizePointer(s.Size), Type: string(rune(s.Type))})
	}
	for _, p := range problems {
		r.Problems = append(r.Problems, p.String())
	}
	return r
}

// NewPlace reports on what an address of a machine's kernel belongs to; if to nothing,
// the problems are why that may not be so.
func NewPlace(machine string, k *linux.Kernel, addr uint64) *Symbols {
	r := &Symbols{Machine: machine, Symbols: []SymbolInfo{}}
	if p, ok := k.Symbolize(mem.Virt(addr)); ok {
		r.Symbols = append(r.Symbols, SymbolInfo{Name: p.Name, Module: p.Module, Addr: Hex(addr - p.Offset),
			Offset: Hex(p.Offset), Size: sizePointer(p.Size)})
		return r
	}
	for _, p := range k.SymbolProblems() {
		r.Problems = append(r.Problems, p.String())
	}
	return r
}

// AddImage adds a symbol of what is no kernel. kind is 0 for an address that was named.
func (r *Symbols) AddImage(name string, addr, offset, size uint64, kind byte) {
	s := SymbolInfo{Name: name, Addr: Hex(addr), Offset: Hex(offset), Size: sizePointer(size)}
	if kind != 0 {
		s.Type = string(rune(kind))
	}
	r.Symbols = append(r.Symbols, s)
}

func sizePointer(n uint64) *uint64 {
	if n == 0 {
		return nil
	}
	return &n
}

// Text implements Report.
func (r *Symbols) Text(w io.Writer) {
	for _, s := range r.Symbols {
		fmt.Fprintf(w, "0x%016x ", uint64(s.Addr)+uint64(s.Offset))
		if s.Type != "" {
			fmt.Fprintf(w, "%s ", s.Type)
		}
		fmt.Fprint(w, placeText(s.Name, uint64(s.Offset), s.Size, s.Module))
		fmt.Fprintln(w)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "not read: %s\n", p)
	}
}

// placeText writes symbol+offset/size [module] as the kernel does.
func placeText(name string, offset uint64, size *uint64, module string) string {
	text := fmt.Sprintf("%s+%#x", name, offset)
	if size != nil {
		text += fmt.Sprintf("/%#x", *size)
	}
	if module != "" {
		text += " [" + module + "]"
	}
	return printable(text) // names are the guest's
}
